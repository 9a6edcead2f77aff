"""How transformers learn topic structure (Li, Li and Risteski 2023): one layer that guesses masked words of topics.

With uniform attention a layer reads m, the shares of words in a document, and answers W m; squared error makes of W the
regression of a masked word on m. Documents of few topics leave it block-constant: a within a topic, b between topics, c
for [MASK]. With q, r, k the shares of words shown as they are, of random ones and of masks, and g = 1 / (q v),
    a - b = g        (q + r) b + r g / T + k c = 0        in long documents; of length n, W_n = E[y m'] E[m m']^-1
also splits the word itself off. Embeddings E alone learn E'E = W_n; attention alone, W fixed, looks at its own topic.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.topics import best_attention, block_matrix, block_optimum, long_optimum, optimum, shares
from jaxlm.data.topics import Masking, Topics, counts
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import cosine
from jaxlm.typing import Array, Params

TITLE = "How do transformers learn topic structure: towards a mechanistic understanding"
QUESTION = "What do embeddings and attention of one layer converge to on documents of topics?"
ROWS = (124,)
NEEDS = ()
HEADLINE = "embeddings, squared error: same over other topics, σ, least of the seeds"
LOSSES = ("squared error", "cross-entropy")
KINDS = ("same word", "same topic", "other topics")
GAP = np.array([0.0, 1.0, -1.0])


@dataclass(frozen=True)
class Settings:
    """The documents, the layer and its training.

    Args:
        topics: T.
        words: v of a topic.
        taken: τ topics of a document.
        length: n of a document.
        lengths: n of the regressions.
        documents: For training, and for each regression.
        asked: Words of a document that attention is asked for, at most.
        width: Of the embeddings.
        keys: Width of queries and keys.
        scale: Standard deviation of the first weights.
        seeds: Of documents and weights.
        steps: Of Adam.
        batch: Documents a step.
        rate: Of Adam.
    """

    topics: int = 10
    words: int = 10
    taken: int = 4
    length: int = 128
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    documents: int = 10_000
    asked: int = 20
    width: int = 100
    keys: int = 32
    scale: float = 0.03
    seeds: int = 3
    steps: int = 1000
    batch: int = 40
    rate: float = 1e-2


BUDGETS = {
    "smoke": Settings(3, 2, 2, 8, (8,), 60, 3, 4, 2, seeds=2, steps=4, batch=4),
    "cpu": Settings(),
    "gpu": Settings(lengths=(32, 64, 128, 256, 512, 1024), documents=100_000, seeds=10, steps=10_000, batch=400),
}


def kinds(matrix: np.ndarray, topics: Topics) -> np.ndarray:
    """Means of entries in the rows of each topic: same word, same topic, other topics.   (..., n, n) -> (..., T, 3)"""
    same, one = topics.of[:, None] == topics.of[None], np.eye(topics.vocab, dtype=bool)
    pick = np.stack([one, same & ~one, ~same], axis=-1).astype(float)
    mean = np.einsum("...ij,ijk->...ik", np.asarray(matrix, float), pick / pick.sum(axis=1, keepdims=True))
    return mean.reshape(*mean.shape[:-2], topics.topics, topics.words, 3).mean(axis=-2)


def sigmas(matrix: np.ndarray, topics: Topics) -> np.ndarray:
    """By how many standard errors over the topics same-topic entries exceed the others.   (..., T v, T v) -> (...)"""
    gap = kinds(matrix, topics) @ GAP
    return gap.mean(-1) / (gap.std(-1, ddof=1) / np.sqrt(topics.topics))


def sample(s: Settings, topics: Topics, masking: Masking, rng: np.random.Generator, length: int) -> dict:
    """Documents as bags: m (n, T v + 1), targets (n, T v); and places to ask for: shown, word, weight (n, asked)."""
    words = topics.documents(rng, s.documents, length)
    shown, asked = masking.hide(rng, words, topics.vocab)
    order = np.argsort(~asked, axis=1, kind="stable")[:, : s.asked]
    places = {"shown": shown, "word": words, "weight": asked.astype(np.float32)}
    return {
        "m": counts(shown, topics.vocab + 1) / np.float32(length),
        "targets": counts(words, topics.vocab, asked),
        **{name: np.take_along_axis(x, order, axis=1) for name, x in places.items()},
    }


def regression(found: dict) -> np.ndarray:
    """W of least squares on sampled documents.   -> (T v, T v + 1)"""
    m, targets = (np.asarray(found[k], np.float64) for k in ("m", "targets"))
    moment = (m * targets.sum(axis=1, keepdims=True)).T @ m
    return np.linalg.solve(moment + 1e-9 * np.trace(moment) * np.eye(len(moment)), m.T @ targets).T


def attended(params: Params, m: Array, shown: Array) -> Array:
    """What attention makes of a document's shares, seen from the words shown.   (b, n), (b, a) -> (b, a, n)"""
    scores = params["query"][shown] @ params["key"].T / params["key"].shape[1] ** 0.5
    mass = m[:, None] * jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


