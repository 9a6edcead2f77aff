"""Do two measures put things into the same order?"""

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import ShapeError


def ranks(x: ArrayLike) -> np.ndarray:
    """Places in the order, 0 the least; equal ones share the mean of theirs.   (n,)"""
    _, at, count = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[at]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, 1 for one order, -1 for its reverse; nan where all are equal."""
    x, y = np.ravel(a), np.ravel(b)
    if x.shape != y.shape:
        raise ShapeError(f"b: shape {np.shape(b)}, expected as many as a, {np.shape(a)}")
    x, y = ranks(x) - ranks(x).mean(), ranks(y) - ranks(y).mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else float("nan")
