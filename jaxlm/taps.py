"""Named activations: read them, or put something in their place, without a hook in any model.

    h = taps.name(h, "resid")                                  inside a model; the identity
    out, seen = taps.capture(f, ["resid"])(params, tokens)     seen["resid"][0]: (layers, b, t, d) under a scan
    taps.replace(f, {"resid": lambda v, at: v * 0})(...)       `at`: indices of the enclosing scans, outermost first
    taps.names(f, params, tokens)                              what there is to see

Both give functions of the same arguments that can be jitted, differentiated and vmapped. To have the gradient of an
activation, add a zero there and differentiate with respect to it:

    jax.grad(lambda d: taps.replace(loss, {"resid": lambda v, at: v + d[at]})(params))(zeros)

A function is traced to a jaxpr and the jaxpr is interpreted again, entering only what holds a wanted name: everything
else is run by JAX as it stands, with its custom derivatives and remat policies. Each call traces anew: jit around it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name as name
from jax.extend import core
from jax.extend.core.primitives import closed_call_p, cond_p, jit_p, name_p, remat_p, scan_p

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.typing import Array

__all__ = ["Site", "capture", "name", "names", "replace"]

OPEN = (jit_p, closed_call_p, remat_p, scan_p, cond_p)  # what the interpreter can enter
At = tuple[Any, ...]
Taps = dict[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where a name occurs.

    shape   of the captured value: a leading axis per enclosing scan
    inside  the operation that hides it from `capture` and `replace` ('while', 'custom_vjp_call'...); '' = none does
    """

    shape: tuple[int, ...]
    dtype: str
    inside: str = ""


def names(f: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, tuple[Site, ...]]:
    """The names that occur in f(*args, **kwargs), each with its sites in program order. Nothing is computed.

    args    pytrees of arrays or jax.ShapeDtypeStruct
    """
    found: dict[str, tuple[Site, ...]] = {}
    for label, site in _sites(jax.make_jaxpr(f)(*args, **kwargs)):
        found[label] = (*found.get(label, ()), site)
    return found


def capture(f: Callable[..., Any], names: Sequence[str]) -> Callable[..., tuple[Any, dict[str, tuple[Array, ...]]]]:
    """A function of f's arguments that returns `(f's result, {name: tuple of values})`.

    A tuple holds a name's sites in program order; each enclosing scan adds a leading axis, outermost first, indexed as
    the scan's inputs are. A site in a branch of `cond` that was not taken holds zeros. Under a vmap inside f the value
    has the batch axis where vmap put it.

    names   of `taps.name`; one that does not occur, or occurs where it cannot be reached (custom derivatives, while
            loops), raises ConfigError
    """
    if isinstance(names, str):
        raise ConfigError(f"names = {names!r}: expected a sequence of names, such as [{names!r}]")
    wanted = tuple(dict.fromkeys(names))

    def captured(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, tuple[Array, ...]]]:
        out, taps = _Interpreter(wanted).call(f, args, kwargs)
        return out, {label: tuple(taps[label]) for label in wanted}

    return captured


def replace(f: Callable[..., Any], changes: Mapping[str, Callable[[Array, At], Any]]) -> Callable[..., Any]:
    """f with `g(value, at)` in place of every value named `name`, for each `{name: g}`.

    at      the indices of the enclosing scans, outermost first (traced integers): where `capture` stacks this value

    g keeps shape and dtype (ShapeError otherwise). Names are refused as in `capture`.
    """

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return _Interpreter(tuple(changes), dict(changes)).call(f, args, kwargs)[0]

    return replaced


def jaxpr_parts(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, its constants), whether JAX keeps the two apart (0.10) or not (0.12)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _sites(jaxpr: Any, lead: tuple[int, ...] = (), inside: str = "") -> Iterator[tuple[str, Site]]:
    for eqn in jaxpr_parts(jaxpr)[0].eqns:
        if eqn.primitive is name_p:
            aval = eqn.outvars[0].aval
            yield eqn.params["name"], Site((*lead, *aval.shape), str(aval.dtype), inside)
        hidden = inside or ("" if eqn.primitive in OPEN else eqn.primitive.name)
        inner = (*lead, eqn.params["length"]) if eqn.primitive is scan_p else lead
        for sub in core.jaxprs_in_params(eqn.params):
            yield from _sites(sub, inner, hidden)


