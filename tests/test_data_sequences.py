"""The data of LEM's paper: the FitzHugh-Nagumo system, the adding problem, MNIST's files."""

import numpy as np
import pytest

from jaxlm.data.adding import BASELINE, adding
from jaxlm.data.errors import DataError
from jaxlm.data.fitzhugh_nagumo import fitzhugh_nagumo, integrate
from jaxlm.data.mnist import idx, mnist


@pytest.fixture(scope="module")
def neuron():
    return fitzhugh_nagumo(64)


def neuron_field(t, y):
    return [y[0] - y[0] ** 3 / 3 - y[1] + 0.5, 0.02 * (y[0] + 0.7 - 0.8 * y[1])]


def test_fitzhugh_nagumo_is_the_published_integration(neuron):
    """The authors call SciPy's RK45 with default tolerances; the first voltage tells the trajectory."""
    from scipy.integrate import solve_ivp

    for i in range(5):
        v = neuron[0][i, 0, 0].astype(float)
        first = np.random.Generator(np.random.Philox(0)).uniform(-1, 1, 64)[i]
        assert abs(v - first) < 1e-7
        want = solve_ivp(neuron_field, (0, 400), [first, 0.0], t_eval=np.linspace(0, 400, 1001)).y[0]
        # Later, rounding decides which steps are refused: 3e-16 on the first voltage moves SciPy's own end by 1e-2.
        np.testing.assert_allclose(neuron[1][i, :400, 0], want[1:401], rtol=0, atol=5e-7)


def test_fitzhugh_nagumo_statistics():
    """The sheet's: range, spread, and what persistence and linear prediction from two and three lags reach."""
    v, after = (a[..., 0].astype(float) for a in fitzhugh_nagumo(256, seed=1))
    assert v.shape == after.shape == (256, 1000)
    np.testing.assert_array_equal(v[:, 1:], after[:, :-1])
    assert abs(v.min() + 2.003) < 2e-3 and abs(v.max() - 1.961) < 2e-3
    assert abs(v.std() - 1.476) < 5e-3
    assert abs(np.sqrt(np.mean((after - v) ** 2)) - 0.0785) < 5e-4
    lags = np.stack([v[:, 2:], v[:, 1:-1], v[:, :-2]], -1).reshape(-1, 3)
    for n, error in ((2, 0.0275), (3, 0.0172)):
        left = np.column_stack([lags[:, :n], np.ones(len(lags))])
        rest = after[:, 2:].ravel() - left @ np.linalg.lstsq(left, after[:, 2:].ravel(), rcond=None)[0]
        assert abs(np.sqrt(np.mean(rest**2)) - error) < 5e-4


def test_integration_converges_to_an_exact_solution():
    """An oscillator that turns by one radian a second, at three frequencies of sampling and two tolerances."""
    times = np.linspace(0, 10, 57)
    first = np.array([[1.0, 0.0], [0.0, 2.0]])
    want = np.stack([np.cos(times)[None] * first[0][:, None], -np.sin(times)[None] * first[0][:, None]]) + np.stack(
        [np.sin(times)[None] * first[1][:, None], np.cos(times)[None] * first[1][:, None]]
    )
    errors = [
        np.abs(integrate(lambda y: np.stack([y[1], -y[0]]), first, times, tol, 1e-3 * tol) - want).max()
        for tol in (1e-3, 1e-6, 1e-9)
    ]
    assert errors[0] < 2e-2 and errors[1] < 2e-5 and errors[2] < 2e-8


def test_adding_marks_one_number_in_each_half():
    u, total = adding(500, 31, seed=3)
    assert u.dtype == total.dtype == np.float32
    marks, half = u[..., 1], 15
    assert set(np.unique(marks)) == {0, 1}
    np.testing.assert_array_equal(marks[:, :half].sum(1), 1)
    np.testing.assert_array_equal(marks[:, half:].sum(1), 1)
    assert marks.sum(0).min() > 0, "every place is marked at times"
    np.testing.assert_allclose(total[:, 0], (u[..., 0] * marks).sum(1), rtol=1e-6)
    assert u[..., 0].min() >= 0 and u[..., 0].max() < 1
    many = adding(20000, 2)[1]
    assert abs(np.mean((many - 1) ** 2) - BASELINE) < 4e-3


def test_idx_reads_what_its_head_says():
    raw = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    np.testing.assert_array_equal(idx(raw), np.arange(6).reshape(2, 3))
    with pytest.raises(DataError, match="5 bytes of data, expected 2 x 3"):
        idx(raw[:-1])
    for bad in (b"", b"\0\0\x09\x01" + bytes(8), raw[:6]):
        with pytest.raises(DataError, match="head of an IDX file"):
            idx(bad)


@pytest.mark.data
def test_mnist_is_what_was_published(data_folder):
    splits = mnist(data_folder)
    images, labels = splits["test"]
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(images.mean() / 255 - 0.1325) < 1e-4
    assert (np.bincount(splits["train"][1]) == 500).all()
    seen = {image.tobytes() for image in splits["train"][0]}
    assert len(seen) == 5000 and not any(image.tobytes() in seen for image in images)
