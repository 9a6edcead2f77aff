"""What a sequence itself says of its next token: counts of what followed the last tokens before, and their back-off."""

import numpy as np


def followed(tokens: np.ndarray, order: int, vocab: int) -> np.ndarray:
    """How often each token followed the last `order` tokens earlier in the sequence, at every place.

    Place i counts tokens[j], j < i, whose `order` predecessors are tokens[i-order+1 .. i]; order 0 counts j <= i.
    ->      (t, vocab) float64
    """
    t, hot = len(tokens), np.eye(vocab)[tokens]
    if order == 0:
        return np.cumsum(hot, axis=0)
    match = np.tri(t, k=-1, dtype=bool)
    for r in range(order):
        same = np.zeros((t, t), bool)  # same[i, j]: tokens[i-r] = tokens[j-1-r]
        same[r:, r + 1 :] = tokens[: t - r, None] == tokens[None, : t - r - 1]
        match &= same
    return match @ hot


def back_off(tokens: np.ndarray, order: int, vocab: int, without: int | None = None) -> np.ndarray:
    """The next token's law by the frequencies after the longest context that was met, of at most `order` tokens.

    without   a token that is not asked for: it counts in contexts alone
    ->        (t, vocab) float64, rows sum to 1; all alike where nothing was met
    """
    asked = np.arange(vocab) != (-1 if without is None else without)
    law = np.broadcast_to(asked / asked.sum(), (len(tokens), vocab))
    for n in range(order + 1):
        counts = followed(tokens, n, vocab) * asked
        total = counts.sum(1, keepdims=True)
        law = np.where(total > 0, counts / np.maximum(total, 1), law)
    return law
