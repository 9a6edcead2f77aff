"""Blockwise attention against a dense mask; caches, cuts, packing, rooms, nan, groups, windows, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tolerance import close

from jaxlm.errors import ShapeError
from jaxlm.ops.attention import attention, attention_fused, attention_naive
from jaxlm.ops.cache import cache_size, positions

B, H, K, V = 2, 4, 6, 5
run = jax.jit(attention, static_argnames=("window", "room", "block"))
naive = jax.jit(attention_naive, static_argnames=("window", "room"))
WINDOWS = [None, 1, 4, 20]  # nothing but itself, inside a block, longer than everything


def example(t, g=2, seed=0, v=V):
    ks = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(ks[0], (B, t, H, K))
    k, v = jax.random.normal(ks[1], (B, t, g, K)), jax.random.normal(ks[2], (B, t, g, v))
    return q, k, v, jax.random.bernoulli(ks[3], 0.15, (B, t))


def before(window, room, t=5, g=2):
    """A random start state: the one after a random packed prefix."""
    q, k, v, starts = example(t, g, seed=7)
    return naive(q, k, v, None, starts, window=window, room=room)[1]


def cut(xs, low, high):
    return tuple(x[:, low:high] for x in xs)


def with_gradients(form, starts, **options):
    def loss(q, k, v, old, length):
        y, new = form(q, k, v, old and {**old, "length": length}, starts, **options)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(new["k"])) + jnp.sum(new["v"] ** 2), (y, new)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))

    def run_with(xs, cache):
        return grad(*xs, cache and {n: cache[n] for n in "kv"}, cache and cache["length"])

    return run_with


@pytest.mark.parametrize(
    ("g", "window", "packed", "cached"),
    [(1, None, True, True), (2, None, True, True), (2, 4, True, True), (4, None, False, False)],
)
def test_equals_the_dense_form_with_gradients_for_any_grouping(g, window, packed, cached):
    *x, starts = example(11, g)
    starts, cache = starts if packed else None, before(window, 20, g=g) if cached else None
    blocks = with_gradients(attention, starts, window=window, block=6)(x, cache)
    close(blocks, with_gradients(attention_naive, starts, window=window)(x, cache))


@pytest.mark.parametrize(("window", "block"), [(None, 3), (1, 3), (4, 3), (20, 16)])
def test_fresh_packed_rows_with_gradients(window, block):
    *x, starts = example(11)
    blocks = with_gradients(attention, starts, window=window, room=13, block=block)(x, None)
    close(blocks, with_gradients(attention_naive, starts, window=window, room=13)(x, None))


@pytest.mark.parametrize("window", [None, 4])
def test_a_bias_is_added_to_the_scores(window):
    *x, starts = example(11)

    def far(query, key):  # a slope a head, and every third token hidden from the others
        gap = query[:, :, None] - key[:, None]
        hidden = ((key % 3 == 1)[:, None] & (gap != 0))[:, None]
        slope = 0.3 * gap[:, None].astype(jnp.float32)
        return jnp.where(hidden, -jnp.inf, -slope * jnp.arange(1.0, H + 1)[None, :, None, None])

    for cache in (None, before(window, 20)):
        options = {"window": window, "bias": far}
        blocks = with_gradients(attention, starts, block=4, **options)(x, cache)
        close(blocks, with_gradients(attention_naive, starts, **options)(x, cache))
    one = [i[:, :1] for i in x]
    close(attention(*one, cache, window=window, bias=far), attention_naive(*one, cache, window=window, bias=far))


def test_long_windows_and_many_blocks():
    *x, starts = example(150)
    for window, block, s in [(40, 8, starts), (3, 64, None), (None, 8, starts), (33, 32, starts)]:
        close(run(*x, None, s, window=window, block=block), naive(*x, None, s, window=window))


@pytest.mark.parametrize("window", WINDOWS)
def test_cut_anywhere(window):
    *x, starts = example(9)
    cache = before(window, 16)
    whole = run(*x, cache, starts, window=window, block=5)
    for pieces in ([4, 1, 4], [1] * 9):
        now, ys, at = cache, [], 0
        for n in pieces:
            y, now = run(*cut(x, at, at + n), now, starts[:, at : at + n], window=window, block=5)
            ys, at = [*ys, y], at + n
        close((jnp.concatenate(ys, 1), now), whole)


@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_without_starts_continues_a_prompt(window):
    *x, _ = example(9)
    whole, end = run(*x, window=window, room=9)
    y, now = run(*cut(x, 0, 6), window=window, room=9)
    ys = [y]
    for i in range(6, 9):
        y, now = run(*cut(x, i, i + 1), now, window=window)
        ys.append(y)
    close((jnp.concatenate(ys, 1), now), (whole, end))
    assert now["k"].shape[1] == cache_size(9, window)


@pytest.mark.parametrize("window", [None, 4])
def test_each_document_of_a_packed_row_is_as_if_alone(window):
    *x, _ = example(11)
    starts = jnp.zeros((B, 11), bool).at[:, 6].set(True)
    y, end = run(*x, None, starts, window=window, room=11, block=4)
    first, _ = run(*cut(x, 0, 6), window=window)
    second, alone = run(*cut(x, 6, 11), window=window, room=11)
    close((y, end), (jnp.concatenate([first, second], 1), alone))
    np.testing.assert_array_equal(end["k"], alone["k"])  # stale slots are zero, not merely unseen


def test_special_cases_have_their_closed_form():
    q, k, v, _ = example(7, g=4)
    close(run(q, k, v, window=1)[0], v)
    mean = jnp.cumsum(v, 1) / jnp.arange(1.0, 8.0)[None, :, None, None]
    close(run(0 * q, k, v)[0], mean)
    close(run(q, k, v, window=7, block=2)[0], run(q, k, v)[0])
    shared = (k[:, :, :1], v[:, :, :1])
    close(run(q, *shared)[0], run(q, *(jnp.repeat(x, 4, axis=2) for x in shared))[0])


def test_a_row_that_outgrows_its_room_turns_nan_and_stays_so():
    *x, _ = example(6)
    cache = {**before(None, 8, t=5), "length": jnp.array([2, 5], jnp.int32)}
    want = np.zeros((B, 6), bool)
    want[1, 3:] = True
    y, end = run(*x, cache, block=4)
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(want[..., None, None], y.shape))
    np.testing.assert_array_equal(end["length"], [8, 11])
    more, end = run(*cut(x, 0, 1), end)
    assert jnp.isnan(more).all() and (end["length"] == jnp.array([9, 12])).all()
    again, end = run(*cut(x, 0, 1), end, jnp.array([[True], [False]]))
    assert jnp.isfinite(again[0]).all() and jnp.isnan(again[1]).all()
    with pytest.raises(ShapeError, match="at most the 8 slots"):
        run(*(jnp.repeat(i, 2, axis=1) for i in x), cache)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_stays_in_its_document_and_crosses_a_cut(window, which):
    *x, _ = example(12)
    starts = jnp.zeros((B, 12), bool).at[0, jnp.array([3, 9])].set(True)
    cache = before(window, 20)
    ill = list(x)
    ill[which] = ill[which].at[0, 4, 1, 1].set(jnp.nan)
    want = np.zeros((B, 12, 1, 1), bool)
    want[0, 4 : 5 if window == 1 else 9] = True
    y, end = run(*ill, cache, starts, window=window, block=6)
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(want, y.shape))
    well, well_end = run(*x, cache, starts, window=window, block=6)
    close((jnp.where(want, 0, y), end), (jnp.where(want, 0, well), well_end))
    now, ys = cache, []
    for low, high in ((0, 7), (7, 8), (8, 12)):
        piece, now = run(*cut(ill, low, high), now, starts[:, low:high], window=window, block=6)
        ys.append(piece)
        middle = run(*cut(ill, 0, high), cache, starts[:, :high], window=window, block=6)
        close(now, middle[1])
    close((jnp.concatenate(ys, 1), now), (y, end))


def test_gradients_beside_a_nan_stay_finite():
    *x, _ = example(8)
    starts = jnp.zeros((B, 8), bool).at[0, 5].set(True)
    ill = x[2].at[0, 2].set(jnp.inf)
    for window in (None, 3):
        f = lambda q, k, w=window: jnp.nansum(attention(q, k, ill, None, starts, w, block=3)[0][:, 5:])  # noqa: E731
        grads = jax.jit(jax.grad(f, (0, 1)))(*x[:2])
        assert all(jnp.isfinite(g).all() and (g != 0).any() for g in grads)


@pytest.mark.parametrize("window", [None, 3])
def test_float64_gradients_match_finite_differences(window, x64):
    *x, starts = example(4)
    assert x[0].dtype == jnp.float64
    check_grads(jax.jit(lambda q, k, v: attention(q, k, v, None, starts, window, block=2)[0]), x, 1, modes=["rev"])


def test_low_precision_keeps_its_dtypes():
    *x, starts = example(9)
    half = [i.astype(jnp.bfloat16) for i in x]
    y, end = run(*half, None, starts, block=4)
    assert y.dtype == end["k"].dtype == end["v"].dtype == jnp.bfloat16
    close(y.astype(jnp.float32), naive(*(i.astype(jnp.float32) for i in half), None, starts)[0], jnp.bfloat16)
    y, new = run(*x, end, starts, window=10)  # wide inputs on a half-precision cache
    assert y.dtype == jnp.float32 and new["v"].dtype == jnp.bfloat16


@pytest.mark.parametrize("window", [None, 4])
def test_the_fused_form_agrees(window):
    *x, starts = example(11, v=K)
    fused = jax.jit(attention_fused, static_argnames=("window", "room"))
    close(fused(*x, starts, window=window, room=13), run(*x, None, starts, window=window, room=13))
    close(fused(*x, window=window), run(*x, window=window))
    with pytest.raises(ShapeError, match="width"):
        attention_fused(x[0], x[1], x[2][..., :2])


def test_positions_count_from_each_documents_first_token():
    starts = jnp.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    length = jnp.array([4, 9], jnp.int32)
    np.testing.assert_array_equal(positions(starts, length, 5), [[4, 5, 0, 1, 0], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(positions(None, length, 2), [[4, 5], [9, 10]])
    np.testing.assert_array_equal(positions(None, None, 3), [[0, 1, 2]])


def temporary(f, *args):
    stats = jax.jit(jax.grad(lambda *x: jnp.sum(f(*x)[0] ** 2), (0, 1, 2))).lower(*args).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes / 2**20


def test_memory_of_the_gradient_is_below_the_dense_and_linear_for_a_window():
    one = [jnp.zeros((1, 1024, 1, 64))] * 3
    two = [jnp.zeros((1, 2048, 1, 64))] * 3
    local = partial(attention, window=64)
    dense = temporary(partial(attention_naive, window=64), *one)
    assert temporary(local, *one) <= 4
    assert max(temporary(local, *one), temporary(attention, *one)) < dense / 2
    assert temporary(local, *two) < 2.2 * temporary(local, *one)


def test_training_keeps_no_cache_and_one_token_copies_none():
    *x, _ = example(11)
    text = jax.jit(lambda *x: attention(*x, room=999)[0]).lower(*x).compile().as_text() or "999"
    assert "999" not in text
    cache = run(*x, room=999)[1]
    text = str(jax.make_jaxpr(attention)(*cut(x, 0, 1), cache))
    assert "1000" not in text and "scan" not in text


def test_bad_shapes_are_named():
    q, k, v, starts = example(4)
    cache = before(None, 8)
    for bad, word in [
        ((q[0], k, v), "q"),
        ((q, jnp.repeat(k, 3, axis=2)[:, :, :3], v), "k"),
        ((q, k, v[:, :3]), "v"),
        ((q, k, v, None, starts[:, :3]), "starts"),
        ((q, k, v, None, None, 0), "window"),
        ((q, k, v, cache, None, 4), "cache k"),
        ((q, k, v, {**cache, "length": jnp.zeros((1,), jnp.int32)}), "cache length"),
    ]:
        with pytest.raises(ShapeError, match=f"^{word}"):
            attention(*bad)
