"""A model is a value: frozen hyperparameters, weights declared once, everything else a fold over that declaration.

    class Linear(Module):                                   frozen dataclass: hashable, equal by value, printable
        def params(self): return {"w": Spec(...)}           the one declaration

init(module, key)       values; a leaf's key comes from its path, so a new weight never changes its neighbours
abstract(module)        shapes and dtypes
count(module)           how many numbers
cast(module, p, dtype)  compute dtype, leaves marked `keep` stay
decay_mask(module)      which leaves weight decay may touch
rebuild(module, change) the same value with some of its parts changed
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.initializers import Constant, Initializer
from jaxlm.typing import Array, Params, Tree

__all__ = [
    "ConfigError",
    "Module",
    "ShapeError",
    "Spec",
    "abstract",
    "cast",
    "count",
    "decay_mask",
    "init",
    "map_specs",
    "rebuild",
]


@dataclasses.dataclass(frozen=True)
class Spec:
    """One weight, or one leaf of a state: everything that is to be known about it before it has a value.

    shape   sizes
    axes    a logical name per axis, distinct within one Spec; None = never split
    init    a frozen initializer, see `jaxlm.initializers`
    dtype   of the stored value
    ins     names of the contracted axes: fan-in, muP factors and Muon's matrix view are read from it
    keep    stays in its own dtype under bfloat16 compute (norm gains, decay parameters, gates)
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: str = "float32"
    ins: tuple[str, ...] = ()
    keep: bool = False

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ShapeError(
                f"Spec.axes {self.axes} names {len(self.axes)} axes, shape {self.shape} has {len(self.shape)}"
            )
        named = [a for a in self.axes if a is not None]
        if len(set(named)) != len(named):
            raise ConfigError(
                f"Spec.axes {self.axes}: each name may occur once (a square map uses e.g. embed and state)"
            )
        if any(size < 0 for size in self.shape):
            raise ShapeError(f"Spec.shape {self.shape}: sizes must not be negative")
        missing = [a for a in self.ins if a not in self.axes]
        if missing:
            raise ConfigError(f"Spec.ins {self.ins}: {missing} not among axes {self.axes}")

    @property
    def fan_in(self) -> int:
        """Product of the contracted sizes; 1 where nothing is contracted."""
        return math.prod(self.shape[self.axes.index(a)] for a in self.ins)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass_transform(frozen_default=True)
class Module:
    """Base of all models and layers. Subclasses become frozen dataclasses by being written; no decorator is needed."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)

    def params(self) -> Tree:
        """Nested dict of Spec: every weight, once."""
        return {}

    def check(self, ok: bool, field: str, expected: str) -> None:
        """Raise a ConfigError that names this class, the field, its value and what was expected."""
        if not ok:
            raise ConfigError(f"{type(self).__name__}.{field} = {getattr(self, field)!r}: expected {expected}")


def is_spec(x: Any) -> bool:
    return isinstance(x, Spec)


def map_specs(f: Callable[..., Any], specs: Tree, *rest: Tree) -> Tree:
    """jax.tree.map over a tree of Specs."""
    return jax.tree.map(f, specs, *rest, is_leaf=is_spec)


def path_name(path: tuple) -> str:
    """'blocks/mixer/w' of a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def materialize(specs: Tree, key: Array) -> Tree:
    """Values of a tree of Specs (weights or states): each leaf's key is folded from the text of its path."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    names, keys = [path_name(path) for path, _ in leaves], [key] * len(leaves)
    drawn = [n for n, (_, spec) in enumerate(leaves) if not isinstance(spec.init, Constant)]
    if drawn:  # all folds at once compile much faster than one by one; a constant needs none
        folds = np.array([zlib.crc32(names[n].encode()) for n in drawn], np.uint32)
        for n, own in zip(drawn, jax.vmap(jax.random.fold_in, (None, 0))(key, folds), strict=True):
            keys[n] = own

    def leaf(name: str, spec: Spec, own: Array) -> Array:
        value = spec.init(own, spec)
        if value.shape != spec.shape:
            raise ShapeError(f"{name}: {spec.init} gave shape {value.shape}, expected {spec.shape}")
        return value.astype(spec.dtype)

    return jax.tree.unflatten(tree, [leaf(n, s, k) for n, (_, s), k in zip(names, leaves, keys, strict=True)])


def init(module: Module, key: Array) -> Params:
    """Weights of a module.

    key     a PRNG key; the same key gives the same weights on any mesh
    """
    return _init(module, key)


@partial(jax.jit, static_argnums=0)
def _init(module: Module, key: Array) -> Params:
    # One compiled program: op by op, XLA rounds between constants that it joins here, and a sharded init would differ.
    return materialize(module.params(), key)


def rebuild(module: Any, change: Callable[[Any], Any]) -> Any:
    """The same value with change(part) in place of every module in it, the innermost first.

    rebuild(model, lambda m: dataclasses.replace(m, window=64) if isinstance(m, Attention) else m)
    """
    if isinstance(module, tuple):
        return tuple(rebuild(m, change) for m in module)
    if not isinstance(module, Module):
        return module
    fields = [f.name for f in dataclasses.fields(module) if f.init]  # type: ignore[arg-type]
    parts = {f: rebuild(getattr(module, f), change) for f in fields}
    return change(type(module)(**parts))


def abstract(module: Module) -> Tree:
    """The weights' shapes and dtypes, as jax.ShapeDtypeStruct: nothing is computed."""
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), module.params())


def count(module: Module) -> int:
    """Number of weights."""
    return sum(s.size for s in jax.tree.leaves(module.params(), is_leaf=is_spec))


def cast(module: Module, params: Params, dtype: Any) -> Params:
    """Weights in a compute dtype; leaves whose Spec says `keep`, and those that are not floating, stay as they are."""

    def leaf(spec: Spec, value: Array) -> Array:
        return value if spec.keep or not jnp.issubdtype(value.dtype, jnp.floating) else value.astype(dtype)

    return map_specs(leaf, module.params(), params)


def decay_mask(module: Module) -> Tree:
    """True where weight decay belongs: matrices that contract something; not gains, biases, gates, embeddings."""
    return map_specs(lambda s: bool(s.ins) and not s.keep and len(s.shape) - ("layers" in s.axes) >= 2, module.params())
