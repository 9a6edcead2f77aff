"""Affine regions of a ReLU layer: the pieces into which its units cut a convex hull, or a loop."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from jaxlm.errors import ShapeError

CLEAR = 1e-9  # a region has a point at least this far inside all its units, over the units' largest weight


def general_position(units: int, dimension: int) -> int:
    """Σ_{j <= m} C(f, j): most regions that f units make in m dimensions (Zaslavsky 1975)."""
    return sum(math.comb(units, j) for j in range(dimension + 1))


def sum_dimension(hulls: Sequence[np.ndarray]) -> int:
    """The affine dimension of a Minkowski sum of hulls.   corners (t, d) each"""
    return int(np.linalg.matrix_rank(np.concatenate([x[1:] - x[:1] for x in hulls])))


def hull_regions(hulls: Sequence[np.ndarray], up: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Which units are on, in every region of a Minkowski sum of hulls: exact, up to CLEAR.   -> (regions, f) bool

    hulls   corners of each                       (t, d) each
    up      weights of the units                  (d, f)
    bias    of the units                          (f,)

    A point of the sum is one convex combination a hull. Units are added one by one; a region that has a point on the
    other side of the next unit, which a linear program in the combinations' weights tells, becomes two.
    """
    if up.ndim != 2 or bias.shape != up.shape[1:] or any(x.ndim != 2 or x.shape[1] != len(up) for x in hulls):
        shapes = [x.shape for x in hulls]
        raise ShapeError(f"hulls: {shapes}, up: {up.shape}, bias: {bias.shape}; expected (t, d), (d, f), (f,)")
    at_corners = np.concatenate(hulls) @ up
    scale = np.maximum(np.abs(at_corners).max(axis=0), np.abs(bias))
    rows, level = at_corners / scale, bias / scale
    belongs = np.repeat(np.arange(len(hulls)), [len(x) for x in hulls])
    sums = (belongs[None] == np.arange(len(hulls))[:, None]).astype(float)  # each hull's weights sum to one
    cells = [(np.zeros(0), sums.T @ (1 / sums.sum(axis=1)))]
    for i in range(len(bias)):
        found = []
        for signs, weights in cells:
            here = 1.0 if weights @ rows[:, i] + level[i] > 0 else -1.0
            found.append((np.append(signs, here), weights))
            across = np.append(signs, -here)
            other = _point(rows[:, : i + 1] * across, level[: i + 1] * across, sums)
            if other is not None:
                found.append((across, other))
        cells = found
    return np.array([signs > 0 for signs, _ in cells])


def _point(rows: np.ndarray, level: np.ndarray, sums: np.ndarray) -> np.ndarray | None:
    """Weights whose point is farthest inside all of (weights @ rows + level > 0), if there is one."""
    corners, units = rows.shape
    found = linprog(
        np.append(np.zeros(corners), -1.0),
        A_ub=np.column_stack([-rows.T, np.ones(units)]),
        b_ub=level,
        A_eq=np.column_stack([sums, np.zeros(len(sums))]),
        b_eq=np.ones(len(sums)),
        bounds=[(0, None)] * corners + [(None, 1.0)],
    )
    return found.x[:-1] if found.status == 0 and -found.fun > CLEAR else None


def loop_crossings(on: np.ndarray) -> int:
    """Units that switch from point to point of a closed loop, in all.   (n, f) bool"""
    return int(np.sum(on != np.roll(on, -1, axis=0)))


def loop_length(z: np.ndarray, spread: float) -> float:
    """The length of a closed loop on the sphere, (z, spread) seen from 0.   (n, d)

    A unit with weights N(0, 1) and a bias N(0, spread²) crosses the loop length / π times in the mean, exactly so as
    the points become dense (Cauchy and Crofton: a great sphere meets an arc shorter than π with chance length / π).
    """
    x = np.column_stack([z, np.full(len(z), spread)])
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    chord = np.linalg.norm(x - np.roll(x, -1, axis=0), axis=1)
    return float(np.sum(2 * np.arcsin(np.minimum(chord / 2, 1.0))))
