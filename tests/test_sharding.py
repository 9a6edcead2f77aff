"""Logical axes on meshes of 8 simulated devices: strict rules, sharded weights with the bits of unsharded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerance import close

from jaxlm import sharding
from jaxlm.errors import ConfigError, ShapeError, UnknownAxis
from jaxlm.initializers import FanIn, Layers, Normal, Ones, Uniform
from jaxlm.module import Module, Spec, init

MESHES = ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"]


class Net(Module):
    width: int = 16

    def params(self):
        d, f = self.width, 4 * self.width
        up = Spec((d, f), ("embed", "mlp"), FanIn(), ins=("embed",))
        return {
            "embed": Spec((24, d), ("vocab", "embed"), Normal(0.02)),
            "shifted": Spec((d, f), ("embed", "mlp"), Normal(0.3, mean=1.7), ins=("embed",)),
            "up": Spec((8, d, f), ("layers", "embed", "mlp"), Layers(up.init, up), ins=("embed",)),
            "heads": {"w": Spec((d, 8, 6), ("embed", "heads", "head"), Uniform(-0.3, 0.7), ins=("embed",))},
            "gain": Spec((d,), (None,), Ones, keep=True),
            "bias": Spec((8,), ("slots",), Normal(1.0)),
        }


def forward(params, x, constrain):
    """x: (b, t, d)."""
    h = constrain(x, ("batch", "time", None))
    for w in params["up"]:
        h = h + constrain(jnp.tanh(h @ w), ("batch", "time", "mlp")) @ w.T
    return constrain(jnp.einsum("btd,vd->btv", h, params["embed"]), ("batch", "time", "vocab"))


@pytest.mark.parametrize("text, want", [
    ("", {"data": 1}),
    ("data=8", {"data": 8}),
    ("tensor=2, data=4", {"data": 4, "tensor": 2}),
    ("fsdp=-1,tensor=2", {"fsdp": 4, "tensor": 2}),
    ("expert=2,context=1,data=2", {"data": 2, "context": 1, "expert": 2}),
    ("data=-1", {"data": 8}),
])  # fmt: skip
def test_a_mesh_from_a_string(text, want):
    m = sharding.mesh(text)
    assert dict(m.shape) == want and list(m.shape) == list(want)
    assert set(m.axis_types) == {AxisType.Auto}
    assert {d.id for d in m.devices.flat} == set(range(m.size))  # the first ones


def test_a_mesh_of_given_devices():
    devices = jax.devices()[4:]
    m = sharding.mesh("data=2,tensor=-1", devices)
    assert set(m.devices.flat) == set(devices) and dict(m.shape) == {"data": 2, "tensor": 2}


@pytest.mark.parametrize("text, says", [
    ("rows=2", "'rows=2'.*one of data, fsdp, tensor, context, expert"),
    ("data", "'data'.*AXIS=SIZE"),
    ("data=2,,tensor=2", "''.*AXIS=SIZE"),
    ("data=two", "data=two, expected an integer"),
    ("data=2.0", "data=2.0, expected an integer"),
    ("data=", "data=, expected an integer"),
    ("data=0", "data=0, expected at least 1"),
    ("data=-2", "data=-2, expected at least 1"),
    ("data=2,data=4", "data is given twice"),
    ("data=16", "needs 16 devices, expected at most the 8"),
    ("data=4,tensor=4", "needs 16 devices"),
    ("data=3,tensor=-1", "8 devices cannot be split by 3"),
    ("data=16,tensor=-1", "8 devices cannot be split by 16"),
    ("data=-1,tensor=-1", "data and tensor are -1, expected at most one"),
])  # fmt: skip
def test_a_bad_mesh_string_says_what_was_expected(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        sharding.mesh(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, axes, want", [
    ("data=2,fsdp=2,tensor=2", ("vocab", "embed"), P("tensor", "fsdp")),
    ("data=2,fsdp=2,tensor=2", ("batch", "time", "embed"), P(("fsdp", "data"), None, None)),  # batch comes first
    ("data=2,fsdp=2,tensor=2", ("heads", "mlp"), P("tensor", None)),  # a mesh axis splits one axis only
    ("data=8", ("batch", "embed"), P("data", None)),
    ("fsdp=8", ("batch", "time"), P("fsdp", None)),
    ("context=8", ("batch", "time"), P(None, "context")),
    ("data=8", ("vocab", None), P(None, None)),
    ("data=8,tensor=1", ("layers", "head", "slots", "mlp"), P(None, None, None, None)),
    ("expert=4,tensor=2", ("expert", "kv_heads", "state"), P("expert", "tensor", None)),
])  # fmt: skip
def test_resolve(text, axes, want):
    assert sharding.resolve(axes, (8,) * len(axes), sharding.mesh(text)) == want


def test_resolve_is_strict():
    m = sharding.mesh("data=2,tensor=4")
    with pytest.raises(UnknownAxis, match=r"array: axis 'embd' of \('embd', 'mlp'\), expected one of .*embed.*slots"):
        sharding.resolve(("embd", "mlp"), (8, 8), m)
    with pytest.raises(ShapeError, match=r"blocks/w: axis 'mlp' of shape \(8, 6\) has size 6.* 4 \(tensor=4\)"):
        sharding.resolve(("embed", "mlp"), (8, 6), m, path="blocks/w")
    with pytest.raises(ShapeError, match=r"multiple of 4 \(fsdp=2 x data=2\)"):
        sharding.resolve(("batch",), (6,), sharding.mesh("data=2,fsdp=2"))
    with pytest.raises(ShapeError, match=r"name 2 axes, shape .* has 3"):
        sharding.resolve(("embed", "mlp"), (8, 8, 8), m)
    with pytest.raises(ConfigError, match="expected 'mlp' once"):
        sharding.resolve(("mlp", "mlp"), (8, 8), m)
    with pytest.raises(ConfigError, match="mesh axis 'tensr'"):
        sharding.resolve(("mlp",), (8,), m, (("mlp", "tensr"),))
    assert sharding.resolve(("mlp",), (8,), m, (("mlp", ("data", "tensor")),)) == P(("data", "tensor"))
    for unknown in (UnknownAxis, ShapeError):
        assert issubclass(unknown, ValueError)


def test_a_mesh_of_ones_own_may_have_other_axes():
    m = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    assert sharding.resolve(("mlp", "embed"), (8, 8), m, (("mlp", "x"), ("embed", "fsdp"))) == P("x", None)


def test_shardings_of_weights_and_of_states():
    m = sharding.mesh("data=2,fsdp=2,tensor=2")
    got = sharding.shardings(Net(), m)
    assert got["embed"] == NamedSharding(m, P("tensor", "fsdp"))
    assert got["up"] == NamedSharding(m, P(None, "fsdp", "tensor"))
    assert got["heads"]["w"] == NamedSharding(m, P("fsdp", "tensor", None))
    assert jax.tree.structure(got) == jax.tree.structure(jax.eval_shape(lambda: init(Net(), jax.random.key(0))))
    state = {"s": Spec((8, 4, 3), ("batch", "heads", None), Ones)}
    assert sharding.shardings(state, m) == {"s": NamedSharding(m, P(("fsdp", "data"), "tensor", None))}
    with pytest.raises(ShapeError, match=r"s/w: axis 'heads' of shape \(16, 6\) has size 6"):
        sharding.shardings({"s": {"w": Spec((16, 6), ("embed", "heads"), Ones)}}, sharding.mesh("tensor=4"))
    with pytest.raises(UnknownAxis, match="s/w: axis 'hight'"):
        sharding.shardings({"s": {"w": Spec((2,), ("hight",), Ones)}}, m)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.uint32), tree)


@pytest.mark.parametrize("text", MESHES)
def test_weights_initialised_sharded_have_the_same_bits(text):
    key, m = jax.random.key(7), sharding.mesh(text)
    got = sharding.init_sharded(Net(), key, m)
    jax.tree.map(np.testing.assert_array_equal, bits(got), bits(init(Net(), key)))
    for x, place in zip(jax.tree.leaves(got), jax.tree.leaves(sharding.shardings(Net(), m)), strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim)
        assert x.addressable_shards[0].data.shape == place.shard_shape(x.shape)
    part = got["up"].addressable_shards[0].data.size
    assert part == got["up"].size // {"data=8": 1, "fsdp=8": 8, "data=2,fsdp=2,tensor=2": 4}[text]


@pytest.mark.parametrize("text", MESHES)
def test_a_constrained_model_computes_the_same(text):
    net, m = Net(), sharding.mesh(text)
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    run = jax.jit(jax.value_and_grad(lambda p, x, c: jnp.sin(forward(p, x, c)).sum()), static_argnums=2)
    params = init(net, jax.random.key(0))
    want = run(params, x, sharding.identity)
    got = run(jax.device_put(params, sharding.shardings(net, m)), x, sharding.constrainer(m))
    close(got, want)


def test_constrain_places_and_is_strict():
    m = sharding.mesh("data=2,tensor=4")
    constrain = sharding.constrainer(m)
    x = jnp.ones((4, 6, 8))
    y = jax.jit(lambda x: constrain(x, ("batch", "time", "mlp")))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(m, P("data", None, "tensor")), 3)
    with pytest.raises(UnknownAxis, match="'width'"):
        jax.jit(lambda x: constrain(x, ("batch", "time", "width")))(x)
    with pytest.raises(ShapeError, match="axis 'vocab'"):
        constrain(x, ("batch", "vocab", "embed"))
    assert constrain == sharding.constrainer(sharding.mesh("data=2,tensor=4"))
    assert hash(constrain) == hash(sharding.constrainer(sharding.mesh("data=2,tensor=4")))
    assert sharding.identity(x, ("nothing",)) is x


def test_big_tensors_that_nothing_splits_are_reported():
    found = sharding.big_and_replicated(Net(), sharding.mesh("data=4,tensor=2"), limit=32)
    assert [(r.path, r.bytes) for r in found] == [("gain", 64), ("bias", 32)]
    assert [r.path for r in sharding.big_and_replicated(Net(), sharding.mesh("data=8"), limit=1000)] == [
        "up", "shifted", "heads/w", "embed"]  # fmt: skip
    assert sharding.big_and_replicated(Net(), sharding.mesh("fsdp=8")) == []
    assert sharding.big_and_replicated(Net(), sharding.mesh(""), limit=0) == []
    rules = tuple((logical, None if logical == "vocab" else to) for logical, to in sharding.RULES)
    assert "embed" in [r.path for r in sharding.big_and_replicated(Net(), sharding.mesh("tensor=8"), rules, 1)]