@dataclasses.dataclass(frozen=True)
class _Interpreter:
    """Runs a jaxpr and collects, or changes, the values of the wanted names. Pure: values go in and come out."""

    wanted: tuple[str, ...]
    changes: Mapping[str, Callable[[Array, At], Any]] | None = None

    def call(self, f: Callable[..., Any], args: tuple, kwargs: dict) -> tuple[Any, Taps]:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args, **kwargs)
        known: dict[str, list[str]] = {}
        for label, site in _sites(closed):
            known.setdefault(label, []).append(site.inside)
        for label in self.wanted:
            if label not in known:
                raise ConfigError(f"tap {label!r}: no activation has this name, expected one of {sorted(known)}")
            if any(known[label]):
                hidden = sorted(set(known[label]) - {""})
                raise ConfigError(
                    f"tap {label!r}: is inside {', '.join(hidden)}, expected a name outside of custom "
                    "derivatives and while loops"
                )
        outs, taps = self.run(closed, (), *map(jnp.asarray, jax.tree.leaves((args, kwargs))))
        return jax.tree.unflatten(jax.tree.structure(shape), outs), taps

    def run(self, jaxpr: Any, at: At, *args: Any) -> tuple[list[Any], Taps]:
        jaxpr, consts = jaxpr_parts(jaxpr)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        taps: Taps = {}
        for eqns, entered, last in self.pieces(jaxpr):
            ins, outs = _interface(eqns, last)
            if entered:
                (eqn,) = eqns
                values, inner = self.enter(eqn, at, [value_of(env, v) for v in eqn.invars])
                outs = eqn.outvars
                _extend(taps, inner)
            else:
                piece = jaxpr.replace(constvars=(), invars=ins, outvars=outs, eqns=eqns)
                values = core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))(*[env[v] for v in ins])
            env.update(zip(outs, values, strict=True))
        return [value_of(env, v) for v in jaxpr.outvars], taps

    def pieces(self, jaxpr: Any) -> list[tuple[list[Any], bool, set[Any]]]:
        """The equations as runs that JAX evaluates and single ones to enter, each with the variables used after it."""
        runs: list[tuple[list[Any], bool]] = []
        for eqn in jaxpr.eqns:
            entered = self.holds(eqn)
            if entered or not runs or runs[-1][1]:
                runs.append(([], entered))
            runs[-1][0].append(eqn)
        after = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
        out = []
        for eqns, entered in reversed(runs):
            out.append((eqns, entered, set(after)))
            after.update(v for eqn in eqns for v in eqn.invars if not isinstance(v, core.Literal))
        return out[::-1]

    def holds(self, eqn: Any) -> bool:
        if eqn.primitive is name_p:
            return eqn.params["name"] in self.wanted
        return any(label in self.wanted for sub in core.jaxprs_in_params(eqn.params) for label, _ in _sites(sub))

    def enter(self, eqn: Any, at: At, args: list[Any]) -> tuple[Sequence[Any], Taps]:
        if eqn.primitive is name_p:
            return self.site(eqn, at, args[0])
        if eqn.primitive is scan_p:
            return self.scan(eqn, at, args)
        if eqn.primitive is cond_p:
            return self.cond(eqn, at, *args)
        if eqn.primitive is remat_p:
            keep = {key: eqn.params[key] for key in ("prevent_cse", "policy")}
            return jax.checkpoint(partial(self.run, eqn.params["jaxpr"], at), **keep)(*args)
        sub = eqn.params["jaxpr" if eqn.primitive is jit_p else "call_jaxpr"]  # inlined, with the shardings it asks for
        outs, taps = self.run(sub, at, *_placed(eqn, "in_shardings", args))
        return _placed(eqn, "out_shardings", outs), taps

    def site(self, eqn: Any, at: At, value: Any) -> tuple[Sequence[Any], Taps]:
        label = eqn.params["name"]
        if self.changes is None:
            value = name(value, label)
            return [value], {label: [value]}
        new = jnp.asarray(self.changes[label](value, at))
        if new.shape != value.shape or new.dtype != value.dtype:
            raise ShapeError(
                f"replace {label!r}: got {new.dtype}{list(new.shape)}, "
                f"expected {value.dtype}{list(value.shape)} as the value it replaces"
            )
        return [name(new, label)], {}  # named again, so that remat policies still find it

    def scan(self, eqn: Any, at: At, args: list[Any]) -> tuple[Sequence[Any], Taps]:
        # Operands are told apart by their rank against the body's, which holds in every version of the primitive:
        # scanned ones have an axis more, and of the others the carry comes last.
        body, p = eqn.params["jaxpr"], eqn.params
        sub = jaxpr_parts(body)[0]
        scanned, stacked = longer(eqn.invars, sub.invars), longer(eqn.outvars, sub.outvars)
        split, carries = len(args) - scanned, len(eqn.outvars) - stacked
        consts, carry, xs = args[: split - carries], args[split - carries : split], args[split:]

        def step(carry: list[Any], x: tuple[Any, list[Any]]) -> tuple[list[Any], tuple[list[Any], Taps]]:
            outs, taps = self.run(body, (*at, x[0]), *consts, *carry, *x[1])
            return outs[:carries], (outs[carries:], taps)

        index = jnp.arange(p["length"]) if self.changes else None
        carry, (ys, taps) = lax.scan(step, carry, (index, xs), p["length"], reverse=p["reverse"], unroll=p["unroll"])
        return [*carry, *ys], taps

    def cond(self, eqn: Any, at: At, index: Any, *args: Any) -> tuple[Sequence[Any], Taps]:
        runs = [partial(self.run, branch, at) for branch in eqn.params["branches"]]
        shapes = [jax.eval_shape(run, *args)[1] for run in runs]

        def branch(i: int, *args: Any) -> tuple[list[Any], list[Taps]]:
            outs, own = runs[i](*args)
            blank = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape) for shape in shapes]
            return outs, [*blank[:i], own, *blank[i + 1 :]]

        outs, sides = lax.switch(index, [partial(branch, i) for i in range(len(runs))], *args)
        taps: Taps = {}
        for side in sides:
            _extend(taps, side)
        return outs, taps


