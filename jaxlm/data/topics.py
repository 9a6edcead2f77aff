"""Documents of a few topics each, and masks over their words."""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError


@dataclass(frozen=True)
class Topics:
    """Topics with words of their own; a document takes some topics and draws its words evenly from them.

    The case of latent Dirichlet allocation that Li et al. 2023 (section 3.1) prove things of: words x = 0 .. T v - 1.

    topics  T
    words   v of each topic: topic z has z v .. (z + 1) v - 1
    taken   τ topics of a document, all choices equally likely
    """

    topics: int = 10
    words: int = 10
    taken: int = 4

    def __post_init__(self):
        for field, low, high in (("topics", 1, np.inf), ("words", 1, np.inf), ("taken", 1, self.topics)):
            if not low <= getattr(self, field) <= high:
                raise DataError(f"Topics.{field} = {getattr(self, field)}: expected {low} to {high}")

    @property
    def vocab(self) -> int:
        """Number of words, T v."""
        return self.topics * self.words

    @property
    def of(self) -> np.ndarray:
        """The topic of every word.   (T v) int32"""
        return np.arange(self.vocab, dtype=np.int32) // self.words

    def documents(self, rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        """Independent documents.   (count, length) int32"""
        chosen = np.argsort(rng.random((count, self.topics)), axis=1)[:, : self.taken]
        topic = np.take_along_axis(chosen, rng.integers(self.taken, size=(count, length)), axis=1)
        return (topic * self.words + rng.integers(self.words, size=(count, length))).astype(np.int32)


@dataclass(frozen=True)
class Masking:
    """Words to be guessed, as BERT hides them (Devlin et al. 2019, section 3.1).

    share   p_m of the words is to be guessed
    kept    p_c of these is shown as it is
    random  p_r of these is shown as any word; the rest as [MASK], the word after the last
    """

    share: float = 0.15
    kept: float = 0.1
    random: float = 0.1

    def __post_init__(self):
        for field in ("share", "kept", "random"):
            if not 0 <= getattr(self, field) <= 1:
                raise DataError(f"Masking.{field} = {getattr(self, field)}: expected a share, 0 to 1")
        if self.kept + self.random > 1:
            raise DataError(f"Masking.kept = {self.kept}: expected at most {1 - self.random} beside `random`")

    def hide(self, rng: np.random.Generator, documents: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        """What is shown in place of words, and which are to be guessed.   (n, t) -> (n, t) int32, (n, t) bool"""
        asked = rng.random(documents.shape) < self.share
        luck = rng.random(documents.shape)
        other = np.where(luck < self.kept + self.random, rng.integers(vocab, size=documents.shape), vocab)
        return np.where(asked & (luck >= self.kept), other, documents).astype(np.int32), asked


def counts(tokens: np.ndarray, words: int, taken: np.ndarray | None = None) -> np.ndarray:
    """How often each word occurs in each document, at the places taken or at all.   (n, t) -> (n, words) float32"""
    out = np.zeros((len(tokens), words), np.float32)
    weight = np.float32(1) if taken is None else taken.astype(np.float32)
    np.add.at(out, (np.arange(len(tokens))[:, None], tokens), weight)
    return out
