"""Recurrent networks store sequences as onions: one direction a token, one size a place (Csordás et al. 2024).

The planted code h = sum_j β^j e_{x_j}, e orthonormal, is read from the outside: the largest coordinate is x_1, subtract
its layer, go on. For β <= 1/2 that is exact, since all layers still inside sum to less than the next one. No linear map
reads more than x_1: by symmetry the best one guesses x_1 everywhere, which is right once in V.
Then a GRU learns to repeat. Its state after the last input is edited so that it says v' in place of v at place j: the
onion h - s_j e_v + s_j e_v' with s_j = g γ^j + β j + b elementwise, or the linear swap of the place's subspace with
that of another sequence, subspaces being disjoint columns of one orthogonal matrix. Both are learned, and judged by
whole sequences. (The paper: vocabulary 30, sizes 48 to 1024; only onions work in the smallest, swaps in the largest.)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.errors import ConfigError
from jaxlm.mixers.gru import GRU
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks.base import below
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, State

TITLE = "Recurrent neural networks learn to store and generate sequences using non-linear representations"
QUESTION = "Does a small GRU keep the places of a sequence apart by direction or by size?"
ROWS = (233,)
NEEDS = ()
HEADLINE = "smallest GRU: onion less linear edits, least over seeds"
PEELED = {0.55: 0.95, 0.6: 0.90}  # of an independent simulation


@dataclass(frozen=True)
class Settings:
    """The planted code, the network and the edits.

    Args:
        vocab: V.
        planted: Length of the planted sequences.
        ratios: β.
        trials: Sequences of each test.
        length: Of the sequences that the GRU repeats.
        widths: Of GRUs.
        seeds: Of each.
        steps: Of training, for each width.
        rate: Of its Adam; a fifth of it from 70 % of the steps on.
        edits: Steps of learning the edits.
        edit_rate: Of their Adam.
        batch: Sequences a step.
    """

    vocab: int = 10
    planted: int = 9
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8)
    trials: int = 4096
    length: int = 5
    widths: tuple[int, ...] = (24,)
    seeds: int = 3
    steps: tuple[int, ...] = (6000,)
    rate: float = 3e-3
    edits: int = 2000
    edit_rate: float = 1e-2
    batch: int = 128


BUDGETS = {
    "smoke": Settings(3, 4, (0.5, 0.6), 64, 2, (4,), 1, (2,), edits=2, batch=4),
    "cpu": Settings(),
    "gpu": Settings(widths=(24, 48, 96, 192, 384), seeds=5, steps=(20_000, 10_000, 6000, 4000, 3000), edits=6000),
}


def plant(tokens: np.ndarray, ratio: float, table: np.ndarray) -> np.ndarray:
    """h = sum_j β^j e_{x_j}.   (n, L), (V, d) -> (n, d)"""
    return np.einsum("j,njd->nd", ratio ** np.arange(tokens.shape[1]), table[tokens])


def peel(held: np.ndarray, ratio: float, table: np.ndarray, length: int) -> np.ndarray:
    """Read an onion from the outside.   (n, d), (V, d) -> (n, L)"""
    read = []
    for size in ratio ** np.arange(length):
        read.append(np.argmax(held @ table.T, axis=1))
        held = held - size * table[read[-1]]
    return np.stack(read, axis=1)


def probe(held: np.ndarray, tokens: np.ndarray, vocab: int) -> np.ndarray:
    """Accuracy at each place of the best linear map to it, fitted on one half, tested on the other.   -> (L)"""
    half, x = len(held) // 2, np.concatenate([held, np.ones((len(held), 1))], axis=1)
    maps = np.linalg.lstsq(x[:half], np.eye(vocab)[tokens[:half]].reshape(half, -1), rcond=None)[0]
    guesses = (x[half:] @ maps).reshape(len(x) - half, -1, vocab).argmax(-1)
    return np.mean(guesses == tokens[half:], axis=0)


def planted(s: Settings, lab: Lab) -> tuple[dict[float, float], np.ndarray]:
    """Share of sequences that are peeled off without an error at each ratio; a probe's accuracy at each place."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    table = np.linalg.qr(rng.normal(size=(s.vocab, s.vocab)))[0]
    tokens = rng.integers(s.vocab, size=(8 * s.trials, s.planted))
    right = {b: np.all(peel(plant(tokens, b, table), b, table, s.planted) == tokens, axis=1).mean() for b in s.ratios}
    return right, probe(plant(tokens, 0.5, table), tokens, s.vocab)


def model_of(s: Settings, width: int) -> SequenceModel:
    """One GRU over one-hot tokens; the last of them says that it is time to repeat."""
    return SequenceModel(GRU(width, inputs=s.vocab + 1), s.vocab, readout="every")


def store(model: SequenceModel, params: Params, tokens: Array) -> Array:
    """The state after the last token.   (b, L) -> (b, d)"""
    return model.apply(params, jax.nn.one_hot(tokens, model.reads, dtype=jnp.float32))[1]["h"]


