"""One declaration of the weights, and the folds over it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.initializers import FanIn, Normal, Ones, Zeros
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import LEM
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.models import LM
from jaxlm.module import Module, Spec, abstract, cast, count, decay_mask, init


class Small(Module):
    width: int = 4
    more: bool = False

    def params(self):
        d = self.width
        p = {
            "map": Spec((d, 3), ("embed", "mlp"), FanIn(), ins=("embed",)),
            "part": {"gain": Spec((d,), ("embed",), Ones, keep=True), "bias": Spec((d,), ("embed",), Normal(1.0))},
            "table": Spec((5, d), ("vocab", "embed"), Normal(1.0)),
            "steps": Spec((), (), Zeros, dtype="int32"),
        }
        if self.more:
            p = {"a first": Spec((2,), (None,), Normal(1.0)), **p}
            p["part"] = {"another": Spec((2,), (None,), Normal(1.0)), **p["part"]}
        return p


@pytest.mark.parametrize(
    ("error", "word", "fields"),
    [
        (ShapeError, "names 1 axes", dict(shape=(2, 3), axes=("embed",))),
        (ConfigError, "once", dict(shape=(2, 2), axes=("embed", "embed"))),
        (ShapeError, "negative", dict(shape=(-1,), axes=("embed",))),
        (ConfigError, "'mlp'.* not among", dict(shape=(2,), axes=("embed",), ins=("mlp",))),
    ],
)
def test_a_wrong_spec_says_so(error, word, fields):
    with pytest.raises(error, match=word):
        Spec(init=Zeros, **fields)


def test_a_spec_reads_its_fan_in():
    spec = Spec((2, 3, 5), ("heads", "head", "embed"), FanIn(), ins=("heads", "head"))
    assert (spec.fan_in, spec.size) == (6, 30)
    assert Spec((7,), (None,), Zeros).fan_in == 1
    assert Spec((2, 2), (None, None), Zeros).axes == (None, None)  # None may be said twice


def test_a_new_weight_changes_no_other():
    key = jax.random.key(7)
    old, new = init(Small(), key), init(Small(more=True), key)
    flat = dict(jax.tree_util.tree_leaves_with_path(new))
    for path, value in jax.tree_util.tree_leaves_with_path(old):
        assert (flat.pop(path) == value).all(), path
    assert len(flat) == 2
    assert (init(Small(), key)["map"] == old["map"]).all()
    assert not (init(Small(), jax.random.key(8))["map"] == old["map"]).any()
    assert not (old["part"]["bias"] == old["table"][0]).any(), "two weights drew the same numbers"


def test_blocks_keep_their_weights_at_any_depth():
    key, block = jax.random.key(0), Block(LEM(8), SwiGLU(8))
    two, six = (init(Stack(block, n), key) for n in (2, 6))
    same = jax.tree.map(lambda a, b: bool((a == b[:2]).all()), two, six)
    assert all(jax.tree.leaves(same))
    hidden = six["block0"]["mixer"]["hidden"]
    assert not (hidden[0] == hidden[1]).any(), "two layers drew the same numbers"


def test_the_folds():
    module, key = Small(), jax.random.key(0)
    params = init(module, key)
    assert abstract(module) == jax.eval_shape(lambda: params)
    assert count(module) == sum(a.size for a in jax.tree.leaves(params)) == 12 + 4 + 4 + 20 + 1
    low = cast(module, params, jnp.bfloat16)
    assert {str(a.dtype) for a in (low["map"], low["table"], low["part"]["bias"])} == {"bfloat16"}
    assert low["part"]["gain"].dtype == jnp.float32, "keep stays"
    assert low["steps"].dtype == jnp.int32, "integers stay"
    want = {"map": True, "part": {"gain": False, "bias": False}, "table": False, "steps": False}
    assert decay_mask(module) == want
    stack = decay_mask(Stack(Block(LEM(8), SwiGLU(8)), 2))["block0"]
    assert stack["mixer"]["hidden"] and stack["mlp"]["down"]
    assert not stack["norm"]["gain"] and not stack["mixer"]["bias"]


def test_an_initializer_of_the_wrong_shape_is_named():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        def __call__(self, key, spec):
            return jnp.zeros((3,))

    class Wrong(Module):
        def params(self):
            return {"w": {"x": Spec((2,), (None,), Odd())}}

    with pytest.raises(ShapeError, match=r"w/x: .*\(3,\), expected \(2,\)"):
        init(Wrong(), jax.random.key(0))


def test_modules_are_values():
    make = lambda width=8: LM(11, width, Stack(Block(LEM(width), SwiGLU(width)), 2))  # noqa: E731
    assert make() == make() and hash(make()) == hash(make()) and make() != make(16)
    assert len({make(), make(), make(16)}) == 2
    assert "LEM(width=8" in repr(make())
    assert dataclasses.replace(make(), tied=False) != make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().width = 3  # type: ignore[misc]
    assert all(hash(s) is not None for s in jax.tree.leaves(make().params(), is_leaf=lambda s: isinstance(s, Spec)))


def test_a_wrong_hyperparameter_names_its_field():
    with pytest.raises(ConfigError, match=r"LEM.dt = 2.0: expected a time step in \(0, 1\]"):
        LEM(8, dt=2.0)
    with pytest.raises(ConfigError, match=r"Stack.depth = 3: expected a multiple"):
        Stack((LEM(8), LEM(8)), 3)
    with pytest.raises(ConfigError, match=r"Stack\.remat = 'some': expected one of none"):
        Stack(LEM(8), 2, "some")
    with pytest.raises(ConfigError, match=r"LM\.body"):
        LM(11, 16, LEM(8))
    with pytest.raises(ConfigError, match=r"Block\.mlp"):
        Block(LEM(8), SwiGLU(16))


def test_a_mixer_derives_the_form_that_it_lacks():
    class Neither(Mixer):
        width: int = 4

        def state(self, batch, room=0):
            return {"s": leaf(batch, (4,), (None,))}

    x = jnp.zeros((2, 3, 4))
    with pytest.raises(ConfigError, match="Neither defines neither step nor apply"):
        Neither().apply({}, x)
    with pytest.raises(ConfigError, match="Neither defines neither step nor apply"):
        Neither().step({}, x[:, 0], {"s": x[:, 0]})
    with pytest.raises(ConfigError, match="declares no state"):
        Mixer().state(1)
    with pytest.raises(ShapeError, match=r"LEM: x has shape \(2, 3, 5\), expected \(b, t, 4\)"):
        LEM(4).apply(init(LEM(4), jax.random.key(0)), jnp.zeros((2, 3, 5)))
    with pytest.raises(ShapeError, match=r"starts has shape \(2, 2\) of bool, expected \(2, 3\) of bool"):
        LEM(4).apply(init(LEM(4), jax.random.key(0)), x, starts=jnp.zeros((2, 2), bool))
