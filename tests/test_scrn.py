"""SCRN against its equations in numpy, in the paper's form and in that of the authors' code (Mikolov et al. 2014)."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, begin, example, loop, single
from tolerance import close

from jaxlm.mixers.rnn import RNN
from jaxlm.mixers.scrn import SCRN
from jaxlm.module import ConfigError, count, init

ALPHA = 0.8


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def paper(p, u, s, alpha=ALPHA):
    """The slow units first, for the fast ones read them."""
    slow = (1 - alpha) * (p["slow"].T @ u) + alpha * s["s"]
    h = sigmoid(p["context"].T @ slow + p["input"].T @ u + p["hidden"].T @ s["h"])
    return np.concatenate([h, slow]), {"h": h, "s": slow}


def code(p, u, s, alpha=ALPHA):
    """The fast units first, so that they read what the slow ones were."""
    h = sigmoid(p["context"].T @ s["s"] + p["input"].T @ u + p["hidden"].T @ s["h"])
    slow = alpha * s["s"] + p["slow"].T @ u * (1 - alpha)
    return np.concatenate([h, slow]), {"h": h, "s": slow}


def test_is_the_papers_recurrence():
    agrees(SCRN(7, inputs=5, slow=3, alpha=ALPHA), paper)


def test_delayed_is_the_codes_loop_which_starts_at_a_tenth():
    mixer = SCRN(7, slow=3, alpha=ALPHA, delayed=True)
    params, x, state, starts = example(mixer)
    tenth = {"h": np.full((3, 4), 0.1), "s": np.full((3, 3), 0.1)}
    close(begin(mixer, params, 3), single(tenth))
    close(apply(mixer, params, x, state, starts), single(loop(code, params, x, state, starts, tenth)))
    starts[:, 0] = True
    close(apply(mixer, params, x, None, starts), single(loop(code, params, x, tenth, starts, tenth)))


def test_the_context_is_the_exponential_average(x64):
    """s_t = α^t s_0 + (1 - α) sum over k of α^(t-k) B u_k."""
    mixer = SCRN(7, slow=3)
    params, x, state, _ = jax.tree.map(lambda a: np.asarray(a, np.float64), example(mixer))
    y, last = apply(mixer, params, x, state)
    t = x.shape[1]
    share = np.where(np.tri(t), 0.95 ** (np.arange(t)[:, None] - np.arange(t)), 0) * 0.05
    s = 0.95 ** np.arange(1, t + 1)[:, None] * state["s"][:, None] + np.einsum("tk,bkn->btn", share, x @ params["slow"])
    close((y[..., 4:], last["s"]), (s, s[:, -1]), "float64")


def test_with_a_share_of_one_the_context_is_what_it_was():
    mixer = SCRN(7, slow=3, alpha=1.0)
    params, x, state, _ = example(mixer)
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["s"], state["s"])


def test_without_context_it_is_a_simple_recurrent_network():
    params, x, state, starts = example(SCRN(7, slow=3))
    params["context"][:] = 0
    plain = {"input": params["input"], "hidden": params["hidden"], "bias": np.zeros(4, np.float32)}
    y, last = apply(SCRN(7, slow=3), params, x, state, starts)
    rnn = RNN(4, inputs=7, activation="sigmoid")
    close((y[..., :4], {"h": last["h"]}), apply(rnn, plain, x, {"h": state["h"]}, starts))


def test_counts_and_init():
    assert count(SCRN(140, inputs=50, slow=40)) == 50 * 140 + 40 * 100 + 100 * 100
    assert SCRN(16).units == 4
    for leaf in jax.tree.leaves(jax.jit(lambda: init(SCRN(128), jax.random.key(0)))()):
        assert abs(np.std(leaf) / 0.05 - 1) < 0.05


@pytest.mark.parametrize(("field", "value"), [("slow", 0), ("slow", 4), ("alpha", 1.5), ("alpha", -0.1)])
def test_bad_fields_are_named(field, value):
    with pytest.raises(ConfigError, match=rf"SCRN\.{field} = {value}"):
        SCRN(4, **{field: value})
