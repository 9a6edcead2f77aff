"""M+: MemoryLLM whose dropped slots go to a long-term store, from which a learned retriever calls them back."""

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Zeros
from jaxlm.memory.memoryllm import Front, MemoryLLM
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, Tree, wide


class MPlus(MemoryLLM):
    """MemoryLLM with a store of what its pool dropped; layers read [recalled; θ_l; x] (Wang et al. 2025, section 3).

    score_j = mean_t σ(W_q LN(x_t) · W_k LN(s_j))       the R best of the store, oldest first

    LN is the layer's own norm. An entry begins with `credit`, loses `decay` at each update and gains 1 when it is
    recalled; at 0 it is gone. A full store gives up the entries of least credit.

    state    MemoryLLM's, and in layers: store: slot (l, b, store, d), number and credit (l, b, store); credit 0: free
    store    entries of each layer
    recall   R
    rank     width of the retriever's queries and keys

    What is recalled depends on all of a text, so a text is a question and not a stream. The retriever's scores are
    named 'recall.scores' (see `retriever_loss`): nothing else gives it a gradient.
    """

    store: int = 256
    recall: int = 8
    rank: int = 32
    credit: float = 1e4
    decay: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check(self.store >= self.new, "store", f"at least the {self.new} slots of an update")
        self.check(0 < self.recall <= self.store, "recall", f"1 to the {self.store} entries")
        self.check(self.rank > 0, "rank", "at least 1")
        self.check(self.credit > 0, "credit", "a positive number")
        self.check(self.decay >= 0, "decay", "at least 0")

    def params(self):
        shape = self.body.units, self.width, self.rank  # type: ignore[attr-defined]
        one = Spec(shape, ("layers", "embed", "state"), FanIn(), ins=("embed",))
        return {**super().params(), "retriever": {"query": one, "key": one}}

    def layers(self, params: Params) -> Tree:
        return {**super().layers(params), "retriever": params["retriever"]}

    def state(self, batch: int, room: int = 0):
        inherited = super().state(batch, room)
        shape, axes = (self.body.units, batch, self.store), ("layers", "batch", None)  # type: ignore[attr-defined]
        store = {
            "slot": Spec((*shape, self.width), (*axes, "embed"), Zeros),
            "number": Spec(shape, axes, Zeros, "int32"),
            "credit": Spec(shape, axes, Zeros),
        }
        return {**inherited, "layers": {**inherited["layers"], "store": store}}

    def front(self, state: State) -> Front:
        """What stands in front of a text that is read: what it calls back, then the pool."""
        empty = state["updates"] == 0

        def front(p: Tree, memory: Tree, x: Array) -> tuple[Array, Array, Tree]:
            store = memory["store"]
            scores = name(self.scores(p, store["slot"], x), "recall.scores")
            best = jax.lax.top_k(jnp.where(store["credit"] > 0, scores, -1.0), self.recall)[1]
            real = jnp.take_along_axis(store["credit"], best, axis=1) > 0
            numbers = jnp.where(real, jnp.take_along_axis(store["number"], best, axis=1), -1)
            best = jnp.take_along_axis(best, jnp.argsort(numbers, axis=1), axis=1)  # none first, then by age
            slots = jnp.take_along_axis(store["slot"], best[:, :, None], axis=1)
            none = self.recall - jnp.sum(real, axis=1, dtype=jnp.int32)
            first = jnp.where(empty, self.recall + self.slots, none)
            called = jax.vmap(lambda c, at: c.at[at].add(1.0))(store["credit"], best)
            store = {**store, "credit": jnp.where(store["credit"] > 0, called, 0.0)}
            return jnp.concatenate([slots, memory["pool"]], axis=1), first, {**memory, "store": store}

        return front

    def scores(self, p: Tree, slots: Array, x: Array) -> Array:
        """How much a text asks for each slot, 0 to 1.   (b, s, d), (b, t, d) -> (b, s)"""
        normed = lambda x: self.block.normalise.apply(p["block"]["norm"], x)  # type: ignore[attr-defined]  # noqa: E731
        query = wide(dense(normed(x), p["retriever"]["query"]))
        key = wide(dense(normed(slots.astype(x.dtype)), p["retriever"]["key"]))
        return jnp.mean(jax.nn.sigmoid(jnp.einsum("btk,bsk->bts", query, key)), axis=1)

    def push(self, state: State, new: Array, keys: Array) -> tuple[State, dict[str, Array]]:
        """As MemoryLLM's; what is dropped goes into the store."""
        state, dropped = super().push(state, new, keys)
        store = state["layers"]["store"]
        credit = jnp.maximum(store["credit"] - self.decay, 0.0)
        place = jax.lax.top_k(-credit, self.new)[1]  # free entries first, in their order
        fresh = {
            "slot": dropped["slot"],
            "number": jnp.broadcast_to(dropped["number"][None], place.shape),
            "credit": jnp.full(place.shape, self.credit, credit.dtype),
        }

        def put(old: Array, new: Array) -> Array:
            after = jax.vmap(jax.vmap(lambda old, at, new: old.at[at].set(new)))(old, place, new.astype(old.dtype))
            return jnp.where(dropped["real"].reshape(1, -1, *(1,) * (old.ndim - 2)), after, old)

        store = jax.tree.map(put, {**store, "credit": credit}, fresh)
        return {**state, "layers": {**state["layers"], "store": store}}, dropped


def retriever_loss(scores: Array, wanted: Array, store: Tree) -> Array:
    """Binary cross-entropy of scores with what should be recalled, each kind of entry as heavy as the other.

    scores   'recall.scores' as captured        (l, b, s)
    wanted   bool                               (l, b, s)
    store    of a state: its free entries do not count
    ->       ()
    """
    if scores.shape != wanted.shape:
        raise ShapeError(f"wanted: got {wanted.shape}, expected the shape of the scores, {scores.shape}")
    held = store["credit"] > 0
    total = jnp.zeros((), scores.dtype)
    for these, p in ((held & wanted, scores), (held & ~wanted, 1 - scores)):
        size = jnp.maximum(jnp.sum(these), 1).astype(p.dtype)
        total = total - jnp.sum(jnp.where(these, jnp.log(jnp.maximum(p, 1e-6)), 0.0)) / size
    return total
