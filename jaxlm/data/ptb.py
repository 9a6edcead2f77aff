"""Penn Treebank in Mikolov's preprocessed form, by words and by characters."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder

SPLITS = ("train", "valid", "test")
END = "<eos>"
SIZES = {
    "word": {"train": 929_589, "valid": 73_760, "test": 82_430, "vocabulary": 10_000},
    "character": {"train": 5_017_482, "valid": 393_042, "test": 442_423, "vocabulary": 50},
}


@dataclass(frozen=True)
class Treebank:
    """Token numbers of each split, and what they stand for; the most frequent token of train is 0.

    train, valid, test  (n) int32
    vocabulary          tokens by number
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]

    def text(self, tokens: np.ndarray) -> str:
        """Tokens with blanks between, for a look."""
        return " ".join(self.vocabulary[i] for i in tokens)


def penn_treebank(data: DataFolder, level: str = "word") -> Treebank:
    """The three splits, each line closed by one `<eos>`, in the published sizes.

    level   'word': 10,000 tokens, with `<unk>` and `N`;  'character': 50, a blank being `_`

    DataError where a file is missing or is not the published one. Marcus et al. 1993; Mikolov et al. 2010.
    """
    if level not in SIZES:
        raise DataError(f"level = {level!r}: expected one of {', '.join(SIZES)}")
    read = words if level == "word" else characters
    bank = number({split: data.text(f"ptb/ptb.{split}.txt.gz") for split in SPLITS}, read)
    found = {split: len(getattr(bank, split)) for split in SPLITS} | {"vocabulary": len(bank.vocabulary)}
    for name, want in SIZES[level].items():
        if found[name] != want:
            raise DataError(f"ptb, {name}: {found[name]} {level}s, expected the {want} of the published files")
    return bank


def words(text: str) -> list[str]:
    """The words of all lines, `<eos>` after each."""
    return [w for line in text.splitlines() for w in (*line.split(), END)]


def characters(text: str) -> list[str]:
    """The characters of all lines, blanks as `_`, `<eos>` after each."""
    return [c for line in text.splitlines() for c in (*line.strip().replace(" ", "_"), END)]


def number(texts: Mapping[str, str], read: Callable[[str], list[str]]) -> Treebank:
    """Number the tokens by their frequency in train, ties by the alphabet; DataError for one that train lacks."""
    tokens = {split: read(text) for split, text in texts.items()}
    count = Counter(tokens["train"])
    vocabulary = tuple(sorted(count, key=lambda w: (-count[w], w)))
    place = {w: i for i, w in enumerate(vocabulary)}
    for split, found in tokens.items():
        strange = next((w for w in found if w not in place), None)
        if strange is not None:
            raise DataError(f"ptb, {split}: {strange!r}, expected only tokens that train has")
    return Treebank(
        **{s: np.array([place[w] for w in found], np.int32) for s, found in tokens.items()}, vocabulary=vocabulary
    )
