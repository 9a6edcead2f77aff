"""Two mixers over one sequence, one of which reads it backwards."""

import jax
import jax.numpy as jnp

from jaxlm.mixers.base import Mixer
from jaxlm.module import Module
from jaxlm.typing import Array, Params


class Bidirectional(Module):
    """What each mixer gives where it stands, joined (Schuster & Paliwal 1997): every token sees its whole document.

    No mixer, for it cannot be cut: it has no state, and a sequence is read as a whole.

    x         (b, t, reads)
    y         (b, t, width)
    forward   reads from the first token of a document to the last
    backward  reads from the last to the first
    join      'concat': [forward, backward];  'sum': of two of one width
    """

    forward: Mixer
    backward: Mixer
    join: str = "concat"

    def __post_init__(self):
        for field in ("forward", "backward"):
            self.check(isinstance(getattr(self, field), Mixer), field, "a Mixer")
        self.check(self.join in ("concat", "sum"), "join", "'concat' or 'sum'")
        one, other = self.forward, self.backward
        self.check(one.reads == other.reads, "backward", f"a mixer that reads {one.reads}, as the forward one does")
        fits = self.join == "concat" or one.width == other.width
        self.check(fits, "backward", f"a mixer of width {one.width}, as the two are summed")

    @property
    def reads(self) -> int:
        """Width of x."""
        return self.forward.reads

    @property
    def width(self) -> int:
        """Width of y."""
        return self.forward.width + (self.backward.width if self.join == "concat" else 0)

    @property
    def growth(self) -> str:
        return "quadratic" if "quadratic" in (self.forward.growth, self.backward.growth) else "linear"

    def params(self):
        return {"forward": self.forward.params(), "backward": self.backward.params()}

    def apply(self, params: Params, x: Array, starts: Array | None = None, key: Array | None = None) -> Array:
        """y.   x (b, t, reads); starts (b, t) bool, first tokens of documents; key None: deterministic"""
        keys = (None, None) if key is None else jax.random.split(key)
        one, _ = self.forward.apply(params["forward"], x, None, starts, keys[0])
        turned, first = jnp.flip(x, 1), None if starts is None else jnp.flip(ends(starts), 1)
        other, _ = self.backward.apply(params["backward"], turned, None, first, keys[1])
        other = jnp.flip(other, 1)
        return jnp.concatenate([one, other], axis=-1) if self.join == "concat" else one + other


def ends(starts: Array) -> Array:
    """The last tokens of the documents that begin at `starts`; the row ends its last one.   (b, t) bool"""
    return jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
