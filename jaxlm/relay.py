"""The context axis: a sequence split along time over devices, exactly, for every mixer.

    model = spread(model, mesh)        the same weights, state and numbers; each device holds its own stretch of time

A mixer can be cut anywhere, so a device may run its stretch alone if it is handed the state in which the device before
it ended (`Relay`). A memory of keys and values needs no such order: all of them are gathered (`Gathered`). Both stand
around a mixer, which sees its stretch and no mesh. What works on single tokens is split by the partitioner.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.errors import ShapeError
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import Mixer, batch_axes
from jaxlm.module import Module, map_specs
from jaxlm.ops.cache import positions, upto
from jaxlm.sharding import RULES, Rules, constrainer, resolve, ways
from jaxlm.typing import Array, Params, State, Tree, wide

__all__ = ["Gathered", "Relay", "idle", "spread"]

TURNS = 4  # groups of rows for each device along time: at most 1/5 of the ticks are idle


def spread(module: Any, mesh: Any, rules: Rules = RULES) -> Any:
    """The same module, its mixers spread over the mesh axes that split `time`; itself where none does.

    module   a mixer, or a module with mixers among its fields
    mesh     jax.sharding.Mesh, or AbstractMesh

    To be called under jit, with lengths that the devices along time divide. Noise (dropout) is drawn a stretch.
    """
    if resolve(("time",), (0,), mesh, rules)[0] is None:
        return module
    rules = tuple(rules)

    def change(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(change(p) for p in part)
        if not isinstance(part, Module):
            return part
        if isinstance(part, Mixer) and type(part) not in (Stack, Block, Chain):
            if not jax.tree.leaves(part.state(1, 1)):
                return part  # no memory: single tokens
            if isinstance(part, Attention) and type(part) is Attention and part.window is None:
                return Gathered(part, mesh, rules)
            return Relay(part, mesh, rules)
        fields = [f.name for f in dataclasses.fields(part) if f.init]  # type: ignore[arg-type]
        held = {f: getattr(part, f) for f in fields if isinstance(getattr(part, f), (Mixer, tuple))}
        return dataclasses.replace(part, **{f: change(p) for f, p in held.items()})  # type: ignore[type-var]

    return change(module)


class Spread(Mixer):
    """A mixer, its weights, its state and its values, on devices that share the sequence.

    mixer   what runs on each stretch
    mesh    whose axes split `time`, by the rules
    """

    mixer: Mixer
    mesh: Any
    rules: tuple = RULES  # type: ignore[assignment]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.mixer.width

    @property
    def reads(self) -> int:
        return self.mixer.reads

    @property
    def growth(self) -> str:  # type: ignore[override]
        return self.mixer.growth

    @property
    def axis(self) -> Any:
        """The mesh axis, or axes, along time."""
        return resolve(("time",), (0,), self.mesh, self.rules)[0]

    @property
    def stretches(self) -> int:
        """Devices along time."""
        return math.prod(self.mesh.shape[a] for a in self.axes)

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.axis,) if isinstance(self.axis, str) else tuple(self.axis)

    def params(self):
        return self.mixer.params()

    def state(self, batch: int, room: int = 0):
        return self.mixer.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return self.mixer.start(params, batch, room)

    def tie(self, params: Params) -> Params:
        return self.mixer.tie(params)

    def step(self, params: Params, x: Array, state: State) -> tuple[Array, State]:
        return self.mixer.step(params, x, state)

    def over(self, stretch: Callable, params: Params, x: Array, state: State, starts: Array | None, key: Array | None):
        """Run `stretch(params, x, state, starts, key) -> (y, state)` on every device's own part of x and starts.

        The last state is that of the last device. Gradients of what all devices read are summed in at least float32.
        """
        constrain = constrainer(self.mesh, self.rules)
        x = constrain(x, ("batch", "time", None))  # raises where time does not divide
        dtypes = jax.tree.map(lambda a: a.dtype, (params, state))

        def own(shared, x, starts, key):
            params, state = jax.tree.map(lambda a, dtype: a.astype(dtype), shared, dtypes)
            y, after = stretch(params, x, state, starts, key)
            return y, jax.tree.map(lambda a: a[None], after)

        whole, time, last = PartitionSpec(), PartitionSpec(None, self.axis), PartitionSpec(self.axis)
        y, after = jax.shard_map(
            own,
            mesh=self.mesh,
            in_specs=(whole, time, time, whole),
            out_specs=(time, last),
            axis_names=set(self.axes),
            check_vma=False,  # a mixer's own loops begin from constants, which are the same on every device
        )(jax.tree.map(widened, (params, state)), x, starts, key)
        return constrain(y, ("batch", "time", None)), jax.tree.map(lambda a: a[-1], after)


class Relay(Spread):
    """Each device waits for the state of the one before it; rows go in groups, so that soon all of them work.

    Device c runs group j at tick c + j: of n - 1 + m ticks (n devices, m groups) n - 1 are idle on each. An idle device
    runs a fresh state and what it gives is selected away. With fewer groups than devices the backward pass runs each
    tick again: to keep what idle ticks made would cost more than the split saves.
    """

    def groups(self, rows: int) -> int:
        """Groups of so many rows: a number of them that leaves every device its own share of each."""
        own = rows // ways(constrainer(self.mesh, self.rules), ("batch",), (rows,))
        return max(m for m in range(1, min(own, TURNS * self.stretches) + 1) if own % m == 0)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        b, t, _ = x.shape
        state = self.start(params, b, t) if state is None else state
        return self.over(self.wave, params, x, state, starts, key)

    def wave(self, params: Params, x: Array, state: State, starts: Array | None, key: Array | None):
        """What one device does: one group a tick."""
        n, m = self.stretches, self.groups(x.shape[0])
        c = jax.lax.axis_index(self.axis)
        axes = batch_axes(self.mixer.state(x.shape[0]))
        begun = into_groups(state, axes, m)
        rows = into_groups((x, starts), jax.tree.map(lambda _: 0, (x, starts)), m)

        def tick(handed: State, i: Array) -> tuple[State, tuple[Array, State]]:
            j = i - c
            idle, at = (j < 0) | (j >= m), jnp.clip(j, 0, m - 1)
            pick = lambda tree: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, at, 0, False), tree)  # noqa: E731
            before = jax.tree.map(lambda a, b: jnp.where(idle | (c == 0), a, b), pick(begun), handed)
            x, starts = pick(rows)
            own = None if key is None else jax.random.fold_in(jax.random.fold_in(key, c), at)
            y, after = self.mixer.apply(params, x, before, starts, own)
            onward = [(d, d + 1) for d in range(n - 1)]
            return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axis, onward), after), (y, after)

        tick = jax.checkpoint(tick, prevent_cse=False) if m < n else tick
        first = jax.tree.map(lambda a: jnp.zeros_like(a[0]), begun)
        _, (y, after) = jax.lax.scan(tick, first, jnp.arange(n - 1 + m, dtype=jnp.int32))
        y = out_of_groups(jax.lax.dynamic_slice_in_dim(y, c, m), 0)
        return y, out_of_groups(jax.tree.map(lambda a: a[n - 1 :], after), axes)


def widened(a: Array) -> Array:
    return wide(a) if jnp.issubdtype(a.dtype, jnp.floating) else a


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(a: Array, axis: Any) -> Array:
    """What all devices along a mesh axis hold, joined along time.   (b, t, ...); gradients are summed wide"""
    return jax.lax.all_gather(a, axis, axis=1, tiled=True)


def scatter(axis: Any, like: Array, g: Array) -> tuple[Array]:
    g = jax.lax.psum_scatter(widened(g), axis, scatter_dimension=1, tiled=True)
    return (g.astype(like.dtype),)


gather.defvjp(lambda a, axis: (gather(a, axis), jnp.zeros((), a.dtype)), scatter)


def idle(devices: int, groups: int) -> float:
    """Share of a relay's ticks in which a device has nothing to do."""
    return (devices - 1) / (devices - 1 + groups)


