"""Every law can fail: a healthy mixer keeps all of them, and each mutant of it breaks the law named beside it."""

import jax
import jax.numpy as jnp
import pytest
from laws import numerics, placing, running
from laws.subject import LENGTHS, Subject
from laws.suite import Laws, subjects

from jaxlm.errors import UnknownAxis
from jaxlm.initializers import FanIn, Normal
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.models import LM
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.scan import scan
from jaxlm.sharding import identity
from jaxlm.typing import wide


class Healthy(Mixer):
    """s_t = σ(a) s_{t-1} + W x_t,   y_t = V tanh(s_t)."""

    width: int = 16

    def params(self):
        d = self.width
        return {
            "in": Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",)),
            "out": Spec((d, d), ("state", "embed"), FanIn(), ins=("state",)),
            "decay": Spec((d,), ("state",), Normal(1.0), keep=True),
        }

    def state(self, batch, room=0):
        return {"s": leaf(batch, (self.width,), ("state",))}

    def step(self, params, x, state):
        s = jax.nn.sigmoid(wide(params["decay"]))[None] * state["s"] + wide(dense(x, params["in"]))
        return self.read(params, s, x.dtype), {"s": s}

    def read(self, params, s, dtype):
        return dense(jnp.tanh(s).astype(dtype), params["out"])


class Mutant(Healthy):
    """`around` changes what goes in or comes out of `apply` (not of `step`)."""

    def apply(self, params, x, state=None, starts=None, key=None):
        return self.around(lambda x, s, b: Healthy.apply(self, params, x, s, b), x, state, starts)

    def around(self, f, x, state, starts):
        return f(x, state, starts)


class DropsTheCarry(Mutant):
    def around(self, f, x, state, starts):
        return f(x, None, starts)


class DropsTheCarrysGradient(Mutant):
    def around(self, f, x, state, starts):
        return f(x, jax.lax.stop_gradient(state), starts)


class ShiftsByOne(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1], state


