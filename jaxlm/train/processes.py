"""What the processes of one run agree on. Where there is only one, every word here is the plain thing itself.

A run over several processes begins with `jax.distributed.initialize`; from then on all of them run the same program,
and each call here is made by all of them, in the same order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import ConfigError
from jaxlm.typing import Array, Tree

T = TypeVar("T")
ROOM = 4096  # bytes that a process tells the others at once: a path, or the line of an error


class Elsewhere(RuntimeError):
    """Another process failed; says which and how."""


def alone() -> bool:
    """Whether this process is the whole run."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def first() -> bool:
    """Whether this process is the one that writes logs, pictures and results."""
    return alone() or jax.process_index() == 0


def told(text: str) -> list[str]:
    """What each process says, up to ROOM bytes of it, in their order."""
    if alone():
        return [text]
    from jax.experimental import multihost_utils

    line = np.frombuffer(text.encode()[:ROOM].ljust(ROOM, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(line))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


def shared(text: str) -> str:
    """What the first process says."""
    return told(text)[0]


def together(action: Callable[[], T]) -> T:
    """action() on every process. If it fails on one, all raise that one's error, so that none waits for another."""
    if alone():
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as e:
        error = e
    line = "" if error is None else " ".join(str(error).split()) or type(error).__name__
    said = told(line and f"{isinstance(error, ConfigError):d}{line}")
    failed = next((i for i, text in enumerate(said) if text), None)
    if failed is None:
        return result  # type: ignore[return-value]
    if failed == jax.process_index() and error is not None:
        raise error
    wrong_input, text = said[failed][0] == "1", said[failed][1:]
    raise ConfigError(text) if wrong_input else Elsewhere(f"process {failed}: {text}")


def once(action: Callable[[], Any]) -> None:
    """action() on the first process while the others wait for it; where it fails, it fails on all."""
    together(action if first() else lambda: None)


def whole(tree: Tree) -> Tree:
    """Arrays as numpy on every process, whichever devices hold them."""
    if alone():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def check_mesh(mesh: Mesh, text: str) -> None:
    """Raise where a mesh leaves out devices of a run over several processes."""
    if not alone() and mesh.size != jax.device_count():
        raise ConfigError(
            f"Experiment.mesh = {text!r}: has {mesh.size} of the {jax.device_count()} devices of "
            f"{jax.process_count()} processes; expected all of them, such as 'fsdp=-1'"
        )


class Watch:
    """The signal that any process has caught, 0 for none: the same answer on all of them at the same step.

    The answer is a step old: it travels while the devices compute, so that nothing waits for it.

    caught   signals of this process, filled while the run goes on
    """

    def __init__(self, caught: list[int]):
        self.caught, self.sent = caught, None

    def __call__(self) -> int:
        if alone():
            return self.own
        before, self.sent = self.sent, largest(self.own)
        return 0 if before is None else int(before)

    def now(self) -> int:
        """The same, waited for."""
        return self.own if alone() else int(largest(self.own))

    @property
    def own(self) -> int:
        return self.caught[0] if self.caught else 0


def largest(number: int) -> Array:
    """The largest of the numbers that the processes give."""
    everywhere = NamedSharding(Mesh(np.asarray(jax.devices()), ("device",)), PartitionSpec("device"))
    numbers = jax.make_array_from_callback(
        (jax.device_count(),), everywhere, lambda index: np.full(1, number, np.int32)
    )
    return _largest(numbers)


_largest = jax.jit(jnp.max)
