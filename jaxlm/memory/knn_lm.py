"""kNN-LM: a language model that looks up what followed the most similar contexts of a text (Khandelwal et al. 2020).

    store = memorise(base, params, rows)                              keys and next tokens of a text
    model = KNNLM(base, entries=len(store["tokens"]), weight=0.25, temperature=10.0)
    logits, state = model.apply({"base": params, "store": store}, tokens)

It is a language model as any other: it is cut, packed, scored and sampled from as its base is.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ShapeError
from jaxlm.initializers import Zeros
from jaxlm.models.tokens import Constrain, TokenModel
from jaxlm.module import Spec, abstract
from jaxlm.ops.losses import nats
from jaxlm.sharding import identity
from jaxlm.taps import capture, names
from jaxlm.typing import Array, Params, State, wide

Store = dict[str, Array]
TAP = "mlp.in"  # the input of a feed-forward block, after its norm
QUERIES = 256  # searched at once


@dataclass(frozen=True)
class Exact:
    """The nearest keys, all distances computed, `chunk` keys at a time."""

    chunk: int = 32768

    def nearest(self, queries: Array, keys: Array, k: int) -> Array:
        """Places of the k keys of least distance, the nearest first.   (m, d), (n, d) -> (m, k) int32"""
        n, d = keys.shape
        # The k best of a chunk are in the k groups of best maximum: two short sorts in place of a long one.
        group = max(1, math.isqrt(min(self.chunk, n) // k))
        size = -(-max(k * group, min(self.chunk, n)) // group) * group
        pieces = jnp.pad(keys, [(0, -n % size), (0, 0)]).reshape(-1, size, d)
        places = jnp.arange(len(pieces) * size, dtype=jnp.int32).reshape(-1, size // group, group)

        def one(query: Array) -> Array:
            def better(best: tuple[Array, Array], piece: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
                keys, places = piece
                near = jnp.where(places < n, _nearness(query, keys).reshape(places.shape), -jnp.inf)
                groups = jax.lax.top_k(jnp.max(near, axis=-1), k)[1]
                near = jnp.concatenate([best[0], near[groups].reshape(-1)])
                places = jnp.concatenate([best[1], places[groups].reshape(-1)])
                near, pick = jax.lax.top_k(near, k)
                return (near, places[pick]), None

            none = jnp.full((k,), -jnp.inf, _nearness(query, keys[:1]).dtype), jnp.zeros((k,), jnp.int32)
            return jax.lax.scan(better, none, (pieces, places))[0][1]

        return jax.lax.map(one, queries, batch_size=QUERIES)


@dataclass(frozen=True)
class Approximate:
    """As Exact, by the accelerator's own search; `recall` is the share of true neighbours that is aimed at.

    Chern et al. 2022 (jax.lax.approx_max_k), quick on a TPU and exact elsewhere.
    """

    recall: float = 0.95

    def nearest(self, queries: Array, keys: Array, k: int) -> Array:
        """Places of k near keys.   (m, d), (n, d) -> (m, k) int32"""
        one = lambda q: jax.lax.approx_max_k(_nearness(q, keys), k, recall_target=self.recall)[1]  # noqa: E731
        return jax.lax.map(one, queries, batch_size=QUERIES)


def faiss_nearest(
    queries: np.ndarray, keys: np.ndarray, k: int, clusters: int = 0, probes: int = 32, seed: int = 0
) -> np.ndarray:
    """Places of k near keys by the library faiss (extra `faiss`), on the host; the paper's setting has 4096 clusters.

    clusters   of keys, of which `probes` are searched (an inverted file); 0: exact
    ->         (m, k) int64, -1 where the probed clusters hold fewer than k keys
    """
    import faiss  # type: ignore[import-not-found]

    keys, queries = (np.ascontiguousarray(x, np.float32) for x in (keys, queries))
    index = faiss.IndexFlatL2(keys.shape[1])
    if clusters:
        index = faiss.IndexIVFFlat(index, keys.shape[1], clusters)
        index.cp.seed = seed
        index.train(keys)
        index.nprobe = probes
    index.add(keys)
    return index.search(queries, k)[1]


def _nearness(query: Array, keys: Array) -> Array:
    """|q|² - |q - k|²: what orders keys by their distance.   (d), (n, d) -> (n)"""
    query, keys = wide(query), wide(keys)
    return 2 * jnp.dot(keys, query, precision="highest") - jnp.sum(jnp.square(keys), axis=-1)


def distances(queries: Array, keys: Array, places: Array) -> Array:
    """Squared distances to the keys at some places, inf at place -1.   (m, d), (n, d), (m, k) -> (m, k)"""
    keys = jnp.asarray(keys)
    one = lambda q, at: jnp.sum(jnp.square(wide(q)[None] - wide(keys[at])), axis=-1)  # noqa: E731
    found = jax.lax.map(lambda x: one(*x), (queries, places), batch_size=QUERIES)
    return jnp.where(places < 0, jnp.inf, found)


def vote(distance: Array, tokens: Array, vocab: int, temperature: float | Array) -> Array:
    """p(y) ∝ Σ_i 1[tokens_i = y] exp(-distance_i / temperature).   (m, k), (m, k) -> (m, vocab)"""
    shares = jax.nn.softmax(-distance / temperature, axis=-1)
    return jax.vmap(lambda p, w: jnp.zeros((vocab,), p.dtype).at[w].add(p))(shares, tokens)


def mixed(logits: Array, p: Array, weight: float | Array) -> Array:
    """Log of weight p + (1 - weight) softmax(logits).   (..., vocab)"""
    own = jax.nn.log_softmax(wide(logits), axis=-1)
    return jnp.logaddexp(jnp.log(p) + jnp.log(weight), own + jnp.log1p(-jnp.asarray(weight, own.dtype)))


def activation(base: TokenModel, tap: str, at: int) -> Callable[..., tuple[tuple[Array, State], Array]]:
    """f(params, tokens, state, starts) -> (logits, state), and an activation (b, t, d) of the run.

    tap   a name of `jaxlm.taps`
    at    which, in the order of the layers; -1 is the last
    """

    def run(*args: Any) -> tuple[tuple[Array, State], Array]:
        out, seen = capture(base.apply, [tap])(*args)
        sites = [s.reshape(-1, *s.shape[-3:]) for s in seen[tap]]
        same = len({s.shape for s in sites}) == 1  # the places of a pattern that is scanned: in turn
        layers = jnp.stack(sites, 1).reshape(-1, *sites[0].shape[1:]) if same else jnp.concatenate(sites)
        return out, layers[at]

    return run


@lru_cache(maxsize=256)
def width_of(base: TokenModel, tap: str) -> int:
    """Width of an activation."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return names(lambda p, z: base.apply(p, z)[0], abstract(base), tokens)[tap][-1].shape[-1]


