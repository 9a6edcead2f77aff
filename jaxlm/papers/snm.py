"""Skip-grams in a sparse non-negative matrix (Shazeer, Pelemans and Chelba 2015), on the words of the Penn Treebank.

SNM with the features of a five-gram model, and with skip-grams beside them; Kneser-Ney five-grams and Witten-Bell
trigrams from the same counts. The adjustment of SNM is fitted to the validation text, which the others do not see.
The lines of the treebank run on, with <eos> between. The paper's text is the One Billion Word Benchmark, where
skip-grams bring SNM to perplexity 52.9; 141.2 is Mikolov's figure for Kneser-Ney five-grams on the treebank, by lines.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxlm.data.baselines import KneserNey, WittenBell
from jaxlm.data.counts import CountLM
from jaxlm.data.ptb import penn_treebank
from jaxlm.data.snm import SNM, Skip, ngrams
from jaxlm.papers.result import Claim, Lab, Result

TITLE = "Skip-gram language models in a sparse non-negative matrix"
ROWS = (104,)
NEEDS = ("ptb",)
HEADLINE = "skip-grams: ratio to SNM five-grams"


@dataclass(frozen=True)
class Settings:
    """The models.

    Args:
        order: Tokens of context of the n-grams.
        skips: Skip-gram features: remote tokens, widths of the gap that share a count, adjacent tokens.
        steps: Of the fit of the adjustment.
        every: Steps between two looks at the test text.
        words: Words of each split that are used; 0: all.
    """

    order: int = 4
    skips: tuple[tuple[int, tuple[int, ...], int], ...] = (
        *((1, (s,), 0) for s in (1, 2, 3)),
        *((1, (s,), 1) for s in (1, 2)),
        (1, (1,), 2),
        (2, (1,), 0),
        (2, (1,), 1),
        (2, (2, 3), 0),
        (1, (4, 5, 6, 7), 0),
    )
    steps: int = 60
    every: int = 10
    words: int = 0


BUDGETS = {
    "smoke": Settings(order=2, skips=((1, (1,), 0), (1, (1, 2), 1)), steps=2, every=1, words=3000),
    "cpu": Settings(),
    "gpu": Settings(steps=200),
}


def run(s: Settings, lab: Lab) -> Result:
    bank = penn_treebank(lab.data)
    train, valid, test = (x[: s.words or None] for x in (bank.train, bank.valid, bank.test))
    vocab = len(bank.vocabulary)
    lab.tell(0.05)
    models: dict[str, CountLM] = {
        "Witten-Bell trigrams": WittenBell.fit([train], 2, vocab, vocab),
        "Kneser-Ney five-grams": KneserNey.fit([train], s.order, vocab, vocab),
    }
    found = {name: math.exp(m.nats([test])) for name, m in models.items()}
    lab.tell(0.2, **{"Kneser-Ney": found["Kneser-Ney five-grams"]})
    curves = {}
    kinds = {"SNM five-grams": ngrams(s.order), "SNM with skip-grams": (*ngrams(s.order), *(Skip(*k) for k in s.skips))}
    for i, (name, features) in enumerate(kinds.items()):
        model = SNM.fit([train], features, vocab, vocab)
        curves[name] = [math.exp(model.nats([test]))]
        for step in range(s.every, s.steps + 1, s.every):
            model = model.adjust([valid], s.every)
            curves[name].append(math.exp(model.nats([test])))
            lab.tell(0.2 + 0.2 * i + (0.2 + 0.4 * i) * step / s.steps, perplexity=curves[name][-1])
        models[name], found[name] = model, curves[name][-1]
    sums = [abs(m.distribution(test[i : i + 20].tolist()).sum() - 1) for m in models.values() for i in (0, 500, 1000)]
    return Result(_claims(found, max(sums)), {"perplexity": found, "curves": curves, "every": s.every})


def _claims(found: dict[str, float], off: float) -> tuple[Claim, ...]:
    kn, grams, skips = (found[n] for n in ("Kneser-Ney five-grams", "SNM five-grams", "SNM with skip-grams"))
    return (
        Claim("test perplexity, Witten-Bell trigrams", found["Witten-Bell trigrams"]),
        Claim("test perplexity, Kneser-Ney five-grams", kn, low=140.5, high=141.9, paper=141.2),
        Claim("test perplexity, SNM five-grams", grams),
        Claim("test perplexity, SNM with skip-grams", skips),
        Claim(HEADLINE, skips / grams, high=0.99),
        Claim("SNM five-grams: ratio to Kneser-Ney's", grams / kn, high=1.05),
        Claim("sums of conditionals: farthest from 1", off, high=1e-6),
    )


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    names, values = list(series["perplexity"]), list(series["perplexity"].values())
    left.barh(names[::-1], values[::-1], color=["C2", "C1", "C0", "0.6"])
    left.bar_label(left.containers[0], fmt="%.1f")
    left.set(xlabel="test perplexity", xlim=(0, 1.15 * max(values)))
    for name, curve in series["curves"].items():
        right.plot(np.arange(len(curve)) * series["every"], curve, "o-", label=name)
    right.axhline(series["perplexity"]["Kneser-Ney five-grams"], color="black", linestyle="--", label="Kneser-Ney")
    right.set(xlabel="steps of the adjustment", ylabel="test perplexity")
    right.legend()
