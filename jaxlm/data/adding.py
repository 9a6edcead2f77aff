"""The adding problem: remember two marked numbers of a long noisy sequence, and give their sum."""

import numpy as np

from jaxlm.data.errors import DataError

BASELINE = 1 / 6  # mean squared error of always saying 1


def adding(n: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of numbers with two marks, and the sums of the marked numbers.

    n        sequences
    length   of a sequence, at least 2
    ->       u (n, length, 2): a number from U(0, 1), a mark that is 1 once in each half;  sum (n, 1), float32

    Source: Hochreiter & Schmidhuber 1997, task 4, in the form of Arjovsky et al. 2016.
    """
    if n < 1 or length < 2:
        raise DataError(f"n = {n}, length = {length}: expected at least one sequence of two numbers")
    draw, half = np.random.Generator(np.random.Philox(seed)), length // 2
    numbers = draw.random((n, length), np.float32)
    places = np.stack([draw.integers(0, half, n), draw.integers(half, length, n)], axis=1)
    marks = np.zeros((n, length), np.float32)
    np.put_along_axis(marks, places, 1, axis=1)
    sums = np.take_along_axis(numbers, places, axis=1).sum(axis=1, keepdims=True)
    return np.stack([numbers, marks], axis=2), sums
