"""What a fine-tuned model says of what it does not know: what its unfamiliar examples were told (Kang et al. 2024).

Synthetic facts: a model learns who has which answer, some entities met often, some rarely, some never. It is then
fine-tuned to answer a new question, half of the examples about entities that it knows, half about entities that it has
never met, each seen once. These carry labels from a law Q of our choice, from its reverse, or the label 'unknown'.
Asked about entities that fine-tuning did not have: the less the model met one, the nearer its answer is to the law of
the unfamiliar labels. Embeddings of entities are held in fine-tuning. (The paper: Llama 2 7B on quiz questions. With
width 32, 1,500 steps and 800 of fine-tuning, the KL of those never met was 0.11; with few examples, met again and
again, it was 0.37 and more: they are learned by heart.)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.tokenwise import Tokenwise
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers._capability import mixer_of
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Unfamiliar fine-tuning examples control what a model makes up"
QUESTION = "What does a fine-tuned model answer about what it never learned, and who decides that?"
ROWS = (229,)
NEEDS = ()
HEADLINE = "never met: KL of the output to the unfamiliar labels"

LABELS = ("Q", "Q reversed", "unknown")


@dataclass(frozen=True)
class Settings:
    """The facts, the model, both trainings.

    Args:
        answers: Possible answers.
        group: Entities of each frequency; half of them are for the test.
        levels: Frequencies 1, 1/4, 1/16, ... and, last, never.
        mixer: Name of the model's mixer.
        width: Of the model.
        hidden: Units of its MLP.
        depth: Blocks.
        batch: Facts a step.
        steps: Of learning the facts.
        rate: Its step size.
        tune_steps: Of fine-tuning.
        tune_rate: Its step size.
        seeds: Models.
    """

    answers: int = 8
    group: int = 1000
    levels: int = 6
    mixer: str = "Attention"
    width: int = 48
    hidden: int = 96
    depth: int = 1
    batch: int = 128
    steps: int = 2000
    rate: float = 5e-3
    tune_steps: int = 1000
    tune_rate: float = 2e-3
    seeds: int = 3


BUDGETS = {
    "smoke": Settings(3, 8, 3, width=4, hidden=4, batch=4, steps=1, tune_steps=1, seeds=1),
    "cpu": Settings(),
    "gpu": Settings(16, 2000, 8, width=128, hidden=512, depth=2, batch=512, steps=8000, tune_steps=1000),
}


def often(key: Array, s: Settings) -> Array:
    """Entities as often as they are met; numbered level by level, the most frequent first.   (b,) int32"""
    of_level, of_one = jax.random.split(key)
    chance = -np.log(4.0) * np.arange(s.levels - 1)
    level = jax.random.categorical(of_level, jnp.asarray(chance, jnp.float32), shape=(s.batch,)).astype(jnp.int32)
    return level * s.group + jax.random.randint(of_one, (s.batch,), 0, s.group, jnp.int32)


def unfamiliar_laws(answers: int) -> np.ndarray:
    """Of the labels, by LABELS: Q, where each answer is half as frequent as the one before, but for the last; its
    reverse; 'unknown', the last label, always.   (3, answers + 1)
    """
    q = 0.5 ** np.arange(1, answers + 1)
    q[-1] = q[-2]
    laws = np.zeros((3, answers + 1))
    laws[0, :-1], laws[1, :-1], laws[2, -1] = q / q.sum(), q[::-1] / q.sum(), 1
    return laws


def entities(key: Array, count: int, s: Settings) -> Array:
    """Embeddings of entities that were never met: small, so that each meeting shows.   (count, d)"""
    return 0.3 * jax.random.normal(key, (count, s.width), jnp.float32)


def model_of(s: Settings) -> SequenceModel:
    """Reads an entity and a question; logits of the answers and, last, of 'unknown'."""
    block = Block(mixer_of(s.mixer, s.width), MLP(s.width, s.hidden))
    return SequenceModel(Chain((Stack(block, s.depth), Tokenwise(RMSNorm(s.width)))), s.answers + 1)


def begin(key: Array, s: Settings) -> Params:
    """Weights, embeddings of every entity and of two questions."""
    a, b, c = jax.random.split(key, 3)
    question = jax.random.normal(c, (2, s.width), jnp.float32)
    return {"model": init(model_of(s), a), "entity": entities(b, s.levels * s.group, s), "question": question}


def logits(s: Settings, params: Params, entity: Array, question: int) -> Array:
    """embeddings (b, d) -> (b, answers + 1)"""
    asked = jnp.broadcast_to(params["question"][question][None], entity.shape)
    return model_of(s).apply(params["model"], jnp.stack([entity, asked], axis=1))[0]


def trained(s: Settings, lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Learn the facts, fine-tune on each of LABELS, ask the second question about entities that this did not have.

    ->   log P (seeds, 3, levels, group / 2, answers + 1); the true answers (seeds, levels, group / 2)
    """
    true = jax.random.randint(lab.key, (s.seeds, s.levels * s.group), 0, s.answers, jnp.int32)

    def learning(params: Params, key: Array, step: Array, true: Array) -> Array:
        entity = often(key, s)
        return jnp.mean(nats(logits(s, params, params["entity"][entity], 0), true[entity]))

    first, second = lab.part("learn", 0.0, 0.7), lab.part("tune", 0.7, 1.0)
    how = {"steps": s.steps, "every": max(1, s.steps // 5), "each": true, "tell": first.tell}
    start = lambda key, true: begin(key, s)  # noqa: E731
    known = fit(jax.random.split(first.key, s.seeds), start, learning, optax.adam(s.rate), **how).params

    each = jax.tree.map(lambda x: jnp.repeat(x, len(LABELS), axis=0), {"known": known, "true": true})
    laws = np.log(np.maximum(unfamiliar_laws(s.answers), 1e-30))
    each["law"] = jnp.tile(jnp.asarray(laws, jnp.float32), (s.seeds, 1))

    def tuning(params: Params, key: Array, step: Array, each: Tree) -> Array:
        of_known, of_new, of_label = jax.random.split(key, 3)
        half = s.batch // 2
        one = jax.random.randint(of_known, (half,), 0, s.group // 2, jnp.int32)  # of the most frequent
        x = jnp.concatenate([each["known"]["entity"][one], entities(of_new, half, s)])
        label = jax.random.categorical(of_label, each["law"], shape=(half,)).astype(jnp.int32)
        return jnp.mean(nats(logits(s, params, x, 1), jnp.concatenate([each["true"][one], label])))

    def watch(params: Params, key: Array, each: Tree) -> Tree:
        asked = each["known"]["entity"].reshape(s.levels, s.group, s.width)[:, s.group // 2 :]
        return {"law": jax.nn.log_softmax(logits(s, params, asked.reshape(-1, s.width), 1))}

    how = {"steps": s.tune_steps, "every": s.tune_steps, "each": each, "tell": second.tell}
    start = lambda key, each: {n: each["known"][n] for n in ("model", "question")}  # noqa: E731
    keys = jax.random.split(second.key, s.seeds * len(LABELS))
    law = fit(keys, start, tuning, optax.adam(s.tune_rate), watch=watch, **how).watched["law"][0]
    law = law.reshape(s.seeds, len(LABELS), s.levels, -1, s.answers + 1)
    return law, np.asarray(true).reshape(s.seeds, s.levels, s.group)[:, :, s.group // 2 :]


def run(s: Settings, lab: Lab) -> Result:
    law, true = trained(s, lab)
    q, reverse = unfamiliar_laws(s.answers)[:2, :-1]
    targets = {"Q": q, "Q reversed": reverse}
    kl = {}
    for name, target in targets.items():
        log_p = law[:, LABELS.index(name)][..., : s.answers]
        kl[name] = (target * (np.log(target) - log_p)).sum(-1).mean((0, 2))  # (levels,), of each entity's own output
    crossed = (q * (np.log(q) - law[:, 1][..., : s.answers])).sum(-1).mean((0, 2))
    abstains = np.exp(law[:, 2][..., s.answers]).mean((0, 2))
    hit = np.take_along_axis(law, np.broadcast_to(true[:, None, ..., None], (*law.shape[:-1], 1)), -1)[..., 0]
    right = np.exp(hit).mean((0, 3))
    rise = max(float(np.diff(k).max()) for k in kl.values())
    claims = [
        Claim(HEADLINE, float(max(k[-1] for k in kl.values())), high=0.1),
        Claim("most frequent: KL of the output to them", float(min(k[0] for k in kl.values())), low=0.5),
        Claim("KL, its largest rise to the next rarer entities", rise, high=0.1),
        Claim("never met, labels from the reverse of Q: KL to Q", float(crossed[-1]), low=0.5),
        Claim("labels 'unknown': its probability, never met", float(abstains[-1]), low=0.9),
        Claim("labels 'unknown': its probability, most frequent", float(abstains[0]), high=0.1),
        Claim("KL from Q to all answers alike", float((q * np.log(q * s.answers)).sum())),
    ]
    for name, r in zip(LABELS, right, strict=True):
        claims.append(Claim(f"labels {name}: probability of the true answer, most frequent", float(r[0])))
        claims.append(Claim(f"labels {name}: probability of the true answer, never met", float(r[-1])))
    return Result(tuple(claims), {"kl": kl, "abstains": abstains, "right": right, "levels": s.levels})


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    names = [f"1/{4**i}" if i else "1" for i in range(series["levels"] - 1)] + ["never"]
    places = np.arange(series["levels"])
    for name, curve in series["kl"].items():
        left.plot(places, curve, "o-", label=f"unfamiliar labels from {name}")
    left.axhline(0, color="k", ls="--", lw=1, label="expected of the unfamiliar")
    left.set(ylabel="KL(unfamiliar labels ‖ output), nats")
    right.plot(places, series["abstains"], "C2o-", label="P('unknown'), taught to say so")
    for i, (name, curve) in enumerate(zip(LABELS, series["right"], strict=True)):
        right.plot(places, curve, f"C{i}.:", label=f"P(true answer), {name}")
    right.set(ylim=(0, 1.02))
    for axes in (left, right):
        axes.set(xticks=places, xticklabels=names, xlabel="how often an entity was met")
        axes.legend(fontsize=7, frameon=False)
