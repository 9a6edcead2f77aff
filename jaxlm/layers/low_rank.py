"""A map from the width into heads through a few channels: decays and gates that cost little."""

from collections.abc import Callable

from jaxlm.initializers import FanIn, Initializer, Zeros
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, Params


def low_rank(
    d: int,
    rank: int,
    h: int,
    k: int,
    bias: Initializer | None = Zeros,
    into: Initializer | None = None,
    out: Initializer | None = None,
) -> dict[str, Spec]:
    """Weights of `through`, by fan-in or as said.   in (d, rank), out (rank, h, k), bias (h, k) unless None"""
    into, out = into or FanIn(), out or FanIn()
    p = {
        "in": Spec((d, rank), ("embed", None), into, ins=("embed",)),
        "out": Spec((rank, h, k), ("state", "heads", "head"), out, ins=("state",)),
    }
    return p if bias is None else p | {"bias": Spec((h, k), ("heads", "head"), bias, keep=True)}


def through(params: Params, x: Array, inner: Callable[[Array], Array] | None = None) -> Array:
    """inner(x W_in) W_out + bias.

    params  of `low_rank`
    x       (b, t, d)
    inner   None: identity
    ->      (b, t, h, k)
    """
    y = dense(x, params["in"])
    return dense(y if inner is None else inner(y), params["out"], params.get("bias"))
