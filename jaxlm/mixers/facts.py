"""What a mixer is and costs, read off its declarations and its jaxpr; nothing is compiled."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.cost import flops
from jaxlm.mixers.base import Mixer
from jaxlm.module import abstract, count, is_spec


@dataclasses.dataclass(frozen=True)
class Facts:
    """weights: numbers; state_bytes: of one row; flops_per_token: forward, a multiply-add is two"""

    paper: str
    weights: int
    state_bytes: int
    flops_per_token: int
    growth: str
    forms: tuple[str, ...]


def facts(mixer: Mixer, room: int = 1024) -> Facts:
    """Facts of a mixer with room for `room` tokens; its cost is the mean over a row of that length."""
    specs = jax.tree.leaves(mixer.state(1, room), is_leaf=is_spec)
    state_bytes = sum(math.prod(s.shape) * jnp.dtype(s.dtype).itemsize for s in specs)
    x = jax.ShapeDtypeStruct((1, room, mixer.reads), jnp.float32)
    cost = flops(lambda p, x: mixer.apply(p, x)[0], abstract(mixer), x)
    return Facts(mixer.paper, count(mixer), state_bytes, cost // room, mixer.growth, mixer.forms)
