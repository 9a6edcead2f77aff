"""Accelerators by what bounds a step: memory, products, traffic to memory, traffic between chips."""

from dataclasses import dataclass

from jaxlm.errors import ConfigError


@dataclass(frozen=True)
class Chip:
    """One chip, as its maker publishes it.

    memory      bytes
    flops       of bfloat16 products, a second
    bandwidth   bytes a second to its memory
    network     bytes a second to its neighbours, all links together, one way
    dollars     an hour, list price without commitment (2025); prices move: a plan's cost is a hint
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    network: float
    dollars: float


GiB = 2.0**30
CHIPS = {
    c.name: c
    for c in (
        Chip("v4", 32 * GiB, 275e12, 1228e9, 300e9, 3.22),
        Chip("v5e", 16 * GiB, 197e12, 819e9, 200e9, 1.20),
        Chip("v5p", 95 * GiB, 459e12, 2765e9, 600e9, 4.20),
        Chip("v6e", 32 * GiB, 918e12, 1640e9, 448e9, 2.70),
        Chip("a100", 80 * GiB, 312e12, 2039e9, 300e9, 3.67),
        Chip("h100", 80 * GiB, 989e12, 3350e9, 450e9, 6.98),
    )
}


def chip(name: str) -> Chip:
    """A chip by its name; ConfigError names those that are known."""
    if name not in CHIPS:
        raise ConfigError(f"chip = {name!r}: unknown; expected one of {', '.join(CHIPS)}")
    return CHIPS[name]
