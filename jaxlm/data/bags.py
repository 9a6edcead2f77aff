"""Sentences as bags of words, and words as bags of their neighbours."""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.babi import NIL, Question


def bags(ids: np.ndarray, words: int) -> np.ndarray:
    """How often each word occurs in each sentence; NIL is not counted.   ids (u, j) int -> (u, words) float32"""
    out = np.zeros((len(ids), words), np.float32)
    np.add.at(out, (np.arange(len(ids))[:, None], ids), 1)
    out[:, NIL] = 0
    return out


def neighbours(ids: np.ndarray, words: int) -> np.ndarray:
    """The words seen just left and just right of each word, as shares that sum to 1 (0 for a word never seen there).

    ids     (u, j) int                  sentences
    ->      (2, words, words) float32   left, right; row = the word, column = its neighbour
    """
    out = np.zeros((2, words, words), np.float32)
    np.add.at(out[0], (ids[:, 1:], ids[:, :-1]), 1)
    np.add.at(out[1], (ids[:, :-1], ids[:, 1:]), 1)
    out[:, NIL] = out[:, :, NIL] = 0
    return out / np.maximum(out.sum(-1, keepdims=True), 1)


def facts(questions: Sequence[Question], hops: int, memory: int) -> np.ndarray:
    """Slots of the supporting sentences by hop, for a memory of the last `memory` sentences.   -> (q, hops) int32

    A question with fewer facts than hops repeats its last one; what was dropped from the memory stays negative.
    """
    rows = [(q.support + q.support[-1:] * hops)[:hops] for q in questions]
    dropped = [max(0, len(q.story) - memory) for q in questions]
    return np.array(rows, np.int32).reshape(len(rows), hops) - np.array(dropped, np.int32)[:, None]