def error(out: Array, word: Array, entropy: Array) -> Array:
    """Cross-entropy, or the squared distance to a one-hot word.   (..., n), (...) -> (...)"""
    square = jnp.sum(out**2, axis=-1) - 2 * jnp.take_along_axis(out, word[..., None], axis=-1)[..., 0] + 1
    return jnp.where(entropy, nats(out, word), square)


def learn(s: Settings, size: int, fixed: Array, each: dict, lab: Lab) -> dict[str, np.ndarray]:
    """Embeddings under uniform attention, and attention of one-hot embeddings, both losses, all seeds at once.

    The two share no weight, so that one descent on the sum of their losses trains each alone. With squared error
    attention has W fixed; with cross-entropy, for which no finite W is best, it learns W beside.
    ->      gram, E'E, and weights, rows sum to n (looks, r, n, n); r counts losses, then seeds
    """

    def begin(key: Array, each: dict) -> Params:
        shapes = {"embed": s.width, "query": s.keys, "key": s.keys, "value": size}
        keys = zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True)
        return {name: s.scale * jax.random.normal(k, (size + 1, width)) for k, (name, width) in keys}

    def guess_bags(params: Params, m: Array, targets: Array, entropy: Array) -> Array:
        out = m @ params["embed"] @ params["embed"][:-1].T
        number, hit = jnp.sum(targets, axis=-1), jnp.sum(targets * out, axis=-1)
        square = number * (jnp.sum(out**2, axis=-1) + 1) - 2 * hit
        soft = number * jax.nn.logsumexp(out, axis=-1) - hit
        return jnp.sum(jnp.where(entropy, soft, square)) / jnp.sum(number)

    def loss(params: Params, key: Array, step: Array, each: dict) -> Array:
        at = jax.random.randint(key, (s.batch,), 0, s.documents)
        entropy, m = each["entropy"], each["m"][at]
        out = attended(params, m, each["shown"][at]) @ jnp.where(entropy, params["value"], fixed.T)
        weight = each["weight"][at]
        asked = jnp.sum(weight * error(out, each["word"][at], entropy)) / jnp.maximum(jnp.sum(weight), 1)
        return guess_bags(params, m, each["targets"][at], entropy) + asked

    def watch(params: Params, key: Array, each: dict) -> dict:
        even = jnp.append(jnp.full(size, 1 / size, jnp.float32), jnp.float32(0))[None]
        words = params["embed"][:-1]
        return {"gram": words @ words.T, "weights": size * attended(params, even, jnp.arange(size)[None])[0, :, :-1]}

    keys = jnp.concatenate([jax.random.split(lab.key, s.seeds)] * len(LOSSES))
    tx, every = optax.adam(cosine(s.rate, s.steps, s.steps // 20)), max(1, s.steps // 10)
    return fit(keys, begin, loss, tx, steps=s.steps, every=every, watch=watch, each=each, tell=lab.tell).watched


def run(s: Settings, lab: Lab) -> Result:
    topics, masking = Topics(s.topics, s.words, s.taken), Masking()
    rng = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    drawn = [sample(s, topics, masking, rng, s.length) for _ in range(s.seeds)]
    measured = np.array(
        [kinds(regression(sample(s, topics, masking, rng, n))[:, :-1], topics).mean(0) for n in s.lengths]
    )
    predicted = np.array([kinds(optimum(topics, masking, n)[:, :-1], topics).mean(0) for n in s.lengths])
    lab.tell(0.1)
    each = {k: jnp.asarray(np.stack([d[k] for d in drawn] * len(LOSSES))) for k in drawn[0]}
    each["entropy"] = jnp.repeat(jnp.arange(len(LOSSES)) == 1, s.seeds)
    fixed = block_matrix(topics, *block_optimum(topics, masking))
    found = learn(s, topics.vocab, jnp.asarray(fixed, jnp.float32), each, lab.part("layer", 0.1, 1.0))
    want, best = kinds(optimum(topics, masking, s.length)[:, :-1], topics).mean(0), best_attention(topics, masking)
    shape = (-1, len(LOSSES), s.seeds, topics.vocab, topics.vocab)
    gram, weights = (found[name].reshape(shape) for name in ("gram", "weights"))
    gaps = [x @ GAP for x in (measured, predicted)]
    claims = (
        *of_forms(topics, masking, fixed),
        Claim("regressions: same less other topics over that of W_n, farthest from 1",
              float(np.abs(gaps[0] / gaps[1] - 1).max()), high=0.05),
        *of_training(topics, gram[-1], weights[-1]),
        *of_sizes(topics, gram[-1], weights[-1], want, best),
    )  # fmt: skip
    series = {
        "lengths": s.lengths, "measured": measured, "predicted": predicted, "steps": s.steps,
        "gram": kinds(gram, topics).mean((2, 3)), "weights": kinds(weights, topics).mean((2, 3)),
        "want": want, "best": best, "picture": gram[-1, 0, 0],
    }  # fmt: skip
    return Result(claims, series)


def of_forms(topics: Topics, masking: Masking, fixed: np.ndarray) -> tuple[Claim, ...]:
    """The closed form beside least squares in float64."""
    (a, b, _), q = block_optimum(topics, masking), shares(masking)[0]
    far = np.abs(long_optimum(topics, masking) - fixed).max()
    word, topic, other = kinds(optimum(topics, masking, 10**6)[:, :-1], topics).mean(0)
    whole = (word + (topics.words - 1) * topic) / topics.words - other
    return (
        Claim("long documents: W by least squares, farthest entry from a, b, c", far, high=1e-9),
        Claim("long documents: a", a),
        Claim("long documents: b", b),
        Claim("a million words: block of a topic less the others in W_n, times q v",
              whole * q * topics.words, 0.999, 1.001, paper=1.0),
    )  # fmt: skip


def of_training(topics: Topics, gram: np.ndarray, weights: np.ndarray) -> list[Claim]:
    """By how much a topic's own words stand out.   (losses, seeds, n, n) each"""
    return [
        Claim(f"{name}, {loss}: same over other topics, σ, least of the seeds", float(row.min()), low=5)
        for name, found in (("embeddings", gram), ("attention", weights))
        for loss, row in zip(LOSSES, sigmas(found, topics), strict=True)
    ]


def of_sizes(topics: Topics, gram: np.ndarray, weights: np.ndarray, want: np.ndarray, best: float) -> list[Claim]:
    """Sizes beside what theory gives for squared error."""
    gap = (kinds(gram, topics) @ GAP).mean((1, 2))
    looked = kinds(weights, topics).mean((1, 2))
    square, soft = looked[:, 1] / looked[:, 2]
    name = "attention, {}: weight on the same topic over others'"
    return [
        Claim("embeddings, squared error: same less other topics over that of W_n", gap[0] / (want @ GAP), 0.85, 1.15),
        Claim("embeddings, cross-entropy: same less other topics", gap[1]),
        Claim(name.format(LOSSES[0]), square, low=1),
        Claim("the same at its best in long documents", best),
        Claim(name.format(LOSSES[1]), soft, low=1),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(15, 4)
    a, b, c, d = figure.subplots(1, 4)
    for i, kind in enumerate(KINDS):
        a.plot(series["lengths"], np.array(series["predicted"])[:, i], f"C{i}", label=f"{kind}: $W_n$")
        a.plot(series["lengths"], np.array(series["measured"])[:, i], f"C{i}o", label="regression")
    a.set_xscale("log", base=2)
    a.set(xlabel="words of a document", ylabel="mean entry of W", title="What there is to know")
    at = np.linspace(series["steps"] / len(series["gram"]), series["steps"], len(series["gram"]))
    for i, kind in enumerate(KINDS):
        b.plot(at, np.array(series["gram"])[:, 0, i], f"C{i}o", label=kind)
        b.axhline(series["want"][i], color=f"C{i}", linestyle="--", label="" if i else "$W_n$")
    b.set(xlabel="step", ylabel="inner product", title="Embeddings, attention frozen")
    for i, loss in enumerate(LOSSES):
        ratio = np.array(series["weights"])[:, i]
        c.plot(at, ratio[:, 1] / ratio[:, 2], f"C{i + 3}o", label=loss)
    c.axhline(series["best"], color="C3", linestyle="--", label="best, squared error")
    c.set(xlabel="step", ylabel="same topic over others", title="Attention, embeddings frozen")
    picture = np.array(series["picture"])
    top = np.abs(picture[~np.eye(len(picture), dtype=bool)]).max()
    d.imshow(picture, cmap="RdBu", vmin=-top, vmax=top)
    d.set(title="Learned inner products", xlabel="word", ylabel="word")
    for axes, place in ((a, (0.4, 0.12)), (b, (0.5, 0.5)), (c, "upper right")):
        axes.legend(frameon=False, fontsize="small", loc=place)
