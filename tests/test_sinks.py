"""Attention sinks and the Lambda mask against their definitions: a cache that is cut, and distances with a limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import apply, float64, packed, weights

from jaxlm.layers.position import ALiBi
from jaxlm.layers.rope import DynamicNTK, Interpolation, Rope
from jaxlm.mixers import Attention, SinkAttention
from jaxlm.mixers.sinks import LambdaAttention
from jaxlm.module import ConfigError, cast

SINKS = SinkAttention(16, heads=4, kv_heads=2, window=5, sinks=3)
LAMBDA = LambdaAttention(16, window=4, sinks=2, bias=True)
FORMS = [
    SINKS,
    SinkAttention(16, window=1, sinks=2, qk_norm=False, position=Rope(100.0, 0.5, Interpolation(2.0))),
    LAMBDA,
    LambdaAttention(16, window=5, sinks=4, limit=3),
]


def turn(x, place, rope):
    r = rope.turning(len(x))
    m = r // 2
    rates = rope.base ** (-np.arange(m) / m) / (rope.scaling.factor if rope.scaling else 1)
    z = (x[:m] + 1j * x[m:r]) * np.exp(1j * place * rates)
    return np.concatenate([z.real, z.imag, x[r:]])


def distances(m, i):
    """{key: (place of the query, place of the key)} of query i."""
    if isinstance(m, LambdaAttention):
        local = {j: (i, j) for j in range(i + 1) if i - j < m.window}
        limit = min(m.window if m.limit is None else m.limit, i)
        return {j: (limit, 0) for j in range(min(m.sinks, i + 1))} | local
    cached = sorted({*range(min(m.sinks, i + 1)), *range(max(0, i + 1 - m.window), i + 1)})
    return {j: (len(cached) - 1, place) for place, j in enumerate(cached)}


def formula(m, p, x, starts):
    """One head, one query at a time, from all keys of the document."""
    y = np.zeros(x.shape)
    project = lambda n, u: np.einsum("d,dhk->hk", u, p[n]) + p.get(f"{n}_bias", 0)  # noqa: E731
    for b in range(x.shape[0]):
        begin = 0
        for t in range(x.shape[1]):
            begin = t if starts[b, t] else begin
            q = project("query", x[b, t])
            for h in range(m.h):
                group, scores, values = h // (m.h // m.g), [], []
                for j, (at, where) in distances(m, t - begin).items():
                    k = project("key", x[b, begin + j])[group]
                    scores.append(turn(q[h], at, m.position) @ turn(k, where, m.position) / np.sqrt(m.k))
                    values.append(project("value", x[b, begin + j])[group])
                probs = np.exp(scores - np.max(scores))
                y[b, t] += (probs / probs.sum()) @ np.array(values) @ p["out"][h]
            y[b, t] += p.get("out_bias", 0)
    return y


@pytest.mark.parametrize("mixer", FORMS, ids=str)
def test_equals_the_definition(mixer):
    params = weights(mixer)
    params = {n: v + 0.3 if n.endswith("bias") else v for n, v in params.items()}
    x, starts = packed(mixer, t=19)
    starts = starts.at[1, 4].set(True)
    want = formula(mixer, float64(params), float64(x), np.asarray(starts))
    close(apply(mixer, params, x, None, starts)[0], want)
    y, state = apply(mixer, params, x[:, :7], None, starts[:, :7])
    close((y, apply(mixer, params, x[:, 7:], state, starts[:, 7:])[0]), (want[:, :7], want[:, 7:]))
    half = cast(mixer, params, jnp.bfloat16)
    y, last = apply(mixer, half, x.astype(jnp.bfloat16), state, None)
    assert y.dtype == jnp.bfloat16 and {a.dtype.name for a in jax.tree.leaves(last)} == {"float32", "int32"}


def test_equals_the_definition_over_many_blocks():
    mixer = dataclasses.replace(SINKS, window=9, sinks=2)
    params, (x, starts) = weights(mixer), packed(mixer, t=75)
    starts = starts.at[0, jnp.array([40, 43, 66])].set(True)
    want = formula(mixer, float64(params), float64(x), np.asarray(starts))
    close(apply(mixer, params, x, None, starts)[0], want)
    y, state = apply(mixer, params, x[:, :3], None, starts[:, :3])
    close((y, apply(mixer, params, x[:, 3:], state, starts[:, 3:])[0]), (want[:, :3], want[:, 3:]))


def test_no_sinks_is_a_sliding_window():
    plain, params = Attention(16, window=4), weights(Attention(16))
    x, starts = packed(plain, t=11)
    close(
        apply(SinkAttention(16, window=4, sinks=0), params, x, None, starts)[0],
        apply(plain, params, x, None, starts)[0],
    )


@pytest.mark.parametrize("kind", [SinkAttention, LambdaAttention])
def test_within_the_window_it_is_attention(kind):
    plain = Attention(16)
    params, (x, starts) = weights(plain), packed(plain, t=11)
    assert kind(16, window=11).params() == plain.params()
    close(apply(kind(16, window=11), params, x, None, starts)[0], apply(plain, params, x, None, starts)[0])


def test_places_stay_small_however_long_the_text():
    """The millionth token is read as the cache says, not by its number, at which angles would be coarse."""
    params, (x, _) = weights(SINKS), packed(SINKS, t=9)
    _, state = apply(SINKS, params, x)
    far = {**state, "length": state["length"] + 2**24 - 9}
    y, after = apply(SINKS, params, x, far)
    close(y, apply(SINKS, params, x, state)[0])
    assert after["length"].tolist() == [2**24 + 9] * 2


def test_what_cannot_be_is_named():
    for make, word in [
        (lambda: SinkAttention(16, window=None), "window"),
        (lambda: SinkAttention(16, window=1, sinks=0), "sinks"),
        (lambda: SinkAttention(16, position=ALiBi()), "position"),
        (lambda: SinkAttention(16, position=Rope(scaling=DynamicNTK(2.0, 8))), "position"),
    ]:
        with pytest.raises(ConfigError, match=rf"\.{word} = "):
            make()
