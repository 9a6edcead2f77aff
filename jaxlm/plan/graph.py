"""A jaxpr as a flat list of operations on numbered values: calls are opened, loops keep a graph of their body."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxlm.errors import ConfigError

LOOPS = frozenset({"scan", "while", "cond", "pallas_call"})  # what stays one operation


@dataclass
class Operation:
    """One equation.   name: of its primitive; ins, outs: values; params: its own; bodies: graphs of a loop"""

    name: str
    ins: list[int]
    outs: list[int]
    params: dict[str, Any]
    bodies: list["Graph"] = field(default_factory=list)


@dataclass
class Graph:
    """Operations in the program's order.   shapes, widths (bytes an element): of the values; ins, outs: values"""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    constants: set[int] = field(default_factory=set)
    operations: list[Operation] = field(default_factory=list)
    ins: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)

    def value(self, aval: Any) -> int:
        """A new value's number."""
        self.shapes.append(tuple(getattr(aval, "shape", ())))
        self.widths.append(width(aval))
        return len(self.shapes) - 1

    def bytes(self, value: int) -> int:
        return math.prod(self.shapes[value]) * self.widths[value]


def width(aval: Any) -> int:
    """Bytes of one element; a random key has four words at the most."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    return 16 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize


def graph_of(closed: ClosedJaxpr | Jaxpr) -> Graph:
    """The graph of a jaxpr, its constants among the values."""
    jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    graph = Graph()
    graph.ins = [graph.value(v.aval) for v in jaxpr.invars]
    constants = [graph.value(v.aval) for v in jaxpr.constvars]
    graph.constants.update(constants)
    graph.outs = add(graph, jaxpr, constants, graph.ins)
    return graph


def add(graph: Graph, jaxpr: Jaxpr, constants: list[int], args: list[int]) -> list[int]:
    """Append a jaxpr's equations, reading `args`; the values of its results."""
    at: dict[Any, int] = {}
    for var, number in zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *args], strict=True):
        at[var] = number

    def read(v: Any) -> int:
        if isinstance(v, Literal):
            number = graph.value(v.aval)
            graph.constants.add(number)
            return number
        return at[v]

    for eqn in jaxpr.eqns:
        ins, name = [read(v) for v in eqn.invars], eqn.primitive.name
        inner = called(eqn.params) if name not in LOOPS else None
        if inner is not None:
            own = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            constants = [graph.value(v.aval) for v in own.constvars]
            graph.constants.update(constants)
            ins = ins[len(ins) - len(own.invars) :]
            if name == "shard_map":
                ins = parts(graph, "local", ins, own.invars, eqn.params["in_specs"])
            outs = add(graph, own, constants, ins)
            if name == "shard_map":
                outs = parts(graph, "whole", outs, eqn.outvars, eqn.params["out_specs"])
        else:
            outs = [graph.value(v.aval) for v in eqn.outvars]
            bodies = [graph_of(j) for j in bodies_of(name, eqn.params)]
            graph.operations.append(Operation(name, ins, outs, eqn.params, bodies))
        at.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def parts(graph: Graph, name: str, given: list[int], made: Sequence[Any], specs: Sequence[Any]) -> list[int]:
    """New values for what crosses the edge of a region whose devices hold parts: see jaxlm.plan.manual."""
    outs = [graph.value(v.aval) for v in made]
    for value, out, spec in zip(given, outs, specs, strict=True):
        graph.operations.append(Operation(name, [value], [out], {"spec": spec}))
    return outs


def called(params: dict[str, Any]) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr of a call: jit, remat, custom derivatives."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if isinstance(params.get(key), (ClosedJaxpr, Jaxpr)):
            return params[key]
    return None


def bodies_of(name: str, params: dict[str, Any]) -> list[ClosedJaxpr]:
    if name == "scan":
        return [params["jaxpr"]]
    if name == "cond":
        return list(params["branches"])
    if name == "while":
        raise ConfigError("plan: a while loop has no static trip count, expected scan (or fori_loop, static bounds)")
    return []
