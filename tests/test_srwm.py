"""SRWM against the paper's update in numpy, its laws, and the memory of its gradient (Irie et al. 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import agrees, apply, begin, example, half, noisy, single, wide_numpy
from tolerance import close

from jaxlm.blocks import Block
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.srwm import BLOCKS, SRWM, FakeSR
from jaxlm.module import ConfigError, abstract, count, init


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def cell(input_map):
    """Equations 5 to 8 for each head, with W as the paper has it: (3k + 4, k), acting on columns."""

    def one(p, x, s):
        heads, k, _ = p["y"].shape
        ys, new = [], {name: [] for name in BLOCKS}
        for h, x_h in enumerate(x.reshape(heads, k)):
            w = np.concatenate([(p[name][h] + s[name][h]).T for name in BLOCKS])
            read = softmax(x_h) if input_map == "softmax" else x_h
            out = w @ read
            y, q, key, beta = out[:k], softmax(out[k : 2 * k]), softmax(out[2 * k : 3 * k]), out[3 * k :]
            rate = np.repeat(1 / (1 + np.exp(-beta)), [k, k, k, 4] if len(beta) == 4 else [3 * k + 1])
            w = w + rate[:, None] * np.outer(w @ q - w @ key, key)
            ys.append(y)
            for name, rows in zip(BLOCKS, np.split(w, [k, 2 * k, 3 * k]), strict=True):
                new[name].append(rows.T - p[name][h])
        out = np.concatenate(ys) @ p["out"].reshape(heads * k, -1)
        return out, {name: np.stack(new[name]) for name in BLOCKS}

    return one


def static(params, x):
    """W_0 alone, as a linear map."""
    p, x = wide_numpy(params), wide_numpy(x)
    e = np.exp(x.reshape(*x.shape[:2], *p["y"].shape[:2]))
    return single(np.einsum("bthk,hkv,hvd->btd", e / e.sum(-1, keepdims=True), p["y"], p["out"]))


@pytest.mark.parametrize(("input_map", "rates"), [("softmax", 4), ("identity", 4), ("softmax", 1)])
def test_is_the_papers_update(input_map, rates):
    """With a rate for each block (eqs. 5-8), and with a single one (the basic variant)."""
    agrees(SRWM(12, heads=3, input_map=input_map, query_scale=1.0, rates=rates), cell(input_map))


def test_bfloat16_stays_near():
    half(SRWM(32), cell("softmax"))


def test_counts_and_size_of_the_state():
    """3 k^2 + 4 k per head, 832 at k = 16; 13.3k a layer at 16 heads; and the bias-free output map."""
    mixer = SRWM(256, heads=16)
    specs = jax.tree.leaves(mixer.state(1), is_leaf=lambda s: hasattr(s, "shape"))
    assert sum(s.size for s in specs) == 16 * 832 == 13312
    assert count(mixer) == 13312 + 256 * 256
    assert SRWM(16).parts == 2 and SRWM(256).parts == 16


def test_starts_as_published():
    mixer = SRWM(256, query_scale=0.01, rate_bias=-1.0)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    for name, std in (("y", 0.25), ("q", 0.0025), ("k", 0.25), ("beta", 0.25)):
        assert abs(params[name].std() / std - 1) < 0.05
    assert abs(params["beta"].mean() + 1) < 0.05


def test_rates_of_zero_are_a_static_linear_map():
    mixer = SRWM(12, heads=3)
    params, x, _, _ = example(mixer)
    params["beta"] = np.full_like(params["beta"], -1e6)
    y, state = apply(mixer, params, x)
    jax.tree.map(lambda s: np.testing.assert_array_equal(s, 0), state)
    close(y, static(params, x))
    close(apply(mixer, params, x[:, ::-1])[0][:, ::-1], y)


def test_a_query_that_is_its_key_changes_nothing():
    mixer = SRWM(12, heads=3)
    params, x, _, _ = example(mixer)
    params["q"] = params["k"]
    jax.tree.map(lambda s: np.testing.assert_array_equal(s, 0), apply(mixer, params, x)[1])


def test_constant_rows_stay_and_shifts_of_query_and_key_are_unseen():
    mixer = SRWM(12, heads=3, query_scale=1.0)
    params, x, _, _ = example(mixer)
    row = {n: np.broadcast_to(params[n][:, :1], params[n].shape) for n in BLOCKS}
    state = apply(mixer, {**params, **row}, x)[1]
    for name in BLOCKS:
        close(np.asarray(row[name]) + np.asarray(state[name]), np.stack([row[name]] * 3))
    moved = {**params, "q": params["q"] + 3.0, "k": params["k"] - 2.0}
    close(apply(mixer, moved, x), apply(mixer, params, x))


def test_rank_grows_by_one_a_token_inside_the_span_of_the_keys():
    mixer = SRWM(8, heads=1, query_scale=1.0)
    params = jax.tree.map(lambda p: 3 * np.asarray(p), noisy(mixer))
    x = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)
    step, state, keys = jax.jit(mixer.step), begin(mixer, params, 1), []
    for n in range(3):
        keys.append(softmax(softmax(x[0, n]) @ (params["k"] + np.asarray(state["k"][0]))[0]))
        state = step(params, x[:, n], state)[1]
        basis = np.linalg.qr(np.stack(keys, axis=1).astype(np.float64))[0]
        for name in BLOCKS:
            shift = np.asarray(state[name][0, 0])
            close(np.float32(basis @ (basis.T @ shift)), shift)


def test_at_rate_one_the_key_reads_the_querys_value():
    mixer = SRWM(8, heads=1, query_scale=1.0)
    params, x, _, _ = example(mixer)
    # Rows that do not depend on the input give a one-hot key at place 5 and rates of exactly 1.
    params["k"] = np.zeros_like(params["k"])
    params["k"][:, :, 5] = 1e4
    params["beta"] = np.full_like(params["beta"], 1e4)
    state = apply(mixer, params, x[:, :1])[1]
    params = wide_numpy(params)
    query = np.stack([softmax(softmax(x[b, 0]) @ params["q"][0]) for b in range(3)])
    for name in ("y", "q"):
        close(np.float32(params[name][:, 5] + state[name][:, 0, 5]), np.float32(query @ params[name][0]))


def test_the_output_is_read_before_the_update_and_a_start_is_a_zero_shift():
    mixer = SRWM(12, heads=3)
    params, x, state, _ = example(mixer)
    fixed = static(params, x)
    close(apply(mixer, params, x)[0][:, 0], fixed[:, 0])
    starts = np.broadcast_to(np.arange(7) == 4, (3, 7))
    y, last = apply(mixer, params, x, state, starts)
    close(y[:, 4], fixed[:, 4])
    close(last, apply(mixer, params, x[:, 4:])[1])


def test_heads_do_not_meet_before_the_output():
    mixer = SRWM(12, heads=3)
    params, x, _, _ = example(mixer)
    other = apply(mixer, params, x + 3 * (np.arange(12) == 0).astype(np.float32))[1]
    for name, shift in apply(mixer, params, x)[1].items():
        same = (np.asarray(shift) == np.asarray(other[name])).all((0, 2, 3))
        assert same.tolist() == [False, True, True]


def naive(mixer, params, x, state):
    """Plain autodiff: a scan that keeps every matrix."""

    def step(s, x):
        y, s = mixer.step(params, x, s)
        return s, y

    state, ys = jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(ys, 0, 1), state


def test_gradients_are_those_of_the_naive_scan_at_four_times_the_initial_scale_too():
    mixer = SRWM(16, heads=2, query_scale=1.0, every=8)
    params, x, state, _ = example(mixer, t=40)

    def gradient(run):
        def loss(params, x, state):
            y, last = run(params, x, state)
            return jnp.square(y).mean() + sum(jnp.square(s).mean() for s in last.values())

        return jax.jit(jax.grad(loss, (0, 1, 2)))

    ours, plain = gradient(mixer.apply), gradient(lambda *a: naive(mixer, *a))
    for scale in (1.0, 4.0):
        scaled = {n: scale * np.asarray(p) if n in BLOCKS else p for n, p in params.items()}
        close(ours(scaled, x, state), plain(scaled, x, state))


def test_a_detached_state_leaves_its_gradient_to_the_learned_matrix():
    mixer = SRWM(12, heads=3)
    params, x, _, _ = example(mixer)

    fixed = apply(mixer, params, x[:, :3])[1]

    @jax.jit
    @jax.grad
    def cut(params):
        state = jax.lax.stop_gradient(mixer.apply(params, x[:, :3])[1])
        return jnp.square(mixer.apply(params, x[:, 3:], state)[0]).sum()

    @jax.jit
    @jax.grad
    def from_fixed(params):
        return jnp.square(mixer.apply(params, x[:, 3:], fixed)[0]).sum()

    grads = cut(params)
    close(grads, from_fixed(params))
    assert all(np.abs(g).max() > 0 for g in grads.values())


def test_memory_of_the_gradient_is_not_that_of_every_matrix():
    """64 heads x batch, k = 16, T = 1024: every matrix kept would be 208 MiB."""
    mixer = SRWM(256, heads=16)
    params, x = abstract(mixer), jax.ShapeDtypeStruct((4, 1024, 256), jnp.float32)
    grad = jax.jit(jax.grad(lambda p, x: mixer.apply(p, x)[0].sum(), (0, 1)))
    stats = grad.lower(params, x).compile().memory_analysis()
    assert stats is not None
    assert stats.temp_size_in_bytes < 40 * 2**20 < 1024 * 64 * 832 * 4 / 4


def test_subtracting_what_was_added_gives_back_the_first_matrix():
    """The authors' backward walks back so: from the last W, less each token's increment, to W_0."""
    mixer = SRWM(8, heads=1, query_scale=1.0)
    params, x, _, _ = example(mixer, t=64)
    w0 = np.concatenate([params[name][0] for name in BLOCKS], axis=-1)
    last = apply(mixer, params, x)[1]
    w, increments = w0[None] + np.zeros((3, 1, 1), np.float32), []
    for n in range(64):
        out = np.einsum("bk,bkn->bn", np.stack([softmax(row) for row in x[:, n]]), w)
        query, key = (np.stack([softmax(row) for row in out[:, i : i + 8]]) for i in (8, 16))
        rate = np.repeat(1 / (1 + np.exp(-out[:, 24:])), [8, 8, 8, 4], axis=1)
        increments.append(key[..., None] * (rate * np.einsum("bk,bkn->bn", query - key, w))[:, None])
        w = w + increments[-1]
    ours = w0 + np.concatenate([np.asarray(last[name][:, 0]) for name in BLOCKS], axis=-1)
    close(ours, w)
    for increment in increments[::-1]:
        ours = ours - increment
    close(ours, np.stack([w0] * 3))


def test_carried_and_reset_segments():
    """Carried, segments are one sequence; reset, each is read by W_0 alone at its first token."""
    mixer = SRWM(12, heads=3, query_scale=1.0)
    params, x, _, _ = example(mixer, t=9)
    state, carried, reset = None, [], []
    for segment in np.split(x, 3, axis=1):
        y, state = apply(mixer, params, segment, state)
        carried.append(y)
        reset.append(apply(mixer, params, segment)[0])
    close(np.concatenate(carried, axis=1), apply(mixer, params, x)[0])
    starts = np.broadcast_to(np.arange(9) % 3 == 0, (3, 9))
    reset = np.concatenate(reset, axis=1)
    close(apply(mixer, params, x, None, starts)[0], reset)
    close(reset[:, ::3], static(params, x)[:, ::3])
    assert np.abs(reset[:, 3] - carried[1][:, 0]).max() > 1e-3


def test_the_fake_is_the_output_block_alone():
    real = SRWM(12, heads=3)
    fake = FakeSR(real)
    params, x, state, starts = example(fake)
    assert set(params) == {"y", "out"} and state == {}
    assert count(fake) == 3 * 4 * 4 + 12 * 12
    y, last = apply(fake, params, x, state, starts)
    close(y, static(params, x))
    assert last == {}
    close(np.stack([jax.jit(fake.step)(params, x[:, n], {})[0] for n in range(2)], axis=1), y[:, :2])
    close(apply(real, noisy(real) | params, x[:, :1])[0], y[:, :1])  # before any update they are one


def test_a_block_with_the_norm_on_its_skip_path():
    """LN(x) + SRWM(x), then h + MLP(LN(h)): the mixer reads x as it is (the authors' few-shot code)."""
    mixer, mlp, norm = SRWM(12, heads=3, input_map="identity"), MLP(12, 24, "relu"), LayerNorm(12)
    block = Block(mixer, mlp, norm, residual="ln_skip")
    params, x, state, starts = example(block)
    y, last = apply(mixer, params["mixer"], x, state, starts)

    @jax.jit
    def rest(params, x, y):
        h = norm.apply(params["norm"], x) + y
        return h + mlp.apply(params["mlp"], norm.apply(params["mlp_norm"], h))

    want = rest(params, x, y)
    close(apply(block, params, x, state, starts), (want, last))
    plain = apply(Block(mixer, mlp, norm), params, x, state, starts)[0]
    assert np.abs(plain - want).max() > 0.1
    with pytest.raises(ConfigError, match=r"Block\.residual"):
        Block(mixer, residual="none")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 5),
        ("heads", 0),
        ("input_map", "relu"),
        ("query_scale", 0.0),
        ("rates", 2),
        ("every", 0),
        ("sweeps", 0),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ConfigError, match="width" if value == 5 else field):
        SRWM(16, **{field: value})  # pyright: ignore[reportArgumentType]
