"""What a reproduction needs and gives: the Lab that it runs in, the Claims that it makes, its Result."""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from jaxlm.data.folder import DataFolder

Tell = Callable[..., None]


def silent(fraction: float, **numbers: float) -> None:
    """A `tell` that says nothing."""


@dataclass(frozen=True)
class Lab:
    """Where a result is reproduced: everything that `run` may use besides its settings.

    key      of all randomness
    data     the data directory
    tell     tell(fraction, name=number, ...): how far it is, 0 to 1, and what it sees
    folder   where a long run keeps its progress; None: nothing is kept
    """

    key: jax.Array = field(default_factory=lambda: jax.random.key(0))
    data: DataFolder = field(default_factory=lambda: DataFolder(None))
    tell: Tell = silent
    folder: Path | None = None

    def part(self, name: str, low: float, high: float) -> "Lab":
        """The lab of a part of the work: its own key and folder, its progress shown between low and high."""

        def tell(fraction: float, **numbers: float) -> None:
            self.tell(low + (high - low) * fraction, **numbers)

        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
        return Lab(key, self.data, tell, None if self.folder is None else self.folder / name)


@dataclass(frozen=True)
class Claim:
    """A number of ours beside the paper's, and the band that it must lie in: low <= ours <= high.

    Without a band it is only reported.
    """

    name: str
    ours: float
    low: float = -math.inf
    high: float = math.inf
    paper: float | None = None

    @property
    def judged(self) -> bool:
        return not (math.isinf(self.low) and math.isinf(self.high))

    @property
    def passed(self) -> bool:
        return self.low <= self.ours <= self.high  # nan fails


@dataclass(frozen=True)
class Result:
    """Claims, and the series from which the figure is drawn: arrays, lists, numbers and strings by name."""

    claims: tuple[Claim, ...]
    series: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
