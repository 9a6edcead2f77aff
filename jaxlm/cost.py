"""The cost of a function, from its jaxpr, with the trip counts of its scans: XLA's own count sees a loop body once.

A multiply-add is two operations, any other arithmetic on one number is one; moving data is free. Nothing is compiled.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxlm.errors import ConfigError

# Primitives that only move, relabel or make up data.
FREE = frozenset(
    {
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice",
        "dynamic_slice",
        "gather",
        "rev",
        "dynamic_update_slice",
        "concatenate",
        "split",
        "pad",
        "iota",
        "copy",
        "convert_element_type",
        "name",
        "scatter",
        "bitcast_convert_type",
        "reduce_precision",
        "stop_gradient",
        "optimization_barrier",
        "sharding_constraint",
        "device_put",
        "random_wrap",
        "random_unwrap",
        "random_seed",
    }
)


def flops(f: Callable, *args: Any, **kwargs: Any) -> int:
    """Arithmetic operations of `f(*args, **kwargs)`; arguments may be jax.ShapeDtypeStruct.

    scan counts its length times its body, shard_map the parts of all its devices, cond its dearest branch; a while
    loop has no static trip count and raises.
    """
    return count_flops(jax.make_jaxpr(f)(*args, **kwargs).jaxpr)


def count_flops(jaxpr: Jaxpr) -> int:
    """Arithmetic operations of a jaxpr."""
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    out = sum(_size(v) for v in eqn.outvars)
    if name in FREE:
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name.startswith("ragged_dot"):  # each row meets one matrix of those that are there
        return 2 * out * eqn.invars[0].aval.shape[-1]
    if name == "conv_general_dilated":
        # Each output sums over the kernel's taps and its input channels: the kernel without its axis of outputs.
        kernel, outputs = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        return 2 * out * math.prod(kernel) // kernel[outputs]
    if name == "triangular_solve":
        n = eqn.invars[0].aval.shape[-1]
        return out * n
    if name == "cholesky":
        return out * eqn.invars[0].aval.shape[-1] // 3
    if name == "while":
        raise ConfigError("flops: a while loop has no static trip count, expected scan (or fori_loop, static bounds)")
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(count_flops(branch.jaxpr) for branch in params["branches"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * count_flops(_open(params["jaxpr"]))
    if name.startswith("scatter"):
        return _size(eqn.invars[2])
    if name.startswith(("reduce", "arg", "cum", "sort", "top_k")):
        return sum(_size(v) for v in eqn.invars)
    inner = [v for v in params.values() if isinstance(v, (Jaxpr, ClosedJaxpr))]
    times = manual_devices(params) if name == "shard_map" else 1
    if inner:  # jit, remat, custom_jvp, custom_vjp, shard_map...
        return times * sum(count_flops(_open(j)) for j in inner)
    return out


def manual_devices(params: dict[str, Any]) -> int:
    """How many devices run the body of a shard_map, each its own part."""
    axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
    return math.prod(params["mesh"].shape[a] for a in axes)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _size(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", ()))
