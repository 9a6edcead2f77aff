"""What a training step needs and how long it takes at best: from the declarations and the jaxpr, nothing compiled."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxlm.cost import count_flops
from jaxlm.errors import ConfigError
from jaxlm.plan.chips import Chip
from jaxlm.plan.graph import graph_of
from jaxlm.plan.memory import peak
from jaxlm.plan.placing import Placed, Split, place
from jaxlm.plan.traffic import between_devices, to_memory, turns
from jaxlm.sharding import MESH_AXES, mesh_sizes
from jaxlm.train.experiment import Experiment
from jaxlm.train.step import abstract_batch, first_state, train_step
from jaxlm.typing import Tree


@dataclass(frozen=True)
class Plan:
    """One training step on one chip of many.

    devices      in all
    weights, optimizer, memory, batch    bytes that a chip holds; memory: the model's own state, where rows go on
    temporary    bytes beside them at the fullest moment: gradients and what the backward pass keeps
    tokens       of an update, over all devices
    flops        of an update, over all devices, with what remat computes again
    traffic      bytes between a chip and its memory
    moved        bytes that a chip sends to others, by kind
    turns        trips of innermost loops, one after the other; what it costs to begin each is in no bound
    chip         for seconds
    """

    devices: int
    weights: int
    optimizer: int
    memory: int
    batch: int
    temporary: int
    tokens: int
    flops: int
    traffic: int
    moved: dict[str, int]
    turns: int
    chip: Chip

    @property
    def bytes(self) -> int:
        """Of a chip's memory."""
        return self.weights + self.optimizer + self.memory + self.batch + self.temporary

    @property
    def fits(self) -> bool:
        return self.bytes <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """Of an update, for each thing that can bound it: a step takes at least the longest."""
        return {
            "products": self.flops / self.devices / self.chip.flops,
            "memory": self.traffic / self.chip.bandwidth,
            "network": sum(self.moved.values()) / self.chip.network,
        }

    @property
    def step_seconds(self) -> float:
        """Of an update at best: everything overlaps."""
        return max(self.seconds.values())

    @property
    def utilisation(self) -> float:
        """Share of the chips' products at best."""
        return self.seconds["products"] / self.step_seconds

    def hours(self, steps: int) -> float:
        return steps * self.step_seconds / 3600

    def dollars(self, steps: int) -> float:
        return self.hours(steps) * self.devices * self.chip.dollars


def plan(exp: Experiment, chip: Chip) -> Plan:
    """The plan of an experiment's update on its own mesh; the devices need not be there."""
    mesh = abstract_mesh(exp.mesh)
    _, target = first_state(exp, mesh)
    batch = abstract_batch(exp, mesh)
    jaxpr = train_step(exp, mesh).trace(target, batch).jaxpr
    ins = [split_of(x) for x in jax.tree.leaves((target, batch))]
    outs = [split_of(x) for x in jax.tree.leaves(target)]
    graph = graph_of(jaxpr)
    placed = place(graph, dict(mesh.shape), ins, [*outs, *[()] * (len(graph.outs) - len(outs))])
    return Plan(
        devices=math.prod(mesh.shape.values()),
        weights=held(target.params, placed),
        optimizer=held(target.optimizer, placed),
        memory=held(target.memory, placed),
        batch=held(batch, placed),
        temporary=peak(placed),
        tokens=exp.batch * exp.data.length,
        flops=count_flops(jaxpr.jaxpr),
        traffic=to_memory(placed),
        moved=dict(between_devices(placed)),
        turns=turns(graph),
        chip=chip,
    )


def abstract_mesh(text: str) -> Any:
    """The mesh of 'fsdp=16,tensor=4' without its devices."""
    sizes = mesh_sizes(text)
    for axis, size in sizes.items():
        if size == -1:
            raise ConfigError(f"mesh {text!r}: {axis} is -1, expected a number: no devices are there to be counted")
    axes = tuple(axis for axis in MESH_AXES if axis in sizes) or ("data",)
    shape = tuple(sizes.get(axis, 1) for axis in axes)
    return AbstractMesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))


def split_of(x: Any) -> Split:
    """Of an array's shape with its sharding."""
    spec = [*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec))]
    return tuple((a,) if isinstance(a, str) else tuple(a or ()) for a in spec)


def held(tree: Tree, placed: Placed) -> int:
    """Bytes of a tree's leaves on one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        ways = math.prod(placed.mesh[a] for axes in split_of(x) for a in axes)
        total += math.prod(x.shape) * x.dtype.itemsize // ways
    return total
