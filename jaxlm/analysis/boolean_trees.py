"""All Boolean functions that short expression trees compute, the shortest first: a class to learn in, by description.

Leaves are variables and their negations, inner nodes `and`, `or`, `xor`. A function is its truth table.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import ConfigError

OPERATIONS = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)


@dataclass(frozen=True, eq=False)
class Trees:
    """Functions by the leaves of their smallest tree.

    inputs    k
    tables    truth tables, the smallest trees first     (n, 2^k) bool
    leaves    of the smallest tree                       (n,)
    """

    inputs: int
    tables: np.ndarray
    leaves: np.ndarray

    @classmethod
    def up_to(cls, inputs: int, leaves: int) -> "Trees":
        """All functions of trees with at most so many leaves."""
        if inputs < 3 or leaves < 1:
            raise ConfigError(f"inputs, leaves = {inputs}, {leaves}: expected at least 3 and 1")  # 3: whole bytes
        columns = truth(inputs)
        literals = np.packbits(np.concatenate([columns, ~columns]), axis=1)
        sizes = [literals]
        known = {row.tobytes() for row in literals}
        for m in range(2, leaves + 1):
            found = [_pairs(sizes[a - 1], sizes[m - a - 1]) for a in range(1, m // 2 + 1)]
            rows = _distinct(np.concatenate(found))
            fresh = rows[[row.tobytes() not in known for row in rows]]
            known.update(row.tobytes() for row in fresh)
            sizes.append(fresh)
        tables = np.unpackbits(np.concatenate(sizes), axis=1).astype(bool)
        return cls(inputs, tables, np.repeat(np.arange(1, leaves + 1), [len(s) for s in sizes]))

    def bits(self, leaves: int) -> float:
        """Length of a tree with so many leaves in a prefix code: leaf or not, then which."""
        return leaves * (1 + math.log2(2 * self.inputs)) + (leaves - 1) * (1 + math.log2(len(OPERATIONS)))

    def shortest(self, asked: np.ndarray, answers: np.ndarray, rng: np.random.Generator) -> int | None:
        """One of the smallest functions that agree with all answers, by its number; None: none does.

        asked, answers   inputs as rows of the table, and bits     (m,)
        """
        left = np.arange(len(self.tables))
        for row, bit in zip(asked, answers, strict=True):
            left = left[self.tables[left, row] == bit]
        if not len(left):
            return None
        return int(rng.choice(left[self.leaves[left] == self.leaves[left[0]]]))


def truth(inputs: int) -> np.ndarray:
    """The variables themselves as truth tables.   (k, 2^k) bool"""
    return (np.arange(2**inputs)[None] >> np.arange(inputs)[:, None] & 1).astype(bool)


def occam(bits: float, samples: int, delta: float) -> float:
    """What the error of a consistent function of so many bits exceeds with probability delta at most.

    (B ln 2 + ln 1/δ) / n for n independent samples: Blumer et al. 1987.
    """
    return (bits * math.log(2) + math.log(1 / delta)) / samples


def _pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Every operation on every pair, packed.   (n, w), (m, w) -> (3 n m, w)"""
    return np.concatenate([_distinct(op(a[:, None], b[None]).reshape(-1, a.shape[1])) for op in OPERATIONS])


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Each row once.   (n, w) uint8"""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
    return np.unique(whole).view(np.uint8).reshape(-1, rows.shape[1])
