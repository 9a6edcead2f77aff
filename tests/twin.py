"""Plain numpy in float64 for the twins of mixers, and the one comparison that all of them go through.

A twin is a class of one row: `reset()`, then `token(x) -> y`, with what it carries in `state`, a tree like the mixer's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tolerance import close

from jaxlm.module import cast, map_specs


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


def rms(x, gain, eps=1e-6):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def unit(x, eps=1e-6):
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)


def conv4(w, past, x):
    """SiLU of a causal convolution at one token.   w (4, ...), past (3, ...), x (...) -> y, past"""
    seen = np.concatenate([past, x[None]])
    return silu(sum(w[i] * seen[i] for i in range(4))), seen[1:]


def float64(tree):
    """Numpy leaves, the floating ones in float64."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), tree)


@partial(jax.jit, static_argnums=0)
def apply(mixer, params, x, state=None, starts=None):
    """`mixer.apply`, compiled once for all tests of one mixer and one shape: compiling is most of their time."""
    return mixer.apply(params, x, state, starts)


def weights(mixer, seed=0):
    """Maps of unit gain, drawn by numpy; the rest as `init`, with what `keep`s (gains, biases, bounds) moved off it."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        if spec.ins:
            return jnp.asarray(rng.normal(size=spec.shape) / np.sqrt(spec.fan_in), spec.dtype)
        first = spec.init(jax.random.key(seed), spec)
        return jnp.asarray(np.asarray(first) + 0.3 * spec.keep * rng.normal(size=spec.shape), spec.dtype)

    return map_specs(draw, mixer.params())


def packed(mixer, t=7, b=2, seed=2):
    """Random inputs x (b, t, d) and starts (b, t): none in the first row, one in the middle of the others."""
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(b, t, mixer.width)), jnp.float32)
    starts = np.zeros((b, t), bool)
    starts[1:, t // 2] = True
    return x, jnp.asarray(starts)


def run(row, params, x, state, starts):
    """A twin over rows and tokens: y (b, t, d) and the last state, as the mixer's."""
    ys, states = [], []
    for b in range(x.shape[0]):
        twin = row(params)
        if state is not None:
            twin.state = jax.tree.map(lambda s, b=b: s[b], state)
        ys.append([])
        for t in range(x.shape[1]):
            if starts is not None and starts[b, t]:
                twin.reset()
            ys[-1].append(twin.token(x[b, t]))
        states.append(twin.state)
    return np.array(ys), jax.tree.map(lambda *s: np.stack(s), *states)


def agree(mixer, row, params=None):
    """`apply` against the twin, fresh, and packed from the state which that leaves; float32, and bfloat16 near it."""
    params = weights(mixer) if params is None else params
    prefix, x, starts = packed(mixer, seed=5)[0], *packed(mixer)
    y, state = apply(mixer, params, prefix)
    close((y, state), run(row, float64(params), float64(prefix), None, None))
    want = run(row, float64(params), float64(x), float64(state), np.asarray(starts))
    close(apply(mixer, params, x, state, starts), want)
    half = {**params, **cast(mixer, {k: v for k, v in params.items() if k != "floor"}, jnp.bfloat16)}
    y, last = apply(mixer, half, x.astype(jnp.bfloat16), state, starts)
    assert y.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, last) == jax.tree.map(lambda a: a.dtype, state)
    close(y, want[0], jnp.bfloat16)


def agree64(mixer, row):
    """As `agree`, in float64 (call it under the fixture x64): a formula that is nearly right is seen here."""
    params = jax.tree.map(lambda p: p.astype(jnp.float64), weights(mixer))
    x, starts = packed(mixer)
    got = apply(mixer, params, x.astype(jnp.float64), None, starts)
    close(got, run(row, float64(params), float64(x), None, np.asarray(starts)), jnp.float64)
