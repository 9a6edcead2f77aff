"""20NSshort: the documents of 20 Newsgroups of fewer than 20 words, in the form of Gupta et al. 2019."""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder

FOLDER = "20newsgroups-short"
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
SIZES = {"train": 1245, "valid": 100, "test": 438}
WORDS = 1448


@dataclass(frozen=True)
class Newsgroups:
    """Documents as word numbers, in the order of their text.

    train, valid, test    each a document, (n,) int32
    vocabulary            words by number
    """

    train: tuple[np.ndarray, ...]
    valid: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    vocabulary: tuple[str, ...]


def newsgroups_short(data: DataFolder) -> Newsgroups:
    """The three splits in the published sizes; words outside of the vocabulary are left out.

    The files of word numbers are sorted, so the order is taken from the files of words. DataError where a file is
    missing or is not the published one.
    """
    vocabulary = tuple(data.text(f"{FOLDER}/vocab_docnade.vocab.gz").split())
    place = {w: i for i, w in enumerate(vocabulary)}
    splits = {}
    for split, name in SPLITS.items():
        lines = data.text(f"{FOLDER}/{name}.csv.gz").splitlines()
        found = [[place[w] for w in line.split(",", 1)[-1].split() if w in place] for line in lines]
        splits[split] = tuple(np.array(d, np.int32) for d in found if d)
        if len(splits[split]) != SIZES[split] or len(vocabulary) != WORDS:
            have = f"{len(splits[split])} documents of {len(vocabulary)} words"
            raise DataError(f"{FOLDER}, {split}: {have}, expected {SIZES[split]} of {WORDS}")
    return Newsgroups(**splits, vocabulary=vocabulary)


def padded(documents: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Documents as rows, 0 behind their ends, and which places are theirs.   (r, t) int32, (r, t) bool"""
    t = max(map(len, documents))
    rows, there = np.zeros((len(documents), t), np.int32), np.zeros((len(documents), t), bool)
    for row, mask, d in zip(rows, there, documents, strict=True):
        row[: len(d)], mask[: len(d)] = d, True
    return rows, there
