"""Power laws: exact ones are found, error bars cover as often as they should, and what is no law is refused."""

import numpy as np
import pytest

from jaxlm.analysis.power_law import fit_power_law
from jaxlm.errors import ConfigError, ShapeError

SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5])


@pytest.mark.parametrize(("a", "b", "c"), [(5.0, 0.3, 1.2), (80.0, 0.76, 1.7), (2.0, 0.07, 0.0)])
def test_finds_an_exact_law(a, b, c):
    law = fit_power_law(SIZES, a * SIZES**-b + c)
    np.testing.assert_allclose((law.a, law.b, law.c), (a, b, c), rtol=1e-4, atol=1e-6)
    assert law.r2 > 1 - 1e-9
    np.testing.assert_allclose(law(np.array([1e6])), a * 1e6**-b + c, rtol=1e-4)
    pure = fit_power_law(SIZES, a * SIZES**-b, floor=0.0)
    np.testing.assert_allclose((pure.a, pure.b, pure.error[2]), (a, b, 0.0), rtol=1e-6)


def test_error_bars_cover_as_often_as_they_say():
    draw, truth, inside, spread, said = np.random.default_rng(0), (5.0, 0.3, 1.2), 0, [], []
    for _ in range(200):
        law = fit_power_law(SIZES, truth[0] * SIZES ** -truth[1] + truth[2] + 0.003 * draw.normal(size=6))
        inside += abs(law.b - truth[1]) < 3.18 * law.error[1]  # Student's t of 3 degrees of freedom, 95 %
        spread.append((law.a, law.b, law.c))
        said.append(law.error)
    assert 0.9 <= inside / 200 <= 0.99
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(said), axis=0)), np.std(spread, axis=0), rtol=0.15)


def test_r2_falls_with_noise_and_bars_need_a_size_to_spare():
    noisy = 5 * SIZES**-0.3 + 1.2 + 0.1 * np.array([1, -1, 1, -1, 1, -1])
    assert fit_power_law(SIZES, noisy).r2 < 0.9
    assert np.isnan(fit_power_law(SIZES[:3], SIZES[:3] ** -0.3).error).all()


def test_refuses_what_is_no_law():
    with pytest.raises(ConfigError, match="fall with size"):
        fit_power_law(SIZES, SIZES)
    with pytest.raises(ConfigError, match="three different"):
        fit_power_law([1.0, 2.0, 2.0], [3.0, 2.0, 2.0])
    with pytest.raises(ShapeError, match="losses"):
        fit_power_law(SIZES, [1.0])
