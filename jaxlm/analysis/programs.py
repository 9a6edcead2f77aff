"""Short programs as deep ReLU networks, exact on natural numbers (Chatterjee & Sudijono 2024).

A program assigns sums with whole coefficients, cut off at 0, several at once, and repeats. An assignment is a layer
h -> max(W h + b, 0), which keeps what is not assigned: natural numbers pass a ReLU as they are.

    Assign(hit=sum_of(1, over=-1, under=-1))      hit := max(1 - over - under, 0)
    Repeat(5, (Assign(p=sum_of(p=1, i=1)),))      five times p := p + i
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.typing import Array


class Sum(NamedTuple):
    """A constant and whole multiples of variables."""

    constant: int
    terms: tuple[tuple[str, int], ...]


def sum_of(constant: int = 0, /, **terms: int) -> Sum:
    return Sum(constant, tuple(terms.items()))


@dataclass(frozen=True, init=False)
class Assign:
    """Variables that get the values of sums, 0 where these are negative, all at once."""

    sums: tuple[tuple[str, Sum], ...]

    def __init__(self, **sums: Sum):
        object.__setattr__(self, "sums", tuple(sums.items()))


@dataclass(frozen=True)
class Repeat:
    """A program, some times."""

    times: int
    body: "Program"


Program = tuple[Assign | Repeat, ...]


class ReLUNet(NamedTuple):
    """h -> max(h W_l + b_l, 0), l = 1, 2, ...

    weights     (l, n, n)
    biases      (l, n)
    names       of the n variables, in the order of h
    """

    weights: np.ndarray
    biases: np.ndarray
    names: tuple[str, ...]

    def run(self, **inputs: Array | np.ndarray) -> dict[str, Array]:
        """All variables at the end, of inputs (b,) each; the others begin with 0."""
        unknown = set(inputs) - set(self.names)
        if unknown:
            raise ConfigError(f"inputs: {sorted(unknown)} are no variables, expected some of {', '.join(self.names)}")
        zeros = jnp.zeros(len(next(iter(inputs.values()))), jnp.float32)
        start = jnp.stack([jnp.asarray(inputs.get(n, zeros), jnp.float32) for n in self.names], axis=1)
        end = _forward(jnp.asarray(self.weights, jnp.float32), jnp.asarray(self.biases, jnp.float32), start)
        return dict(zip(self.names, end.T, strict=True))


def compile_program(program: Program, variables: tuple[str, ...]) -> ReLUNet:
    """The network of a program; float32 holds whole numbers below 2^24 exactly.

    Raises ConfigError for a variable that is not among them.
    """
    layers = [_layer(step, variables) for step in _steps(program)]
    return ReLUNet(np.stack([w for w, _ in layers]), np.stack([b for _, b in layers]), variables)


def execute(program: Program, values: Mapping[str, int]) -> dict[str, int]:
    """All variables at the end, by plain arithmetic; what has no value is 0."""
    now = dict(values)
    for step in _steps(program):
        new = {n: max(s.constant + sum(c * now.get(v, 0) for v, c in s.terms), 0) for n, s in step.sums}
        now |= new
    return now


def tokens(program: Program) -> int:
    """Length of a program: one token for each repeat, name, coefficient and constant."""
    return sum(_length(step) for step in program)


def primality(largest: int) -> Program:
    """prime := 1 if n is prime, else 0, for n up to `largest`: n is compared with all products.

    Variables: n, i, p, over, under, hit, found, small, prime.
    """
    compare = (
        Assign(p=sum_of(p=1, i=1)),
        Assign(over=sum_of(n=1, p=-1), under=sum_of(p=1, n=-1)),
        Assign(hit=sum_of(1, over=-1, under=-1)),
        Assign(found=sum_of(found=1, hit=1)),
    )
    multiples = (Assign(i=sum_of(1, i=1), p=sum_of(1, i=1)), Repeat(max(largest // 2 - 1, 0), compare))
    return (
        Assign(i=sum_of(1)),
        Repeat(max(math.isqrt(largest) - 1, 0), multiples),
        Assign(small=sum_of(2, n=-1)),
        Assign(prime=sum_of(1, found=-1, small=-1)),
    )


PRIMALITY_VARIABLES = ("n", "i", "p", "over", "under", "hit", "found", "small", "prime")


def _length(step: Assign | Repeat) -> int:
    if isinstance(step, Repeat):
        return 2 + tokens(step.body)
    return sum(2 + 2 * len(terms) for _, (_, terms) in step.sums)


def _steps(program: Program) -> Iterator[Assign]:
    for step in program:
        if isinstance(step, Repeat):
            for _ in range(step.times):
                yield from _steps(step.body)
        else:
            yield step


def _layer(step: Assign, variables: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    weights, bias = np.eye(len(variables)), np.zeros(len(variables))
    for name, (constant, terms) in step.sums:
        unknown = {name, *(v for v, _ in terms)} - set(variables)
        if unknown:
            raise ConfigError(f"program: {sorted(unknown)} are no variables, expected some of {', '.join(variables)}")
        at = variables.index(name)
        weights[:, at], bias[at] = 0, constant
        for v, c in terms:
            weights[variables.index(v), at] += c
    return weights, bias


@jax.jit
def _forward(weights: Array, biases: Array, start: Array) -> Array:
    layer = lambda h, wb: (jax.nn.relu(jnp.matmul(h, wb[0], precision="highest") + wb[1][None]), None)  # noqa: E731
    return jax.lax.scan(layer, start, (weights, biases))[0]