class SeesTheFuture(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return y + 0.01 * jnp.roll(x, -1, axis=1), state


class StepsOtherwise(Mutant):
    def step(self, params, x, state):
        y, state = Healthy.step(self, params, x, state)
        return y * 1.001, state

    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return y / 1.001 * (1 if x.shape[1] > 1 else 1.001), state


class IgnoresStarts(Mutant):
    def around(self, f, x, state, starts):
        return f(x, state, None)


class ResetsByProduct(Healthy):
    def apply(self, params, x, state=None, starts=None, key=None):
        state, _ = self.enter(params, x, state, starts)
        going = jnp.ones(x.shape[:2]) if starts is None else 1 - starts.astype(jnp.float32)
        step = lambda xs, s: self.step(params, xs[0], {"s": s["s"] * xs[1][:, None].astype(s["s"].dtype)})  # noqa: E731
        return scan(step, (x, going), state)


class IsolatesNothing(Healthy):
    def apply(self, params, x, state=None, starts=None, key=None):
        state, fresh = self.enter(params, x, state, starts)
        return scan(lambda x, s: self.step(params, x, s), x, state, starts, fresh)


class HidesTheSpoiled(Mutant):
    def around(self, f, x, state, starts):
        return f(jnp.where(jnp.isfinite(x), x, 0), state, starts)


class MixesRows(Mutant):
    def around(self, f, x, state, starts):
        return f(x - 0.1 * jnp.mean(x, axis=0, keepdims=True), state, starts)


class CountsRows(Mutant):
    def around(self, f, x, state, starts):
        return f(x / x.shape[0], state, starts)


class NamesNoRule(Healthy):
    def params(self):
        return {**Healthy.params(self), "in": Spec((16, 16), ("embed", "columns"), FanIn(), ins=("embed",))}


class SplitsNothing(Healthy):
    def params(self):
        whole = Healthy.params(self).items()
        return {k: Spec(s.shape, (None,) * len(s.shape), Normal(0.3), keep=s.keep) for k, s in whole}


class CountsDevices(LM):
    def hidden(self, params, tokens, state=None, starts=None, key=None, constrain=identity):
        x, state = LM.hidden(self, params, tokens, state, starts, key, constrain)
        return (x if constrain is identity else x / jax.device_count()), state


class NarrowsItsState(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return y, jax.tree.map(lambda s: s.astype(jnp.float16), state)


class FollowsXsType(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return y, jax.tree.map(lambda s: s.astype(x.dtype), state)


class GrowsATree(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        return y, {**state, "last": y[:, -1]}


class IsNobodyElse(Healthy):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class EqualButTwo(Healthy):
    def __hash__(self):
        return id(self)


class HasADeadWeight(Healthy):
    def params(self):
        return {**Healthy.params(self), "unused": Spec((16, 16), ("embed", "state"), FanIn(), ins=("embed",))}


@jax.custom_vjp
def bent_tanh(x):
    return jnp.tanh(x)


bent_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2) * (1 + 1e-6),))


class BendsItsGradient(Healthy):
    def read(self, params, s, dtype):
        return dense(bent_tanh(s).astype(dtype), params["out"])


class ComputesInFloat32(Healthy):
    def read(self, params, s, dtype):
        return dense(jnp.tanh(s.astype(jnp.float32)).astype(dtype), params["out"])


class LosesBits(Healthy):
    def read(self, params, s, dtype):
        kept = 1 if dtype == jnp.bfloat16 else 23
        return Healthy.read(self, params, jax.lax.reduce_precision(s, 8, kept), dtype)


class Explodes(Healthy):
    def step(self, params, x, state):
        s = 1.02 * state["s"] + wide(dense(x, params["in"])) * jax.nn.sigmoid(wide(params["decay"]))[None]
        return self.read(params, s, x.dtype), {"s": s}


class HidesASquare(Mutant):
    def around(self, f, x, state, starts):
        y, state = f(x, state, starts)
        scores = jnp.tril(jnp.einsum("btd,bsd->bts", x, x))
        return y + jnp.einsum("bts,bsd->btd", scores, x), state


class HoldsASquare(HidesASquare):
    growth = "quadratic"  # says so, but (t, t) scores must not lie in memory


class ClaimsASquare(Healthy):
    growth = "quadratic"


class HoardsRoom(Healthy):
    def state(self, batch, room=0):
        return {**Healthy.state(self, batch, room), "past": leaf(batch, (room, 1), ("slots", None))}

    def step(self, params, x, state):
        y, new = Healthy.step(self, params, x, {"s": state["s"]})
        return y, {**new, "past": state["past"]}


def language(cls) -> LM:
    return cls(24, 16, Healthy())


MUTANTS = [
    (running.cut, DropsTheCarry, AssertionError),
    (running.cut, DropsTheCarrysGradient, AssertionError),
    (running.cut, ShiftsByOne, AssertionError),
    (running.cut, SeesTheFuture, AssertionError),
    (running.decode, SeesTheFuture, AssertionError),
    (running.decode, StepsOtherwise, AssertionError),
    (running.packing, IgnoresStarts, AssertionError),
    (running.poison, ResetsByProduct, AssertionError),
    (running.poison, IsolatesNothing, AssertionError),
    (running.poison, HidesTheSpoiled, AssertionError),
    (running.decode, CountsRows, AssertionError),
    (running.rows_apart, MixesRows, AssertionError),
    (placing.placed, NamesNoRule, UnknownAxis),
    (placing.placed, SplitsNothing, AssertionError),
    (placing.placed, CountsDevices, AssertionError),
    (placing.types, NarrowsItsState, AssertionError),
    (placing.types, FollowsXsType, AssertionError),
    (placing.types, GrowsATree, AssertionError),
    (placing.traces_once, IsNobodyElse, AssertionError),
    (placing.traces_once, EqualButTwo, AssertionError),
    (placing.every_weight_learns, HasADeadWeight, AssertionError),
    (numerics.differences, BendsItsGradient, AssertionError),
    (numerics.differences, ComputesInFloat32, AssertionError),
    (numerics.low_precision, LosesBits, AssertionError),
    (numerics.stays_finite, Explodes, AssertionError),
    (numerics.cost, HidesASquare, AssertionError),
    (numerics.cost, HoldsASquare, AssertionError),
    (numerics.cost, ClaimsASquare, AssertionError),
    (numerics.cost, HoardsRoom, AssertionError),
]


@subjects({"Healthy": Subject(Healthy()), "Healthy LM": Subject(language(LM), 24)})
class TestHealthy(Laws):
    pass


@pytest.mark.parametrize(("law", "mutant", "error"), MUTANTS, ids=[f"{f.__name__}-{m.__name__}" for f, m, _ in MUTANTS])
def test_the_law_rejects(law, mutant, error):
    subject = Subject(language(mutant), 24) if issubclass(mutant, LM) else Subject(mutant())
    with pytest.raises(error):
        law(subject)


def test_a_product_reset_keeps_the_law_of_packing_until_something_is_not_finite():
    running.packing(Subject(ResetsByProduct()), LENGTHS)
