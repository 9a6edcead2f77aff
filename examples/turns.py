"""What the comparisons share: how far two results are apart, and taking turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def furthest(got: Any, want: Any) -> float:
    """The greatest difference of any leaf, relative to that leaf's greatest entry."""
    gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()), got, want)
    return max(jax.tree.leaves(gaps))


def take_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, units: int = 1) -> dict[str, list[float]]:
    """Seconds a unit of each side, A B A B; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, repeats):
        for name, run in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= 0:
                seconds[name].append((time.perf_counter() - began) / units)
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """The fastest and the median turn of each side."""
    return {"fastest": {n: min(s) for n, s in seconds.items()}} | {
        "median": {n: statistics.median(s) for n, s in seconds.items()}
    }
