"""Log-linear attention: a matrix memory for every scale of the past, over Mamba-2 and over Gated DeltaNet."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Ones
from jaxlm.mixers.base import leaf
from jaxlm.mixers.gated_deltanet import GatedDeltaNet
from jaxlm.mixers.mamba2 import Mamba2
from jaxlm.module import Spec
from jaxlm.ops.cache import positions
from jaxlm.ops.dense import dense
from jaxlm.ops.fenwick import fenwick
from jaxlm.typing import Array, Params, State, wide


def level_weights(d: int, h: int, levels: int) -> dict[str, Spec]:
    """What λ is made of."""
    return {
        "level": Spec((d, h, levels), ("embed", "heads", None), FanIn(), ins=("embed",)),
        "level_scale": Spec((h, levels), ("heads", None), Ones, keep=True),
    }


def split(state: dict[str, Any], levels: int) -> dict[str, Any]:
    """A parent's state with one S a level, and the tokens of the document so far."""
    S = state["S"]
    each = dataclasses.replace(S, shape=(S.shape[0], levels, *S.shape[1:]), axes=("batch", None, *S.axes[1:]))
    return state | {"S": each, "length": leaf(S.shape[0], (), (), "int32")}


def remember(
    params: Params, x: Array, state: State, starts: Array | None, **given: Any
) -> tuple[Array, dict[str, Array]]:
    """o (b, t, h, v), and the memories after the last token.   given: q, k, v, g and beta of `fenwick`"""
    z = dense(wide(x), params["level"])
    weights = jax.nn.softplus(params["level_scale"].astype(z.dtype)[None, None] * z)
    S, length = (None, None) if state is None else (state["S"], state["length"])
    place = positions(starts, length, x.shape[1])
    o, S = fenwick(**given, weights=weights, place=place, state=S, starts=starts)
    return o, {"S": S, "length": jnp.broadcast_to(place[:, -1] + 1, x.shape[:1])}


class LogLinearMamba2(Mamba2):
    """Log-linear Mamba-2 (Guo et al. 2025, 2506.04761, section 3).

    S_t, o_t as in `Mamba2`, but o_t = Σ_l λ_t^l C_t S_t^l + D v_t, where S_t^l holds the places s of its document with
    l = 0 if s = t, else the bit length of t xor s: the last token, and before it 1, 2, 4... tokens at most
    λ_t = softplus(L ⊙ x_t W_λ), L = 1 at first

    x, y     (b, t, d)
    state    S (b, l, h, k, v); conv as in `Mamba2`; length (b), tokens of the document so far
    levels   l; 15 tell 2^14 tokens apart, and the last one also holds what is older. At a time at most log2 t + 1 of
             them are not zero
    """

    levels: int = 15

    paper = "Guo et al. 2025"

    def __post_init__(self):
        super().__post_init__()
        self.check(0 < self.levels < 32, "levels", "a number from 1 to 31")

    def params(self):
        return super().params() | level_weights(self.width, self.h, self.levels)

    def state(self, batch: int, room: int = 0):
        return split(super().state(batch, room), self.levels)

    def remember(
        self, params: Params, x: Array, state: State, starts: Array | None, **given: Any
    ) -> tuple[Array, dict[str, Array]]:
        return remember(params, x, state, starts, **given)


class LogLinearGatedDeltaNet(GatedDeltaNet):
    """Log-linear Gated DeltaNet (Guo et al. 2025, 2506.04761, section 3).

    As `GatedDeltaNet`, but o_t = Σ_l λ_t^l q_t S_t^l / √k: every S^l takes each transition α_t (I - β_t k_t' k_t), and
    what is written goes to S^0. Levels, λ_t and the further state are those of `LogLinearMamba2`.

    x, y     (b, t, d)
    state    S (b, l, h, k, v); conv as in `GatedDeltaNet`; length (b), tokens of the document so far
    levels   l
    """

    levels: int = 15

    paper = "Guo et al. 2025"

    def __post_init__(self):
        super().__post_init__()
        self.check(0 < self.levels < 32, "levels", "a number from 1 to 31")

    def params(self):
        return super().params() | level_weights(self.width, self.h, self.levels)

    def state(self, batch: int, room: int = 0):
        return split(super().state(batch, room), self.levels)

    def remember(
        self, params: Params, x: Array, state: State, starts: Array | None, **given: Any
    ) -> tuple[Array, dict[str, Array]]:
        return remember(params, x, state, starts, **given)
