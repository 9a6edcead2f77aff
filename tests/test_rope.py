"""Rotary positions and their scalings against the formulas in numpy, and what must hold for any of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.layers.position import ALiBi, Sets
from jaxlm.layers.rope import NTK, DynamicNTK, Interpolation, Llama3, LongRope, Rope, YaRN

K, BASE, L = 16, 10000.0, 64
F = BASE ** (-2 * np.arange(K // 2) / K)
SHORT, LONG = tuple(np.linspace(1, 1.5, K // 2).tolist()), tuple(np.linspace(1, 6, K // 2).tolist())
SCALINGS = {
    "linear": Interpolation(4.0),
    "ntk": NTK(4.0),
    "dynamic": DynamicNTK(4.0, L),
    "llama3": Llama3(8.0, 1.0, 4.0, L),
    "yarn": YaRN(4.0, L),
    "longrope": LongRope(SHORT, LONG, L, 4.0),
}


def llama3(s, low, high):
    out = []
    for f in F:
        wave = 2 * np.pi / f
        mix = (L / wave - low) / (high - low)
        out.append(f if wave < L / high else f / s if wave > L / low else (1 - mix) * f / s + mix * f)
    return np.array(out)


def yarn(s, fast=32, slow=1):
    pair = lambda r: K * np.log(L / (2 * np.pi * r)) / (2 * np.log(BASE))  # noqa: E731
    low, high = max(np.floor(pair(fast)), 0), min(np.ceil(pair(slow)), K - 1)
    ramp = np.clip((np.arange(K // 2) - low) / (high - low), 0, 1)
    return F * (1 - ramp) + F / s * ramp


def ntk(s):
    return (BASE * s ** (K / (K - 2))) ** (-2 * np.arange(K // 2) / K)


WANT = {  # (rates, factor of cosine and sine) at place p
    "linear": lambda p: (F / 4, 1),
    "ntk": lambda p: (ntk(4), 1),
    "dynamic": lambda p: (ntk(4 * (p + 1) / L - 3) if p + 1 > L else F, 1),
    "llama3": lambda p: (llama3(8, 1, 4), 1),
    "yarn": lambda p: (yarn(4), 0.1 * np.log(4) + 1),
    "longrope": lambda p: (F / np.array(LONG if p + 1 > L else SHORT), np.sqrt(1 + np.log(4) / np.log(L))),
}


def turned(x, p, f, size=1.0):
    """Complex numbers x_i + i x_{i + k/2}, times size e^{i p f}."""
    m = len(f)
    z = (x[..., :m] + 1j * x[..., m:]) * size * np.exp(1j * p * f)
    return np.concatenate([z.real, z.imag], axis=-1)


def vectors(t, k=K, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, t, 2, k)), jnp.float32)


PLACES = np.array([0, 1, 31, L - 2, L - 1, L, L + 1, 2 * L, 3 * L])  # n = p + 1 exceeds L from p = L on


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_equal_their_formulas(name):
    x = vectors(len(PLACES))
    got = Rope(BASE, scaling=SCALINGS[name]).turn(x, jnp.asarray(PLACES, jnp.int32)[None])
    want = [turned(np.asarray(x, np.float64)[0, i], p, *WANT[name](p)) for i, p in enumerate(PLACES)]
    close(got[0], np.array(want))


@pytest.mark.parametrize("name", SCALINGS)
def test_at_is_the_rotation_of_a_text_of_known_length(name):
    x, n = vectors(len(PLACES)), 3 * L
    rope = Rope(BASE, scaling=SCALINGS[name]).at(n)
    assert rope.scaling.fixed or name == "longrope"
    want = [turned(np.asarray(x, np.float64)[0, i], p, *WANT[name](n - 1)) for i, p in enumerate(PLACES)]
    close(rope.turn(x, jnp.asarray(PLACES, jnp.int32)[None])[0], np.array(want))


def test_no_scaling_is_no_change():
    one = (1.0,) * (K // 2)
    x, places = vectors(9), jnp.asarray(PLACES, jnp.int32)[None]
    plain = Rope(BASE).turn(x, places)
    same = [Interpolation(1.0), NTK(1.0), Llama3(1.0, 1.0, 4.0, L), YaRN(1.0, L), LongRope(one, one, L)]
    for scaling in same:
        close(Rope(BASE, scaling=scaling).turn(x, places), plain)
    short = places[:, :5]  # p < L: dynamic scaling has nothing to do yet
    close(Rope(BASE, scaling=DynamicNTK(4.0, L)).turn(x[:, :5], short), plain[:, :5])


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest():
    rates = NTK(5.0).rates(BASE, K, 1)
    np.testing.assert_allclose([rates[0], rates[-1]], [1.0, F[-1] / 5], rtol=1e-12)


def test_llama3_and_yarn_keep_fast_pairs_and_divide_slow_ones():
    for scaling, s in ((Llama3(8.0, 1.0, 4.0, 8192), 8), (YaRN(8.0, 8192), 8)):
        ratio = scaling.rates(500000.0, 128, 1) / (500000.0 ** (-np.arange(64) / 64))
        assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / s) and (np.diff(ratio) <= 0).all()


@pytest.mark.parametrize("scaling", [None, *(s for s in SCALINGS.values() if s.fixed)], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_alone(scaling, interleaved):
    rope = Rope(BASE, scaling=scaling, interleaved=interleaved)
    q, k = vectors(6), vectors(6, seed=1)
    place = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 6)), jnp.int32)

    def scores(shift):
        return jnp.einsum("bihk,bihk->bih", rope.turn(q, place[:1] + shift), rope.turn(k, place[1:] + shift))

    close(scores(0), scores(57))
    size = 1.0 if scaling is None else scaling.size
    close(jnp.linalg.norm(rope.turn(q, place[:1]), axis=-1), size * jnp.linalg.norm(q, axis=-1))
    close(rope.turn(q, jnp.zeros((1, 6), jnp.int32)), size * q)


def test_half_and_interleaved_layouts_are_one_up_to_order():
    x, place = vectors(5, 8), jnp.arange(3, 8, dtype=jnp.int32)[None]
    order = jnp.array([0, 2, 4, 6, 1, 3, 5, 7])
    inter = Rope(100.0, interleaved=True)
    close(Rope(100.0).turn(x[..., order], place), inter.turn(x, place)[..., order])
    first = inter.turn(x, place)[0, 4, 0, 2:4]  # the second pair turns by place / sqrt(10)
    a = 7 * 100.0 ** (-2 / 8)
    u, v = x[0, 4, 0, 2], x[0, 4, 0, 3]
    close(first, jnp.stack([u * np.cos(a) - v * np.sin(a), v * np.cos(a) + u * np.sin(a)]))


def test_a_fraction_turns_the_first_dimensions_alone():
    x, place = vectors(5), jnp.arange(5, dtype=jnp.int32)[None]
    y = Rope(fraction=0.25).turn(x, place)
    close(y[..., :4], Rope().turn(x[..., :4], place))
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(Rope(fraction=0.0).turn(x, place), x)


def test_angles_stay_wide():
    x, far = jnp.ones((1, 1, 1, 8), jnp.bfloat16), jnp.full((1, 1), 4001)  # bfloat16 has no 4001
    close(Rope().turn(x, far), Rope().turn(x.astype(jnp.float32), far).astype(jnp.bfloat16), jnp.bfloat16)


def test_alibi_slopes():
    alibi = ALiBi()
    np.testing.assert_allclose(alibi.slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi.slopes(12), 2.0 ** -np.array([1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]))
    bias = alibi.bias(8, jnp.array([[7]]), jnp.array([[7, 4]]))
    np.testing.assert_allclose(bias[0, :, 0], np.stack([np.zeros(8), -3 * alibi.slopes(8)], 1))


def test_sets_number_places_and_hide_one_from_another():
    sets, n = Sets(2, (3, 1)), jnp.arange(9, dtype=jnp.int32)[None]
    assert sets.places(n).tolist() == [[0, 1, 2, 3, 4, 2, 5, 6, 7]]
    seen = np.asarray(sets.visible(n, n))[0, 0]
    assert seen[2:5].tolist() == [[True] * 5 + [False] * 4] * 3  # (causality is attention's own)
    assert seen[5].tolist() == [True] * 2 + [False] * 3 + [True] + [False] * 3
    assert seen[6:].all()
    one = Sets(2, (3,))
    assert one.places(n).tolist() == n.tolist() and np.asarray(one.visible(n, n))[0, 0][np.tri(9, dtype=bool)].all()


def test_errors_name_the_field():
    for make, word in [
        (lambda: Rope(0.0), "base"),
        (lambda: Rope(fraction=1.5), "fraction"),
        (lambda: DynamicNTK(0.5, 10), "factor"),
        (lambda: Llama3(8.0, 4.0, 1.0, L), "high"),
        (lambda: LongRope((1.0,), (1.0, 2.0), L), "long"),
        (lambda: Sets(1, (2, 0)), "sizes"),
    ]:
        with pytest.raises(ConfigError, match=rf"\.{word} = "):
            make()
    x, place = vectors(2), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ShapeError, match="even"):
        Rope().turn(x[..., :7], place)
    with pytest.raises(ShapeError, match="8 pairs"):
        Rope(scaling=LongRope((1.0,), (1.0,), L)).turn(x, place)
