"""Named activations: captured and replaced values against a model computed by hand, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tolerance import close
from walk import walk

from jaxlm import taps
from jaxlm.errors import ConfigError, ShapeError

LAYERS, TIME, WIDTH = 3, 3, 4


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 2)
    w, u = jax.random.normal(keys[0], (LAYERS, WIDTH, WIDTH)), jax.random.normal(keys[1], (WIDTH, WIDTH))
    return {"w": w / 2, "u": u / 2}


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (TIME, WIDTH))


def model(params, x, policy=None):
    """Layers scanned with remat; inside each a scan over time; jit, vmap and a custom derivative on the way."""

    @jax.jit
    def read(h):
        return taps.name(jnp.tanh(h @ params["u"]), "read")

    def layer(h, w):
        def step(c, row):
            c = taps.name(jnp.tanh(c + row @ w), "cell")
            return c, jax.nn.silu(c)

        _, out = lax.scan(step, jnp.zeros(WIDTH), h)
        h = taps.name(h + jax.vmap(jax.nn.relu)(out), "resid")
        return h, read(h).sum()

    h = taps.name(x * 2, "resid")
    h, sums = lax.scan(jax.checkpoint(layer, policy=policy), h, params["w"])
    taps.name(sums.max(), "aux.top")  # dropped on purpose: losses are read this way
    return {"h": taps.name(h, "resid"), "sums": sums}


def by_hand(params, x, cell=lambda c, i, t: c, resid=lambda h, site, i: h):
    """The same model as Python loops, with a change at every site."""
    h = resid(x * 2, 0, None)
    cells, resids, reads, sums = [], [], [], []
    for i in range(LAYERS):
        c, outs, row = jnp.zeros(WIDTH), [], []
        for t in range(TIME):
            c = cell(jnp.tanh(c + h[t] @ params["w"][i]), i, t)
            row.append(c)
            outs.append(c * (1 / (1 + jnp.exp(-c))))
        h = resid(h + jnp.maximum(jnp.stack(outs), 0), 1, i)
        cells.append(jnp.stack(row))
        resids.append(h)
        reads.append(jnp.tanh(h @ params["u"]))
        sums.append(reads[-1].sum())
    out = {"h": resid(h, 2, None), "sums": jnp.stack(sums)}
    seen = {
        "cell": (jnp.stack(cells),),
        "resid": (x * 2, jnp.stack(resids), h),
        "read": (jnp.stack(reads),),
        "aux.top": (out["sums"].max(),),
    }
    return out, seen


NAMES = ("cell", "resid", "read", "aux.top")


def test_capture_gives_every_site_in_program_order(params, x):
    close(taps.capture(model, NAMES)(params, x), by_hand(params, x))


def test_capture_under_jit_is_capture(params, x):
    close(jax.jit(taps.capture(model, NAMES))(params, x), by_hand(params, x))
    out, seen = taps.capture(jax.jit(model), ["read"])(params, x)
    close(out, model(params, x))
    assert list(seen) == ["read"]


def test_a_capture_can_be_vmapped(params, x):
    rows = jnp.stack([x, x + 1, -x])
    got = jax.vmap(taps.capture(model, NAMES), (None, 0))(params, rows)
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *[by_hand(params, r) for r in rows]))


def test_sites_inside_a_vmap_keep_the_batch_axis(params, x):
    rows = jnp.stack([x, -x])
    _, seen = taps.capture(jax.vmap(model, (None, 0)), ["resid"])(params, rows)
    want = [by_hand(params, r)[1]["resid"] for r in rows]
    axes = (0, 1, 0)  # behind the layers, where there are any
    close(seen["resid"], tuple(jnp.stack(site, axis) for site, axis in zip(zip(*want, strict=True), axes, strict=True)))


def test_names_lists_sites_without_computing(params, x):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, x))
    found = taps.names(model, *shapes)
    assert {k: [s.shape for s in v] for k, v in found.items()} == {
        "resid": [(TIME, WIDTH), (LAYERS, TIME, WIDTH), (TIME, WIDTH)],
        "cell": [(LAYERS, TIME, WIDTH)],
        "read": [(LAYERS, TIME, WIDTH)],
        "aux.top": [()],
    }
    assert found["cell"][0] == taps.Site((LAYERS, TIME, WIDTH), "float32")


def loss_of(seen):
    return sum((jnp.sin(v) * (i + 1)).sum() for i, v in enumerate(jax.tree.leaves(seen)))


def slope(f):
    """The gradient in every argument, compiled once."""
    return jax.jit(lambda *args: jax.grad(lambda args: f(*args))(args))


def test_gradients_flow_through_captured_values(params, x):
    got = slope(lambda p, x: loss_of(taps.capture(model, NAMES)(p, x)))(params, x)
    close(got, slope(lambda p, x: loss_of(by_hand(p, x)))(params, x))


def test_gradients_match_finite_differences(x64):
    p = {"w": jax.random.normal(jax.random.key(2), (LAYERS, WIDTH, WIDTH)) / 2, "u": jnp.eye(WIDTH)}
    x, d = jax.random.normal(jax.random.key(3), (2, TIME, WIDTH))
    changed = taps.replace(model, {"resid": lambda v, at: v * 1.5})
    for f in (lambda x: loss_of(taps.capture(model, NAMES)(p, x)), lambda x: loss_of(changed(p, x))):
        f = jax.jit(f)
        e = 1e-4
        want = (8 * (f(x + e * d) - f(x - e * d)) - (f(x + 2 * e * d) - f(x - 2 * e * d))) / (12 * e)
        close(jnp.vdot(slope(f)(x)[0], d), want, "float64")


def test_replace_tells_where_it_is(params, x):
    layer, time = 1, 2

    def scale(v, at):
        return jnp.where((at[0] == layer) & (at[1] == time), 3 * v, v)

    got = taps.replace(model, {"cell": scale})(params, x)
    want, _ = by_hand(params, x, cell=lambda c, i, t: 3 * c if (i, t) == (layer, time) else c)
    close(got, want)
    with pytest.raises(AssertionError):  # one cell matters
        close(got, model(params, x))


def test_replace_changes_every_site_of_a_name(params, x):
    depths = []

    def change(v, at):
        depths.append(len(at))
        return v + (1.0 if not at else at[0].astype(v.dtype))

    got = jax.jit(taps.replace(model, {"resid": change}))(params, x)
    want, _ = by_hand(params, x, resid=lambda h, site, i: h + (1.0 if i is None else float(i)))
    close(got, want)
    assert set(depths) == {0, 1}


def test_at_is_the_place_in_the_stack_in_a_reversed_scan(x):
    def f(x):
        return lax.scan(lambda c, r: (c + r.sum(), taps.name(r * c, "r")), 0.0, x, reverse=True)

    _, seen = taps.capture(f, ["r"])(x)
    _, zeroed = taps.replace(f, {"r": lambda v, at: jnp.where(at[0] == 1, 0 * v, v)})(x)
    close(zeroed, seen["r"][0].at[1].set(0))
    close(seen["r"][0], f(x)[1])


def test_the_gradient_of_an_activation(params, x):
    def loss(out):
        return (out["sums"] ** 2).sum() + out["h"].sum()

    zeros = jnp.zeros((LAYERS, TIME, WIDTH))
    got = slope(lambda d: loss(taps.replace(model, {"cell": lambda v, at: v + d[at]})(params, x)))(zeros)
    want = slope(lambda d: loss(by_hand(params, x, cell=lambda c, i, t: c + d[i, t])[0]))(zeros)
    close(got, want)


def test_gradients_flow_through_replaced_values(params, x):
    f = taps.replace(model, {"resid": lambda v, at: jnp.sin(v)})
    got = slope(lambda p, x: loss_of(f(p, x)))(params, x)
    want = slope(lambda p, x: loss_of(by_hand(p, x, resid=lambda h, site, i: jnp.sin(h))[0]))(params, x)
    close(got, want)


def test_remat_is_kept_with_its_policy(params, x):
    policy = jax.checkpoint_policies.save_only_these_names("resid")

    def f(p, x):
        return model(p, x, policy)

    for g in (lambda p, x: taps.capture(f, ["cell"])(p, x), taps.replace(f, {"resid": lambda v, at: v})):
        jaxpr = jax.make_jaxpr(g)(params, x)
        found = [e for e in walk(jaxpr) if e.primitive.name == "remat2" or e.primitive.name == "checkpoint"]
        assert [e.params["policy"] for e in found] == [policy]
        assert found[0].params["prevent_cse"] is True
        assert "resid" in {e.params["name"] for e in walk(jaxpr) if e.primitive.name == "name"}


def test_what_holds_no_wanted_name_is_left_alone(params, x):
    def f(params, x):
        inner = jax.jit(lambda h: taps.name(jax.nn.relu(h), "inner"))
        return taps.name(lax.scan(lambda c, w: (inner(c @ w), None), x, params["w"])[0], "end")

    jaxpr, plain = (jax.make_jaxpr(g)(params, x) for g in (taps.capture(f, ["end"]), f))
    assert str(jaxpr.jaxpr.eqns[0]) == str(plain.jaxpr.eqns[0])
    assert sum(e.primitive.name == "custom_jvp_call" for e in walk(jaxpr)) == 1


@jax.custom_vjp
def own_vjp(x):
    return taps.name(jnp.sin(x), "hidden")


own_vjp.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (7 * g,))


@jax.custom_jvp
def own_jvp(x):
    return taps.name(jnp.sin(x), "hidden")


own_jvp.defjvp(lambda p, t: (own_jvp(p[0]), 7 * t[0]))


def looped(x):
    return lax.while_loop(lambda c: c.sum() < 9, lambda c: taps.name(c * c + 1, "hidden"), x)


@pytest.mark.parametrize("hide, what", [(own_vjp, "custom_vjp_call"), (own_jvp, "custom_jvp_call"), (looped, "while")])
def test_a_hidden_name_is_refused_and_others_beside_it_are_not(x, hide, what):
    def f(x):
        return taps.name(hide(taps.name(x * 2, "open")), "end")

    for make in (lambda: taps.capture(f, ["hidden"]), lambda: taps.replace(f, {"hidden": lambda v, at: v})):
        with pytest.raises(ConfigError, match=f"'hidden'.*{what}"):
            make()(x)
    assert taps.names(f, x)["hidden"][0].inside == what
    out, seen = taps.capture(f, ["open", "end"])(x)
    close((out, seen["open"][0], seen["end"][0]), (f(x), x * 2, f(x)))


def test_custom_derivatives_beside_a_tap_keep_their_rule(x):
    for own in (own_vjp, own_jvp):

        def f(x, own=own):
            return own(taps.name(x, "in")).sum()

        close(jax.grad(lambda x, f=f: taps.capture(f, ["in"])(x)[0])(x), jnp.full_like(x, 7.0))
        close(jax.grad(taps.replace(f, {"in": lambda v, at: 2 * v}))(x), jnp.full_like(x, 14.0))


def test_an_unknown_name_lists_the_known_ones(params, x):
    for f in (taps.capture(model, ["resid", "rseid"]), taps.replace(model, {"rseid": lambda v, at: v})):
        with pytest.raises(ConfigError, match=r"'rseid'.*'aux.top', 'cell', 'read', 'resid'"):
            f(params, x)
    with pytest.raises(ConfigError, match="sequence of names"):
        taps.capture(model, "resid")


@pytest.mark.parametrize("bad", [lambda v, at: v[..., :1], lambda v, at: v.astype(jnp.bfloat16)])
def test_replace_keeps_shape_and_dtype(params, x, bad):
    with pytest.raises(ShapeError, match=r"'resid'.*expected float32\[3, 4\]"):
        taps.replace(model, {"resid": bad})(params, x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cond_runs_one_branch_and_gives_zeros_for_the_other(x, sign):
    def f(x, sign):
        yes, no = (lambda x: taps.name(x * 2, "side")), (lambda x: taps.name(taps.name(x, "side") - 1, "side"))
        return lax.cond(sign > 0, yes, no, x)

    out, seen = taps.capture(f, ["side"])(x, sign)
    close(out, x * 2 if sign > 0 else x - 1)
    sites = (x, x - 1, x * 0) if sign < 0 else (x * 0, x * 0, x * 2)  # branch 0 is the false one
    close(seen["side"], sites)
    close(taps.replace(f, {"side": lambda v, at: v + 1})(x, sign), x * 2 + 1 if sign > 0 else x + 1)
    got = jax.grad(lambda x: taps.capture(f, ["side"])(x, sign)[1]["side"][-1].sum())(x)
    close(got, jnp.full_like(x, 2.0 if sign > 0 else 0.0))


def test_trees_keys_constants_and_keywords_pass_through(x):
    def f(tree, key, *, scale):
        noise = jax.random.normal(key, x.shape)  # x: a constant of the trace
        named = taps.name({"a": tree["a"] * scale, "b": (tree["b"], None)}, "pair")
        taps.name(1.0, "one")
        return {"out": [named["a"] + noise * x, named["b"]], "n": 3, "key": key}

    tree = {"a": x, "b": np.arange(3)}
    key = jax.random.key(5)
    out, seen = taps.capture(f, ["pair", "one"])(tree, key, scale=2.0)
    close(out["out"][0], x * 2 + jax.random.normal(key, x.shape) * x)
    close(seen, {"pair": (x * 2, jnp.arange(3)), "one": (jnp.float32(1),)})
    assert int(out["n"]) == 3 and out["out"][1][1] is None and (out["key"] == key).all()


def test_capturing_nothing_changes_nothing(params, x):
    out, seen = taps.capture(model, [])(params, x)
    close(out, model(params, x))
    assert seen == {}


def test_shardings_of_an_inner_jit_are_kept(x):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    f = jax.jit(lambda x: taps.name(x + 1, "a"), out_shardings=rows)
    out, seen = taps.capture(f, ["a"])(x)
    assert out.sharding.is_equivalent_to(rows, 2)
    close(seen["a"][0], x + 1)
