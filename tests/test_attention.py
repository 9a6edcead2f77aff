"""Attention against its formula in numpy (rotation, groups, window, packing), relative positions, and its shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import apply, float64, packed, rms, weights

from jaxlm.layers.position import ALiBi
from jaxlm.layers.rope import Rope
from jaxlm.mixers.attention import Attention
from jaxlm.module import ConfigError, ShapeError, cast, count, map_specs

FULL = Attention(16)
FORMS = [
    FULL,
    Attention(16, heads=4, kv_heads=2, window=3),
    Attention(32, heads=4, kv_heads=1, head=6, position=None),
    Attention(16, window=5, qk_norm=True, bias=True, position=Rope(100.0)),
    Attention(24, heads=3, position=ALiBi()),
    Attention(16, heads=4, kv_heads=2, window=4, position=ALiBi()),
]


def rotate(x, place, base):
    """Complex numbers x_i + i x_{i + k/2}, times e^{i place base^(-2i/k)}."""
    m = x.shape[-1] // 2
    z = (x[:m] + 1j * x[m:]) * np.exp(1j * place * base ** (-np.arange(m) / m))
    return np.concatenate([z.real, z.imag])


def formula(m, p, x, starts):
    """One head, one query, one key at a time; the whole of x from a fresh start."""
    y = np.zeros(x.shape)
    project = lambda n, u: np.einsum("d,dhk->hk", u, p[n]) + p.get(f"{n}_bias", 0)  # noqa: E731
    for b in range(x.shape[0]):
        begin, keys, values = 0, [], []
        for t in range(x.shape[1]):
            if starts[b, t]:
                begin, keys, values = t, [], []
            q, k = project("query", x[b, t]), project("key", x[b, t])
            if m.qk_norm:
                q, k = rms(q, p["query_norm"]), rms(k, p["key_norm"])
            if isinstance(m.position, Rope):
                q, k = (np.array([rotate(u, t - begin, m.position.base) for u in a]) for a in (q, k))
            keys.append(k)
            values.append(project("value", x[b, t]))
            if m.window is not None:
                keys, values = keys[-m.window :], values[-m.window :]
            for h in range(m.h):
                group = h // (m.h // m.g)
                scores = np.array([q[h] @ k[group] for k in keys]) / np.sqrt(m.k)
                if isinstance(m.position, ALiBi):
                    scores -= m.position.slopes(m.h)[h] * np.arange(len(keys))[::-1]
                probs = np.exp(scores - scores.max())
                seen = sum(w * v[group] for w, v in zip(probs / probs.sum(), values, strict=True))
                y[b, t] += seen @ p["out"][h]
            y[b, t] += p.get("out_bias", 0)
    return y


@pytest.mark.parametrize("mixer", FORMS, ids=str)
def test_equals_the_formula(mixer):
    params = weights(mixer)
    params = {n: v + 0.3 if n.endswith("bias") else v for n, v in params.items()}
    prefix, (x, starts) = packed(mixer, seed=5)[0], packed(mixer)
    none, both = np.zeros(prefix.shape[:2], bool), jnp.concatenate([prefix, x], axis=1)
    want = formula(mixer, float64(params), float64(both), np.concatenate([none, np.asarray(starts)], axis=1))
    close(apply(mixer, params, prefix)[0], want[:, :7])  # fresh; the formula is causal, so its head is the prefix alone
    state = mixer.start(params, 2, 14)
    _, state = apply(mixer, params, prefix, state, jnp.asarray(none))
    y, last = apply(mixer, params, x, state, starts)
    close(y, want[:, 7:])
    assert last["length"].tolist() == [14, 4]
    half = cast(mixer, params, jnp.bfloat16)
    y, last = apply(mixer, half, x.astype(jnp.bfloat16), state, starts)
    assert y.dtype == jnp.bfloat16 and last["k"].dtype == last["v"].dtype == jnp.float32
    close(y, want[:, 7:], jnp.bfloat16)


def test_equals_the_formula_in_float64(x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), weights(FORMS[3]))
    x, starts = packed(FORMS[3])
    want = formula(FORMS[3], float64(params), float64(x), np.asarray(starts))
    close(apply(FORMS[3], params, x.astype(jnp.float64), None, starts)[0], want, jnp.float64)


def test_the_state_holds_rotated_keys_in_its_own_dtype():
    for mixer, slot in ((FULL, 6), (FORMS[1], 1), (Attention(16, cache_dtype="bfloat16"), 6)):
        params, (x, _) = weights(mixer), packed(mixer)
        _, state = apply(mixer, params, x)
        kept = jax.tree.map(lambda a: (a.shape, str(a.dtype)), state)
        specs = mixer.state(2, 7)
        assert kept == map_specs(lambda s: (s.shape, s.dtype), specs)
        k = jnp.einsum("bd,dgk->bgk", x[:, -1], params["key"])[:, None]
        want = mixer.position.turn(k, jnp.full((2, 1), 6))[:, 0]
        close(state["k"][:, slot], want.astype(mixer.cache_dtype), mixer.cache_dtype)


def test_shared_groups_are_heads_with_equal_weights():
    shared, full = Attention(16, heads=4, kv_heads=2), Attention(16, heads=4)
    assert shared.params() != full.params() == Attention(16, heads=4, kv_heads=4).params()
    params, (x, starts) = weights(shared), packed(shared)
    copied = {n: jnp.repeat(w, 2, axis=1) if n in ("key", "value") else w for n, w in params.items()}
    close(apply(full, copied, x, None, starts)[0], apply(shared, params, x, None, starts)[0])


def test_windows():
    params, (x, starts) = weights(FULL), packed(FULL)
    close(apply(Attention(16, window=7), params, x, None, starts)[0], apply(FULL, params, x, None, starts)[0])
    alone, state = apply(Attention(16, window=1), params, x)
    close(alone, jnp.einsum("btd,dhk,hke->bte", x, params["value"], params["out"]))
    assert state["k"].shape == (2, 0, 2, 8)
    assert FULL.growth == "quadratic" and FORMS[1].growth == "linear"


def test_no_positions_no_order():
    mixer = Attention(16, position=None)
    params, (x, _) = weights(mixer), packed(mixer)
    mixed = x[:, jnp.array([4, 2, 0, 5, 1, 3, 6])]
    close(apply(mixer, params, mixed)[0][:, -1], apply(mixer, params, x)[0][:, -1])
    assert not np.allclose(apply(FULL, params, mixed)[0][:, -1], apply(FULL, params, x)[0][:, -1], atol=1e-3)


def test_shapes_and_names():
    llama = Attention(4096, heads=32, kv_heads=8, position=Rope(500000.0))  # Llama-3-8B
    assert count(llama) == 2 * 4096**2 + 2 * 4096 * 1024 and llama.k == 128
    assert Attention(768).h == 12 and Attention(1600).h == 25 and FULL.h == 2
    assert count(Attention(768, bias=True, position=None)) == 4 * 768**2 + 4 * 768  # GPT-2
    assert llama.state(3, 50)["k"].shape == (3, 50, 8, 128) and FORMS[1].state(3, 50)["k"].shape == (3, 2, 2, 4)
    for bad, word in [
        ({"heads": 3}, "heads = 3"),
        ({"kv_heads": 4}, "kv_heads = 4"),
        ({"head": 7}, "head = 7"),
        ({"heads": 16}, "head = None"),
        ({"window": 0}, "window = 0"),
    ]:
        with pytest.raises(ConfigError, match=word):
            Attention(16, **bad)


def test_more_tokens_than_room_raise():
    params, (x, _) = weights(FULL), packed(FULL)
    with pytest.raises(ShapeError, match="7 tokens"):
        apply(FULL, params, x, FULL.start(params, 2, 6))
