"""Where arrays live: logical axis names become mesh axes by a list of rules.

    m = mesh("data=4,tensor=2")
    params = init_sharded(model, key, m)
    constrain = constrainer(m)                    constrain(x, ("batch", "time", "embed")) inside a model

Flax resolves the rules; what it would let pass in silence (an unknown name, a size that cannot be divided) raises here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import ConfigError, ShapeError, UnknownAxis
from jaxlm.module import Module, Spec, init, is_spec, path_name
from jaxlm.typing import Array, Params, Tree

__all__ = [
    "MESH_AXES",
    "RULES",
    "Replicated",
    "big_and_replicated",
    "constrainer",
    "identity",
    "init_sharded",
    "mesh",
    "mesh_text",
    "replicated",
    "resolve",
    "shardings",
    "ways",
]

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
Axes = Sequence[str | None]

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert")

# Earlier rules win where two axes of one array ask for the same mesh axis.
RULES: Rules = (
    # In this order: with ("data", "fsdp"), the mesh data=2,fsdp=2,tensor=2 and a weight split by fsdp and tensor, XLA
    # (jaxlib 0.10.2, both partitioners) gives wrong gradients inside lax.scan. Law 4 sees it.
    ("batch", ("fsdp", "data")),
    ("time", "context"),
    ("layers", None),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("state", "tensor"),
    ("expert", "expert"),
    ("embed", "fsdp"),
    ("head", None),
    ("slots", None),
)


def mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from a string such as 'data=4,tensor=2'; '' is a mesh of one device.

    text      sizes of some of MESH_AXES, in any order; one may be -1, which takes all devices that are left
    devices   default: jax.devices(); a smaller mesh takes the first ones

    The mesh has the named axes only, in the order of MESH_AXES; rules for the others replicate.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(text)
    free = [axis for axis, size in sizes.items() if size == -1]
    taken = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise ConfigError(f"mesh {text!r}: {' and '.join(free)} are -1, expected at most one")
    if free:
        if len(devices) % taken or not devices:
            raise ConfigError(
                f"mesh {text!r}: {len(devices)} devices cannot be split by {taken}, "
                f"expected sizes whose product divides {len(devices)}"
            )
        sizes[free[0]] = len(devices) // taken
    need = math.prod(sizes.values())
    if need > len(devices):
        raise ConfigError(f"mesh {text!r}: needs {need} devices, expected at most the {len(devices)} that are there")
    axes = tuple(axis for axis in MESH_AXES if axis in sizes) or ("data",)
    shape = tuple(sizes.get(axis, 1) for axis in axes)
    return jax.make_mesh(shape, axes, (AxisType.Auto,) * len(axes), devices=devices[:need])


def mesh_text(mesh: Mesh) -> str:
    """The text that makes this mesh, with numbers for all axes."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def mesh_sizes(text: str) -> dict[str, int]:
    """Sizes of the axes that a mesh's text names; -1 as it stands."""
    sizes: dict[str, int] = {}
    for part in text.split(",") if text.strip() else []:
        axis, equals, number = (p.strip() for p in part.partition("="))
        if not equals or axis not in MESH_AXES:
            raise ConfigError(
                f"mesh {text!r}: {part.strip()!r}, expected AXIS=SIZE with AXIS one of {', '.join(MESH_AXES)}"
            )
        if axis in sizes:
            raise ConfigError(f"mesh {text!r}: {axis} is given twice, expected once")
        try:
            sizes[axis] = int(number)
        except ValueError:
            raise ConfigError(f"mesh {text!r}: {axis}={number}, expected an integer") from None
        if sizes[axis] < 1 and sizes[axis] != -1:
            raise ConfigError(f"mesh {text!r}: {axis}={number}, expected at least 1, or -1 for what is left")
    return sizes


def resolve(axes: Axes, shape: Sequence[int], mesh: Mesh, rules: Rules = RULES, path: str = "array") -> PartitionSpec:
    """The PartitionSpec of an array from the logical names of its axes.

    axes    a logical name per axis; None = not split
    path    how errors call the array

    A mesh axis splits at most one axis of an array: the earlier rule wins. Mesh axes of size 1 split nothing.
    """
    from flax.linen.spmd import logical_to_mesh_axes  # 0.3 s that a run on one device need not pay

    if len(axes) != len(shape):
        raise ShapeError(f"{path}: axes {tuple(axes)} name {len(axes)} axes, shape {tuple(shape)} has {len(shape)}")
    named = [axis for axis in axes if axis is not None]
    known = dict.fromkeys(logical for logical, _ in rules)
    for axis in named:
        if axis not in known:
            raise UnknownAxis(f"{path}: axis {axis!r} of {tuple(axes)}, expected one of {', '.join(known)}")
        if named.count(axis) > 1:
            raise ConfigError(f"{path}: axes {tuple(axes)}, expected {axis!r} once")
    spec = logical_to_mesh_axes(tuple(axes), _present(tuple(rules), mesh))
    assert spec is not None
    for axis, size, split in zip(axes, shape, spec, strict=True):
        split = (split,) if isinstance(split, str) else split or ()
        ways = math.prod(mesh.shape[m] for m in split)
        if size % ways:
            raise ShapeError(
                f"{path}: axis {axis!r} of shape {tuple(shape)} has size {size}, "
                f"expected a multiple of {ways} ({' x '.join(f'{m}={mesh.shape[m]}' for m in split)})"
            )
    return spec


