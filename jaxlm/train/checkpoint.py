"""Checkpoints that are written behind the run's back, checked when they are read, and never trusted blindly.

Orbax writes them asynchronously and makes each visible only when it is complete. Beside the values lies their
fingerprint, an exact integer computed on the devices: one changed bit is noticed on any mesh, and the one
before is used.
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError
from jaxlm.module import path_name
from jaxlm.train.processes import alone, once, together
from jaxlm.typing import Array, Tree


class SaveError(OSError):
    """A checkpoint could not be written; says which one is the last good one."""


def words(x: Array) -> Array:
    """The bits of an array as uint32 numbers, flat."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32).reshape(-1)
    size = x.dtype.itemsize
    return (
        jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
        .astype(jnp.uint32)
        .reshape(-1)
    )


@jax.jit
def fingerprint(tree: Tree) -> Array:
    """uint32 of all bits of a tree: a sum with odd weights, exact in any order and so on any mesh."""
    total = jnp.zeros((), jnp.uint32)
    for i, x in enumerate(jax.tree.leaves(tree)):
        w = words(x)
        odd = 2 * jnp.arange(w.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(1_000_003) + jnp.sum(w * odd, dtype=jnp.uint32) + jnp.uint32(i)
    return total


def flat(tree: Tree) -> dict[str, Any]:
    """Leaves by path: the layout on disk does not depend on the classes of optimizer states."""
    return {path_name(path).replace("/", "."): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def layout(tree: Tree) -> dict[str, list]:
    """Shape and dtype of every leaf by path, as JSON."""
    return {name: [list(x.shape), x.dtype.name] for name, x in flat(tree).items()}


def check(meta: dict) -> int:
    """Checksum of what lies beside the values."""
    return zlib.crc32(json.dumps({k: v for k, v in meta.items() if k != "check"}, sort_keys=True).encode())


class Checkpoints:
    """The checkpoints of one run directory.

    directory   where they lie, one folder a step
    keep        how many complete ones stay
    clear       remove what a kill left half written; only for the run that writes here
    """

    def __init__(self, directory: Path, keep: int = 2, clear: bool = False):
        import orbax.checkpoint as ocp  # 0.5 s: only where a run is trained or read

        self.ocp, self.directory = ocp, Path(directory).absolute()
        if clear:
            once(self.clear)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        self.reader = self.manager if alone() else self.of_this_process()

    def clear(self) -> None:
        for half in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half, ignore_errors=True)

    def of_this_process(self) -> Any:
        """A manager that reads without waiting for the other processes: damage may meet one of them only."""
        i = jax.process_index()
        own = self.ocp.options.MultiprocessingOptions(i, {i}, f"reader{i}")
        options = self.ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=own)
        return self.ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Complete checkpoints, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, step: int, tree: Tree, wait: bool = False) -> None:
        """Begin to write; the tree is copied before this returns, and may be donated afterwards."""
        if step in self.steps():
            return self.wait()
        meta = {"step": step, "fingerprint": int(fingerprint(tree)), "layout": layout(tree)}
        meta["check"] = check(meta)
        args = self.ocp.args.Composite(values=self.ocp.args.StandardSave(flat(tree)), meta=self.ocp.args.JsonSave(meta))
        self.guard(lambda: self.manager.save(step, args=args, force=True), f"the checkpoint of step {step}")
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is complete."""
        self.guard(self.manager.wait_until_finished)

    def guard(self, action: Callable[[], Any], what: str = "the checkpoint") -> None:
        try:
            action()
        except Exception as e:
            raise self.failed(what, e) from e

    def failed(self, what: str, e: Exception) -> SaveError:
        """The error that says what cannot be written, and where the run can go on."""
        for settle in (self.manager.wait_until_finished, self.manager.reload):
            with suppress(Exception):  # one that was begun earlier may still become complete
                settle()
        good = self.steps()
        last = f"the last good one is step {good[0]}" if good else "none was complete"
        return SaveError(f"{self.directory}: cannot write {what}: {first_line(e)}; {last}")

    def restore(self, target: Tree, note: Callable[[str], None]) -> tuple[int, Tree, list[int]]:
        """(step, values, damaged steps) of the newest checkpoint that reads and whose fingerprint holds.

        target   tree of jax.ShapeDtypeStruct with shardings
        Nothing is moved or deleted. A checkpoint of another layout is not damaged: it raises, naming the leaf.
        """
        tried, damaged, reason = self.steps(), [], ""
        for step in tried:
            try:
                return step, self.read(step, target), damaged
            except ConfigError:
                raise
            except Exception as e:
                reason = first_line(e)
                note(f"checkpoint {step} is damaged ({reason}); going back to the one before")
                damaged.append(step)
        found = f"all of {tried} are damaged (the last: {reason})" if tried else "there is none"
        raise ConfigError(f"{self.directory}: expected a readable checkpoint, but {found}")

    def read(self, step: int, target: Tree) -> Tree:
        """The values of one checkpoint; raises if it cannot be read, is altered, or is of another layout."""
        tree, meta = together(partial(self.values, step, target))
        if int(fingerprint(tree)) != meta["fingerprint"]:
            raise ValueError("its values differ from their fingerprint")
        return tree

    def values(self, step: int, target: Tree) -> tuple[Tree, dict]:
        """(the values that the devices of this process hold, what lies beside them)"""
        args = self.ocp.args
        meta = self.reader.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        held, wanted = meta["layout"], layout(target)
        if meta["check"] != check(meta):
            raise ValueError("its description is altered")
        other = [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]
        if other:
            name = other[0]
            raise ConfigError(
                f"{self.directory / str(step)}: holds {name} = {held.get(name)}, this experiment has "
                f"{wanted.get(name)}; expected the run's own model, optimizer, batch and layout"
            )
        values = args.Composite(values=args.StandardRestore(flat(target)))
        out = self.reader.restore(step, args=values)["values"]
        return jax.tree.unflatten(jax.tree.structure(target), [out[name] for name in flat(target)]), meta

    def set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way: nothing is deleted."""

        def move() -> None:
            aside = self.directory.parent / "damaged"
            aside.mkdir(exist_ok=True)
            place = aside / str(step)
            while place.exists():
                place = place.with_name(place.name + "_")
            (self.directory / str(step)).rename(place)

        once(move)
        self.manager.reload()

    def close(self) -> None:
        """End the writing threads, after what they write."""
        self.guard(self.manager.close)
        if self.reader is not self.manager:
            self.reader.close()


def first_line(e: BaseException) -> str:
    """What went wrong, short enough for one line; the operating system's own words where they are in it."""
    system = re.search(r": ([^:\[\]]+) \[os_error_code", str(e))
    if system:
        return system[1]
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    lines = str(e).partition(" See full TensorStore details")[0].strip().splitlines()
    return f"{type(e).__name__}: {lines[0][:160]}" if lines else type(e).__name__
