"""Passkey retrieval: a number told once in repeated filler is asked for at the end."""

import jax.numpy as jnp
import numpy as np
from jax import random

from jaxlm.tasks.base import Sample, Task, below, over
from jaxlm.typing import Array

FILLER = "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again ."
NEEDLE = ("the pass key is", ". remember it .")
QUESTION = "what is the pass key ? it is"
WORDS = tuple(dict.fromkeys(" ".join([FILLER, *NEEDLE, QUESTION]).split()))


class Passkey(Task):
    """Filler sentences, among them one that tells a number; at the end the question, and the number digit by digit.

    digits    of the number; the digits are tokens 0 .. 9, then come WORDS. Each is asked where the one before stands
    depth     where in the filler it is told, 0 the beginning, 1 the end; None: at a random sentence

    Source: Mohtashami & Jaggi 2023, with a word as a token. Exact match: all digits of a sequence are right.
    """

    digits: int = 5
    depth: float | None = None

    paper = "Mohtashami & Jaggi 2023"
    vocab = 10 + len(WORDS)
    classes = vocab

    def __post_init__(self):
        self.check(self.digits > 0, "digits", "at least 1")
        self.check(self.depth is None or 0 <= self.depth <= 1, "depth", "None or a share of 0 to 1")

    @property
    def told(self) -> int:
        """Tokens of the sentence that tells the number."""
        return sum(len(encode(part)) for part in NEEDLE) + self.digits

    @property
    def shortest(self) -> int:
        return self.told + len(encode(QUESTION)) + self.digits - 1

    def draw(self, key: Array, length: int) -> Sample:
        of_number, of_depth = random.split(key)
        number = below(of_number, 10, (self.digits,))
        ahead, behind = (jnp.asarray(encode(part)) for part in NEEDLE)
        needle = jnp.concatenate([ahead, number, behind])
        question = jnp.concatenate([jnp.asarray(encode(QUESTION)), number[:-1]])
        room = length - self.shortest
        filler = np.resize(encode(FILLER), room)
        # A sentence may begin at the front and after every full stop of the filler.
        begins = np.concatenate([[0], 1 + np.flatnonzero(filler == encode(".")[0])]).astype(np.int32)
        if self.depth is None:
            at = jnp.asarray(begins)[below(of_depth, len(begins))]
        else:
            at = jnp.int32(begins[round(self.depth * (len(begins) - 1))])
        place = jnp.arange(room + self.told, dtype=jnp.int32)
        padded = jnp.concatenate([jnp.asarray(filler), needle])  # never empty, whatever the length
        from_filler = padded[jnp.where(place < at, place, place - self.told)]
        inside = (place >= at) & (place < at + self.told)
        told = jnp.where(inside, needle[jnp.where(inside, place - at, 0)], from_filler)
        zeros = jnp.zeros(length, jnp.int32)
        weights = zeros.astype(jnp.float32).at[-self.digits :].set(1.0)
        return Sample(jnp.concatenate([told, question]), zeros.at[-self.digits :].set(number), weights)

    def shares(self, length: int) -> np.ndarray:
        return over(self.vocab, 0, 10)


def encode(text: str) -> np.ndarray:
    """Tokens of a text of WORDS.   int32"""
    return np.array([10 + WORDS.index(word) for word in text.split()], np.int32)
