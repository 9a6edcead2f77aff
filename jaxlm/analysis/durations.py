"""Language models in continuous time: tokens last for a while, and stand at real places (Marro et al. 2025).

    model = continuous(model)                            the same weights, the same outputs
    run(model.apply, durations)(params, tokens)          tokens that last for `durations`

A token of duration δ counts δ times in attention: ln δ is added to its score. It stands at p, by default where its
time ends: the sum of the durations up to it, less 1, so that tokens of duration 1 stand at 0, 1, 2, ... All tokens
that do not stand later are seen: copies of a token at one place see each other.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError
from jaxlm.layers.rope import Rope
from jaxlm.mixers.attention import Attention
from jaxlm.module import rebuild
from jaxlm.taps import name, replace
from jaxlm.typing import Array, Params, State, wide

DURATION, PLACE = "time.duration", "time.place"


class ContinuousAttention(Attention):
    """Attention whose tokens have durations and places, which are taps: 1 and 0, 1, 2, ... unless they are replaced.

    x, y     (b, t, d)
    Its weights are those of Attention. It is for evaluation: no state, no documents, no window.
    Marro et al. 2025, section 3.
    """

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        if state is not None or starts is not None:
            raise ConfigError("ContinuousAttention: state, starts: expected None, one whole sequence a row")
        (b, t), dtype = x.shape[:2], wide(x).dtype
        lasts = name(jnp.ones((b, t), dtype), DURATION)
        place = name(jnp.broadcast_to(jnp.arange(t, dtype=dtype)[None], (b, t)), PLACE)
        q, k, v = self.project(params, x)
        if isinstance(self.position, Rope):
            q, k = self.position.turn(q, place), self.position.turn(k, place)
        q = (q * self.k**-0.5).reshape(b, t, self.g, -1, self.k)
        scores = jnp.einsum("bqgrk,bsgk->bgrqs", q, k, preferred_element_type=dtype)
        scores = scores + jnp.log(lasts)[:, None, None, None]
        seen = (place[:, None] <= place[:, :, None])[:, None, None]
        probs = name(jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), "attn.probs")
        y = jnp.einsum("bgrqs,bsgk->bqgrk", probs.astype(v.dtype), v).reshape(b, t, self.h, self.k)
        return self.give(params, y), None


def continuous(model: Any) -> Any:
    """The model with ContinuousAttention for every Attention; the same weights.

    Raises ConfigError for attention with a window, sets, or positions other than Rope or none.
    """

    def change(part: Any) -> Any:
        if type(part) is not Attention:
            return part
        if part.window is not None or part.sets is not None or not isinstance(part.position, Rope | None):
            raise ConfigError(f"continuous: {part}: expected no window, no sets, and Rope or no position")
        return ContinuousAttention(**{f.name: getattr(part, f.name) for f in fields(part)})  # type: ignore[arg-type]

    return rebuild(model, change)


def run(f: Callable[..., Any], durations: Array, places: Array | None = None) -> Callable[..., Any]:
    """f of a continuous model, whose tokens last for `durations` and stand at `places`; differentiable by both.

    durations   positive                                            (b, t)
    places      not falling; None: where each token's time ends     (b, t)
    """
    at = jnp.cumsum(durations, axis=1) - 1 if places is None else places
    put = lambda new: lambda old, _: jnp.asarray(new, old.dtype)  # noqa: E731
    return replace(f, {DURATION: put(durations), PLACE: put(at)})