class Interpolated(TokenModel):
    """A base language model and a second opinion that reads one of its activations.

    p = weight p_memory + (1 - weight) p_base        logits = log p

    tokens   (b, t) int
    logits   (b, t, vocab) at least float32
    state    that of the base
    weight   λ; at 0 the base alone, to the bit
    tap, at  the activation, see `activation`
    """

    base: Any  # a TokenModel
    weight: float = 0.25
    tap: str = TAP
    at: int = -1

    def __post_init__(self):
        self.check(isinstance(self.base, TokenModel), "base", "a model of tokens")
        self.check(0 <= self.weight <= 1, "weight", "a share from 0 to 1")

    @property
    def vocab(self) -> int:
        return self.base.vocab

    @property
    def growth(self) -> str:
        return self.base.growth

    def state(self, batch: int, room: int = 0):
        return self.base.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """The base's state before the first token."""
        return self.base.start(params["base"], batch, room)

    @abstractmethod
    def recall(self, params: Params, x: Array) -> Array:
        """p_memory from the activation.   (m, d) -> (m, vocab)"""

    def apply(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """Logits of the token that follows each token.   (b, t) -> (b, t, vocab), state"""
        if self.weight == 0:
            return self.base.apply(params["base"], tokens, state, starts, key, constrain)
        run = activation(self.base, self.tap, self.at)
        (logits, state), x = run(params["base"], tokens, state, starts, key)
        p = self.recall(params, x.reshape(-1, x.shape[-1])).reshape(logits.shape)
        return constrain(mixed(logits, p, self.weight), ("batch", "time", "vocab")), state

    def loss(
        self,
        params: Params,
        tokens: Array,
        targets: Array,
        weights: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[tuple[Array, Array], State]:
        """((sum of weighted nats, sum of weights), state).   all (b, t)"""
        logits, state = self.apply(params, tokens, state, starts, key, constrain)
        return (jnp.sum(nats(logits, targets) * weights), jnp.sum(weights)), state


class KNNLM(Interpolated):
    """p = λ p_kNN + (1 - λ) p_base      p_kNN(y) ∝ Σ_{(k, y) near x} exp(-|k - x|² / temperature)

    The datastore is a part of the weights: keys (n, d), tokens (n).

    entries      n
    neighbours   that vote
    temperature  of their votes; the paper's is 1, and it pays to choose it (Xu et al. 2023)
    search       Exact or Approximate
    """

    entries: int = 1
    neighbours: int = 64
    temperature: float = 1.0
    search: Exact | Approximate = Exact()

    def __post_init__(self):
        super().__post_init__()
        self.check(0 < self.neighbours <= self.entries, "neighbours", f"1 to the {self.entries} entries")
        self.check(self.temperature > 0 and math.isfinite(self.temperature), "temperature", "a positive number")

    def params(self):
        keys = Spec((self.entries, width_of(self.base, self.tap)), ("slots", "embed"), Zeros)
        return {"base": self.base.params(), "store": {"keys": keys, "tokens": _tokens(self.entries)}}

    def recall(self, params: Params, x: Array) -> Array:
        keys, tokens = params["store"]["keys"], params["store"]["tokens"]
        at = self.search.nearest(x, keys, self.neighbours)
        return vote(distances(x, keys, at), tokens[at], self.vocab, self.temperature)


def _tokens(entries: int) -> Spec:
    return Spec((entries,), ("slots",), Zeros, "int32")


def memorise(
    base: TokenModel,
    params: Params,
    rows: np.ndarray,
    starts: np.ndarray | None = None,
    tap: str = TAP,
    at: int = -1,
    batch: int = 16,
) -> Store:
    """The datastore of a text: at each token but a row's last the activation, and the token that follows.

    rows     (r, t + 1) int      each read from a fresh state
    starts   (r, t + 1) bool     first tokens of documents: none is told by what stands before it
    ->       keys (n, d), tokens (n) int32; in the order of the text
    """
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ShapeError(f"rows {rows.shape}: expected (r, t + 1) with t at least 1")
    keys = []
    for i in range(0, len(rows), batch):
        own = None if starts is None else jnp.asarray(starts[i : i + batch, :-1])
        keys.append(np.asarray(_keys(base, tap, at, params, jnp.asarray(rows[i : i + batch, :-1]), own)))
    told = np.ones(rows[:, 1:].shape, bool) if starts is None else ~starts[:, 1:]
    return {"keys": jnp.asarray(np.concatenate(keys)[told]), "tokens": jnp.asarray(rows[:, 1:][told], jnp.int32)}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _keys(base: TokenModel, tap: str, at: int, params: Params, tokens: Array, starts: Array | None) -> Array:
    return activation(base, tap, at)(params, tokens, None, starts)[1]
