"""Do two measures put things into the same order?"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from jaxlm.errors import ShapeError


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, 1 for one order, -1 for its reverse; nan where all are equal."""
    x, y = np.ravel(a), np.ravel(b)
    if x.shape != y.shape:
        raise ShapeError(f"b: shape {np.shape(b)}, expected as many as a, {np.shape(a)}")
    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else float("nan")
