"""Text for an experiment: a corpus, a tokenizer and a layout, as one frozen value."""

from dataclasses import dataclass, field
from typing import Literal

from jaxlm.data.corpus import Corpus, Split, StandardLibrary
from jaxlm.data.errors import DataError
from jaxlm.data.rows import Evaluation, Lanes, Rows, Stream, pack
from jaxlm.data.tokens import Bytes, Tokenizer

_LAYOUTS = {"rows": Rows, "lanes": Lanes}


@dataclass(frozen=True)
class Text:
    """What a language model is trained and evaluated on.

    corpus     where the documents come from
    tokenizer  bytes to ids
    length     tokens a row
    layout     'rows': rows stand alone; 'lanes': rows go on and the state is carried
    """

    corpus: Corpus = field(default_factory=StandardLibrary)
    tokenizer: Tokenizer = field(default_factory=Bytes)
    length: int = 256
    layout: Literal["rows", "lanes"] = "rows"

    def __post_init__(self):
        if self.layout not in _LAYOUTS:
            raise DataError(f"layout={self.layout!r}: expected one of {tuple(_LAYOUTS)}")
        if self.length < 1:
            raise DataError(f"length={self.length}: expected at least 1 token a row")

    @property
    def vocab(self) -> int:
        """Number of ids that a model of this text needs."""
        return self.tokenizer.vocab

    def load(self, split: Split) -> Stream:
        """One split, read and encoded."""
        return pack(self.corpus.documents(split), self.tokenizer)

    def training(self, seed: int) -> Rows | Lanes:
        """The training split in its layout; batches are a function of (seed, step)."""
        return _LAYOUTS[self.layout](self.load("train"), self.length, seed)

    def evaluation(self, length: int | None = None, overlap: int = 0) -> Evaluation:
        """The held-out split, every token scored once; `length` defaults to that of training."""
        return Evaluation(self.load("held_out"), self.length if length is None else length, overlap)