def _present(rules: tuple, mesh: Mesh) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
    """The rules with mesh axes that split something only."""
    out: list[tuple[str, str | tuple[str, ...] | None]] = []
    for logical, target in rules:
        wanted = (target,) if isinstance(target, str) else tuple(target or ())
        for axis in wanted:
            if axis not in MESH_AXES and axis not in mesh.shape:
                raise ConfigError(
                    f"rule {(logical, target)}: mesh axis {axis!r}, expected one of {', '.join(MESH_AXES)}"
                )
        kept = [axis for axis in wanted if mesh.shape.get(axis, 1) > 1]
        out.append((logical, tuple(kept) if len(kept) > 1 else next(iter(kept), None)))
    return tuple(out)


def shardings(module: Module | Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """NamedSharding of every weight of a module, or of every leaf of a tree of Specs (such as a state's)."""

    def leaf(path: tuple, spec: Spec) -> NamedSharding:
        return NamedSharding(mesh, resolve(spec.axes, spec.shape, mesh, rules, path_name(path)))

    return jax.tree_util.tree_map_with_path(leaf, _specs(module), is_leaf=is_spec)


def _specs(module: Module | Tree) -> Tree:
    return module.params() if isinstance(module, Module) else module


def init_sharded(module: Module, key: Array, mesh: Mesh, rules: Rules = RULES) -> Params:
    """`init(module, key)`, each device making only its own part: the same bits on every mesh."""
    return jax.jit(partial(init, module), out_shardings=shardings(module, mesh, rules))(key)


def identity(x: Array, axes: Axes) -> Array:
    """The `constrain` of a model without a mesh."""
    del axes
    return x


@dataclasses.dataclass(frozen=True)
class _Constrain:
    """Equal by value, so that two equal ones trace once."""

    mesh: Mesh
    rules: tuple

    def __call__(self, x: Array, axes: Axes) -> Array:
        spec = resolve(axes, x.shape, self.mesh, self.rules, "constrain")
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def constrainer(mesh: Mesh, rules: Rules = RULES) -> Callable[[Array, Axes], Array]:
    """A function `constrain(x, axes)` that places x on the mesh by logical names; an unsplit axis is replicated."""
    return _Constrain(mesh, tuple(rules))


def ways(constrain: Callable[..., Array], axes: Axes, shape: Sequence[int]) -> int:
    """Devices among which `constrain` splits an array of such axes; 1 without a mesh."""
    if not isinstance(constrain, _Constrain):
        return 1
    spec = resolve(axes, shape, constrain.mesh, constrain.rules, "constrain")
    return math.prod(
        constrain.mesh.shape[a] for part in spec for a in ((part,) if isinstance(part, str) else part or ())
    )


@dataclasses.dataclass(frozen=True)
class Replicated:
    """A tensor that every device holds whole."""

    path: str
    bytes: int


BIG = 2**26  # bytes of a tensor from which on it is worth a line that every device holds it whole


def big_and_replicated(module: Module | Tree, mesh: Mesh, rules: Rules = RULES, limit: int = BIG) -> list[Replicated]:
    """The tensors of at least `limit` bytes that no mesh axis splits, largest first; none on a mesh of one device."""

    def leaf(spec: Spec, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype), sharding=place)

    return replicated(jax.tree.map(leaf, _specs(module), shardings(module, mesh, rules), is_leaf=is_spec), limit)


def replicated(placed: Tree, limit: int = BIG) -> list[Replicated]:
    """The same of a tree of arrays, or of jax.ShapeDtypeStruct with shardings, such as a whole training state."""
    found = [
        Replicated(path_name(path), math.prod(x.shape) * x.dtype.itemsize)
        for path, x in jax.tree_util.tree_leaves_with_path(placed)
        if x.sharding.mesh.size > 1 and x.sharding.is_fully_replicated
    ]
    return sorted((r for r in found if r.bytes >= limit), key=lambda r: (-r.bytes, r.path))