def into_groups(tree: Tree, axes: Tree, groups: int) -> Tree:
    """The groups in front: row r is row r // groups of group r % groups, so that rows stay on their devices."""

    def leaf(a: Array, axis: int) -> Array:
        a = a.reshape(*a.shape[:axis], a.shape[axis] // groups, groups, *a.shape[axis + 1 :])
        return jnp.moveaxis(a, axis + 1, 0)

    return jax.tree.map(leaf, tree, axes)


def out_of_groups(tree: Tree, axes: Tree) -> Tree:
    """Undo into_groups."""

    def leaf(a: Array, axis: int) -> Array:
        a = jnp.moveaxis(a, 0, axis + 1)
        return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

    return jax.tree.map(leaf, tree, axes)


class Gathered(Spread):
    """Attention whose devices gather the keys and values of all stretches, and put their own queries to earlier ones.

    No device waits. The keys of the whole sequence lie on each while it works; the backward pass gathers them again.
    """

    mixer: Attention

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        b, t, _ = x.shape
        if state is not None:
            slots = state["k"].shape[1]
            if t > slots:
                raise ShapeError(f"Attention: got {t} tokens, expected at most the {slots} slots of its state")
            return self.over(self.part, params, x, state, starts, key)
        specs = self.state(b, t)  # in x's own precision, as where nothing is split
        state = map_specs(lambda s: jnp.zeros(s.shape, s.dtype if s.dtype == "int32" else x.dtype), specs)
        y, after = self.over(self.part, params, x, state, starts, key)
        return y, map_specs(lambda s, a: a if a.dtype == jnp.float64 else a.astype(s.dtype), specs, after)

    def part(self, params: Params, x: Array, state: State, starts: Array | None, key: Array | None):
        """What one device does: the state at its own cut, then its stretch."""

        @jax.checkpoint
        def run(params, x, state, starts):
            own, n = x.shape[1], self.stretches
            first = jax.lax.axis_index(self.axis) * own
            every = None if starts is None else jax.lax.all_gather(starts, self.axis, axis=1, tiled=True)
            place = positions(every, state["length"], n * own)
            number = jax.lax.dynamic_slice_in_dim(place, first, own, 1)
            join: Any = lambda a: gather(a, self.axis)  # noqa: E731
            k, v = map(join, self.mixer.remembered(params, x, starts, number))
            return self.mixer.apply(params, x, upto(state, k, v, every, place, first), starts, key)

        return run(params, x, state, starts)