def _interface(eqns: list[Any], after: set[Any]) -> tuple[list[Any], list[Any]]:
    """What a run of equations reads from outside, and what it makes that is used later."""
    made = {v: None for eqn in eqns for v in eqn.outvars}
    read = {v: None for eqn in eqns for v in eqn.invars if not isinstance(v, core.Literal) and v not in made}
    return list(read), [v for v in made if v in after]


def value_of(env: Mapping[Any, Any], v: Any) -> Any:
    """What a variable stands for, or a literal's own value."""
    aval: Any = v.aval
    return jnp.asarray(v.val, aval.dtype) if isinstance(v, core.Literal) else env[v]


def longer(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many of the outer variables have more axes than their inner ones."""
    return sum(o.aval.ndim > i.aval.ndim for o, i in zip(outside, inside, strict=True))


def _extend(taps: Taps, more: Taps) -> None:
    for label, values in more.items():
        taps.setdefault(label, []).extend(values)


def _placed(eqn: Any, field: str, values: Sequence[Any]) -> list[Any]:
    """The values under a jit's own shardings, where it states any."""
    asked = eqn.params.get(field) or [None] * len(values)
    return [
        lax.with_sharding_constraint(v, s) if isinstance(s, jax.sharding.Sharding) else v
        for v, s in zip(values, asked, strict=True)
    ]
