"""A network as the linear map that it is at one input: gates, attention weights and norms held at their values.

    hold(f)                     the values of f; in derivatives everything that weighs the stream is a constant
    detached_jacobian(f, x)     J with J x = f(x), but for what no input carries (biases)

A function is traced to a jaxpr and interpreted, so any model serves. What depends on x is held constant where it
enters an operation that is not linear: exp, tanh, rsqrt, sigmoid, squares, a denominator; and of a product of two
that both depend on x, the left one: act(x W_gate) of a gated MLP, attention's weights before its values, q kᵀ of linear
attention. Maxima (ReLU), selections and sums keep their derivatives. A path that goes through a held operation alone,
as the tanh of a recurrent cell, is lost: it stays in the remainder.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import (
    closed_call_p,
    cond_p,
    custom_jvp_call_p,
    custom_vjp_call_p,
    jit_p,
    remat_p,
    scan_p,
    while_p,
)

from jaxlm.errors import ConfigError
from jaxlm.taps import jaxpr_parts, longer, value_of
from jaxlm.typing import Array

CALLS = (jit_p, closed_call_p, remat_p, custom_jvp_call_p, custom_vjp_call_p)
PRODUCTS = ("mul", "dot_general", "conv_general_dilated")
DIVIDED = {"div": 1, "triangular_solve": 0}  # the operand that divides
# Linear, or linear in pieces that meet at 0: what JAX differentiates is what is meant.
LINEAR = {
    *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "max", "min", "abs", "reduce_max", "reduce_min"),
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "concatenate", "split", "pad", "rev"),
    *("select_n", "sort", "real", "imag", "fft", "reduce_precision", "optimization_barrier", "sharding_constraint"),
    *("slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "scatter-add", "copy", "copy_p", "name"),
    "convert_element_type",
}
Alive = list[bool]


class Detached(NamedTuple):
    """f(x) = sum of J x over the inputs + rest.

    value       f(x)                                    (..., )
    jacobian    J                                       (..., *x.shape)
    rest        what no input carries                   (..., )
    """

    value: Array
    jacobian: Array
    rest: Array


def hold(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose derivative by its first argument takes weights of the stream for constants; see the module.

    Raises ConfigError for a while loop that depends on that argument.
    """

    def held(x: Any, *args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(x, *args)
        first, rest = jax.tree.leaves(x), jax.tree.leaves(args)
        values = [jnp.asarray(v) for v in (*first, *rest)]
        outs, _ = _run(closed, [True] * len(first) + [False] * len(rest), *values)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return held


def detached_jacobian(f: Callable[[Array], Array], x: Array) -> Detached:
    """The detached Jacobian of f at x.   f: an array to an array; as many backward passes as f has outputs

    Golden 2025, section 2.
    """
    held = hold(f)
    jacobian = jax.jacrev(held)(x)
    value = held(x)
    return Detached(value, jacobian, value - jnp.tensordot(jacobian, x, x.ndim))


def _run(jaxpr: Any, alive: Sequence[bool], *args: Any) -> tuple[list[Any], Alive]:
    """Values of a jaxpr, and which of them carry x."""
    jaxpr, consts = jaxpr_parts(jaxpr)
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    carry = dict(zip(jaxpr.invars, alive, strict=True))
    has = lambda v: not isinstance(v, core.Literal) and carry.get(v, False)  # noqa: E731
    for eqn in jaxpr.eqns:
        outs, lives = _step(jaxpr, eqn, [has(v) for v in eqn.invars], [value_of(env, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
        floats = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars]
        carry.update(zip(eqn.outvars, [a and b for a, b in zip(lives, floats, strict=True)], strict=True))
    return [value_of(env, v) for v in jaxpr.outvars], [has(v) for v in jaxpr.outvars]


def _step(jaxpr: Any, eqn: Any, alive: Alive, ins: list[Any]) -> tuple[Sequence[Any], Alive]:
    """One equation: its values, and which of them carry x."""
    kind, n = eqn.primitive, len(eqn.outvars)
    if any(alive) and kind in CALLS:
        return _run(next(iter(core.jaxprs_in_params(eqn.params))), alive, *ins)
    if any(alive) and kind is scan_p:
        return _scan(eqn, alive, ins)
    if any(alive) and kind is cond_p:
        return _cond(eqn, alive, *ins)
    if any(alive) and kind is while_p:
        raise ConfigError("hold: a while loop depends on the input; expected scans")
    kept = list(alive)
    if kind.name in PRODUCTS:
        kept[0] = alive[0] and not alive[1]
    elif kind.name in DIVIDED:
        kept[DIVIDED[kind.name]] = False
    elif kind.name not in LINEAR:
        kept = [False] * len(alive)
    ins = [lax.stop_gradient(x) if a and not k else x for x, a, k in zip(ins, alive, kept, strict=True)]
    return _plain(jaxpr, eqn, ins), [any(kept)] * n


def _plain(jaxpr: Any, eqn: Any, ins: list[Any]) -> Sequence[Any]:
    """The equation as JAX evaluates it."""
    of = {v: x for v, x in zip(eqn.invars, ins, strict=True) if not isinstance(v, core.Literal)}
    piece = jaxpr.replace(constvars=(), invars=list(of), outvars=eqn.outvars, eqns=[eqn])
    return core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))(*of.values())


def _carried(f: Callable[..., tuple[Any, Alive]], args: Sequence[Any]) -> Alive:
    """Which values of f carry x; nothing is computed."""
    found: Alive = []

    def tell(*args: Any) -> Any:
        out, alive = f(*args)
        found.extend(alive)
        return out

    jax.eval_shape(tell, *args)
    return found


def _scan(eqn: Any, alive: Alive, args: list[Any]) -> tuple[Sequence[Any], Alive]:
    body, p = eqn.params["jaxpr"], eqn.params
    sub = jaxpr_parts(body)[0]
    scanned, stacked = longer(eqn.invars, sub.invars), longer(eqn.outvars, sub.outvars)  # as in taps
    split, carries = len(args) - scanned, len(eqn.outvars) - stacked
    consts, begin, xs = args[: split - carries], args[split - carries : split], args[split:]
    alive = list(alive)
    while True:  # until the carry keeps alive what enters it
        outs = _carried(partial(_run, body, alive), [*consts, *begin, *[x[0] for x in xs]])
        grown = [a or b for a, b in zip(alive[split - carries : split], outs[:carries], strict=True)]
        if grown == alive[split - carries : split]:
            break
        alive[split - carries : split] = grown

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        values, _ = _run(body, alive, *consts, *carry, *x)
        return values[:carries], values[carries:]

    carry, ys = lax.scan(step, begin, xs, p["length"], reverse=p["reverse"], unroll=p["unroll"])
    return [*carry, *ys], outs


def _cond(eqn: Any, alive: Alive, index: Any, *args: Any) -> tuple[Sequence[Any], Alive]:
    runs = [partial(_run, branch, alive[1:]) for branch in eqn.params["branches"]]
    lives = [_carried(run, args) for run in runs]
    values = lax.switch(index, [lambda *a, run=run: run(*a)[0] for run in runs], *args)
    return values, [any(pair) for pair in zip(*lives, strict=True)]