def recite(model: SequenceModel, params: Params, held: Array, tokens: Array) -> Array:
    """Logits of the repetition from a state, given the tokens before.   (b, d), (b, L) -> (b, L, V)"""
    told = jnp.concatenate([jnp.full_like(tokens[:, :1], model.outputs), tokens[:, :-1]], axis=1)
    state: State = {"h": held}
    return model.apply(params, jax.nn.one_hot(told, model.reads, dtype=jnp.float32), state)[0]


def whole(logits: Array, tokens: Array) -> Array:
    """Share of the sequences that are right at every place.   (..., n, L, V), (..., n, L) -> (...)"""
    return jnp.mean(jnp.all(jnp.argmax(logits, axis=-1) == tokens, axis=-1).astype(jnp.float32), axis=-1)


def train(s: Settings, width: int, steps: int, lab: Lab) -> Params:
    """GRUs that repeat, leaves (seeds, ...)."""
    model, warm = model_of(s, width), min(200, steps // 2)

    def loss(params: Params, key: Array, step: Array) -> Array:
        tokens = below(key, s.vocab, (s.batch, s.length))
        return jnp.mean(nats(recite(model, params, store(model, params, tokens), tokens), tokens))

    late = optax.piecewise_constant_schedule(s.rate, {int(0.7 * steps) - warm: 0.2})
    tx = clipped(optax.adam(optax.join_schedules([optax.linear_schedule(0.0, s.rate, warm), late], [warm])))
    keys, every = jax.random.split(lab.key, s.seeds), steps // (12 if steps % 12 == 0 else 1)
    return fit(keys, lambda k: init(model, k), loss, tx, steps=steps, every=every, tell=lab.tell).params


def sizes(onion: Params, length: int) -> Array:
    """s_j = g γ^j + β j + b.   -> (L, d)"""
    j = jnp.arange(length, dtype=onion["gain"].dtype)[:, None]
    shrunk = onion["gain"][None] * jax.nn.sigmoid(onion["decay"])[None] ** j
    return shrunk + onion["slope"][None] * j + onion["shift"][None]


def by_onion(onion: Params, held: Array, place: Array, old: Array, new: Array, length: int) -> Array:
    """One layer changed.   held (b, d), place, old, new (b) -> (b, d)"""
    return held + sizes(onion, length)[place] * (onion["table"][new] - onion["table"][old])


def by_swap(free: Array, held: Array, place: Array, source: Array, length: int) -> Array:
    """The place's subspace taken from another state.   held, source (b, d), place (b) -> (b, d)"""
    turn = jnp.linalg.qr(free)[0]
    own = jnp.arange(len(free), dtype=jnp.int32) // (len(free) // length)  # the columns' places; some belong to none
    moved = (source - held) @ turn
    return held + jnp.where(own[None] == place[:, None], moved, jnp.zeros_like(moved)) @ turn.T


def edited(
    s: Settings, model: SequenceModel, params: Params, edits: Params, key: Array, count: int
) -> tuple[Array, Array]:
    """What is said after either edit of fresh sequences, and what should be.   (2, count, L, V), (2, count, L)"""
    of_tokens, of_place, of_new, of_source = jax.random.split(key, 4)
    tokens, place = below(of_tokens, s.vocab, (count, s.length)), below(of_place, s.length, (count,))
    rows = jnp.arange(count, dtype=jnp.int32)
    old = tokens[rows, place]
    new = (old + 1 + below(of_new, s.vocab - 1, (count,))) % s.vocab
    aim, source = (x.at[rows, place].set(new) for x in (tokens, below(of_source, s.vocab, tokens.shape)))
    held, other = jnp.split(store(model, params, jnp.concatenate([tokens, source])), 2)
    onion = by_onion(edits["onion"], held, place, old, new, s.length)
    swapped = by_swap(edits["linear"], held, place, other, s.length)
    aims = jnp.concatenate([aim, aim])
    said = recite(model, params, jnp.concatenate([onion, swapped]), aims)
    return said.reshape(2, count, *said.shape[1:]), aims.reshape(2, count, s.length)


def learn_edits(s: Settings, width: int, params: Params, lab: Lab) -> tuple[dict[str, np.ndarray], Params]:
    """Both edits of every seed's GRU.

    ->      shares of sequences (seeds) that are whole: repeated without an edit, after either; the edits' weights
    """
    if width < s.length:
        raise ConfigError(f"widths = {width}: expected at least one direction for each of {s.length} places")
    model = model_of(s, width)

    def begin(key: Array, params: Params) -> Params:
        table, free = jax.random.split(key)
        zero = jnp.zeros(width, jnp.float32)
        onion = {"gain": zero + 1, "decay": zero, "slope": zero, "shift": zero}
        onion["table"] = 0.1 * jax.random.normal(table, (s.vocab, width), jnp.float32)
        return {"onion": onion, "linear": jax.random.normal(free, (width, width), jnp.float32)}

    def loss(edits: Params, key: Array, step: Array, params: Params) -> Array:
        return 2 * jnp.mean(nats(*edited(s, model, params, edits, key, s.batch)))  # of both: they share no weight

    def right(params: Params, edits: Params, key: Array) -> dict[str, Array]:
        onion, linear = whole(*edited(s, model, params, edits, key, s.trials))
        tokens = below(key, s.vocab, (s.trials, s.length))
        return {
            "repeated": whole(recite(model, params, store(model, params, tokens), tokens), tokens),
            "onion": onion,
            "linear": linear,
        }

    keys, tx = jax.random.split(lab.key, s.seeds), optax.adam(trapezoid(s.edit_rate, s.edits))
    every = s.edits // (10 if s.edits % 10 == 0 else 1)
    edits = fit(keys, begin, loss, tx, steps=s.edits, every=every, tell=lab.tell, each=params).params
    test = jax.jit(lambda *x: jax.lax.map(lambda x: right(*x), x))
    return jax.device_get(test(params, edits, jax.random.split(jax.random.fold_in(lab.key, 1), s.seeds))), edits


def run(s: Settings, lab: Lab) -> Result:
    peeled, probed = planted(s, lab)
    least = min(right for ratio, right in peeled.items() if ratio <= 0.5)
    claims = [Claim("planted, ratio at most 1/2: share peeled off exactly, least", least, low=1.0)]
    for ratio, told in PEELED.items():
        if ratio in peeled:
            claims.append(Claim(f"planted, ratio {ratio:g}", peeled[ratio], told - 0.02, told + 0.02, paper=told))
    off = float(np.abs(probed[1:] - 1 / s.vocab).max())
    claims += [
        Claim("planted: linear probe of the first place", probed[0], low=0.999),
        Claim("planted: linear probes of later places, farthest from 1 / V", off, high=0.04),
    ]
    found, scales, decays = {}, [], []
    for i, (width, steps) in enumerate(zip(s.widths, s.steps, strict=True)):
        low, high = 0.05 + 0.95 * i / len(s.widths), 0.05 + 0.95 * (i + 1) / len(s.widths)
        middle = low + 0.6 * (high - low)
        params = train(s, width, steps, lab.part(f"repeat {width}", low, middle))
        found[width], edits = learn_edits(s, width, params, lab.part(f"edit {width}", middle, high))
        size = jax.vmap(lambda onion: sizes(onion, s.length))(edits["onion"])
        scales.append(np.abs(np.asarray(size)).mean((0, 2)))
        decays.append(float(np.mean(jax.nn.sigmoid(edits["onion"]["decay"]))))
    series = {"peeled": peeled, "probed": probed, "vocab": s.vocab, "found": found, "scales": scales, "decays": decays}
    return Result((*claims, *judged(found, scales, decays)), series)


def judged(found: dict[int, dict[str, np.ndarray]], scales: list[np.ndarray], decays: list[float]) -> list[Claim]:
    """What the edits say: of the smallest GRU what is known, of all of them the numbers."""
    first = found[next(iter(found))]
    out = [Claim(HEADLINE, float(np.min(first["onion"] - first["linear"])), low=0.4)]
    for (width, own), scale, decay in zip(found.items(), scales, decays, strict=True):
        out.append(Claim(f"width {width}: repeats exactly, least over seeds", own["repeated"].min(), low=0.95))
        out += [Claim(f"width {width}: whole after {n} edits, mean", own[n].mean()) for n in ("onion", "linear")]
        out.append(
            Claim(f"width {width}: mean size of the last place over the first's", scale[-1] / scale[0], high=1.0)
        )
        out.append(Claim(f"width {width}: mean γ", decay))
    return out


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4)
    a, b, c = figure.subplots(1, 3)
    ratios = [float(r) for r in series["peeled"]]
    a.plot([min(ratios), 0.5], [1, 1], "k--", lw=1, label="exact up to 1/2")
    a.plot(ratios, list(series["peeled"].values()), "C0o", label="peeled off without an error")
    a.axvline(0.5, color="0.7", lw=1)
    a.set(xlabel="ratio β of layers", ylabel="share of sequences", ylim=(0, 1.05), title="Planted onion")
    places = np.arange(1, len(series["probed"]) + 1)
    b.plot(places, [1, *[1 / series["vocab"]] * (len(places) - 1)], "k--", lw=1, label="best linear map, told")
    b.plot(places, series["probed"], "C3o", label="measured")
    b.set(xlabel="place", ylabel="accuracy", ylim=(0, 1.05), title="Planted onion, linear probes")
    for i, (width, own) in enumerate(series["found"].items()):
        text = ", ".join(f"{name} {np.mean(x):.2f}" for name, x in own.items())
        scale, decay = np.array(series["scales"][i]), series["decays"][i]
        j = np.arange(len(scale))
        c.plot(j + 1, scale, f"C{i}o", label=f"GRU of {width}: {text}")
        c.plot(j + 1, scale[0] * decay**j, f"C{i}--", lw=1, label=f"{scale[0]:.2f} · {decay:.2f}^j")
    c.set(xlabel="place", ylabel="mean |s_j|", ylim=(0, None), title="Learned onion of a GRU")
    for axes in (a, b, c):
        axes.legend(frameon=False, fontsize="small")
