"""The training loop: batches in, checkpoints and events out. It prints nothing; listeners do."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm.data import Evaluation
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.sharding import mesh as make_mesh
from jaxlm.train.checkpoint import Checkpoints
from jaxlm.train.experiment import Experiment
from jaxlm.train.guard import Skips
from jaxlm.train.processes import Watch, alone, check_mesh, first
from jaxlm.train.step import TrainState, batch_sharding, evaluation_step, first_state, train_step
from jaxlm.typing import Params

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Stopped(Exception):
    """A signal ended the run after its state was saved.   signal: its number; step: of the checkpoint"""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}, which is saved")
        self.signum, self.step = signum, step


class Diverged(ArithmeticError):
    """Too many updates in a row had to be skipped: the run ends, its last good state is saved."""


SHARED = (ConfigError, ShapeError, Stopped, Diverged)  # raised by all processes of a run alike


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run gives.

    params          as they ended
    step            updates, made or skipped
    skipped         of them
    loss            of the last one that was told of
    bits_per_byte   of the held-out text
    seconds         of this call
    """

    params: Params
    step: int
    skipped: int
    loss: float
    bits_per_byte: float
    seconds: float


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, to be looked at between two updates; a second one acts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {}

    def handler(signum: int, frame: Any) -> None:
        caught.append(signum)
        signal.signal(signum, before[signum])

    for signum in (signal.SIGINT, signal.SIGTERM):
        before[signum] = signal.signal(signum, handler)
    try:
        yield caught
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def placed(exp: Experiment, mesh: Any, text: Any, step: int, size: int) -> dict:
    """Batch `step` of `size` rows of a text, on its devices; a process makes the rows of its own devices only."""
    shape = (size, text.length)
    where = batch_sharding(exp, mesh, shape)

    def rows(index: Any) -> tuple[int, int]:
        return index[0].indices(size)[:2]

    spans = {rows(index) for index in where.addressable_devices_indices_map(shape).values()}
    made = {span: text.batch(step, size, slice(*span)) for span in spans}

    def field(name: str) -> jax.Array:
        def piece(index: Any) -> Any:
            return made[rows(index)][name][:, index[1]]

        return jax.make_array_from_callback(shape, where, piece)

    return {name: field(name) for name in next(iter(made.values()))}


def evaluate(
    exp: Experiment, mesh: Any, step: Callable, params: Params, text: Evaluation, rows: int = 0,
    between: Callable[[], None] = lambda: None,
) -> float:  # fmt: skip
    """Bits per byte of a text; `rows` > 0 reads only that many rows of it. `between` is called after each batch."""
    total, size = min(rows or text.rows, text.rows), exp.batch // exp.accumulate
    nats = weight = 0.0
    for i in range(-(-total // size)):
        n, w = step(params, placed(exp, mesh, text, i, size))
        nats, weight = nats + float(n), weight + float(w)
        between()
    return text.stream.bits_per_byte(nats, weight)


class Run:
    """One experiment in one directory: everything that the loop needs, made once."""

    def __init__(
        self,
        exp: Experiment,
        directory: Path,
        listeners: Sequence[Listener] = (),
        create: Callable[[], None] = lambda: None,
    ):
        """One experiment in one directory.

        listeners   told what happens; of several processes, those of the first only
        create      called when everything was found usable, before anything is written to the directory
        """
        self.exp, self.directory, self.listeners = exp, Path(directory), listeners
        self.mesh = make_mesh(exp.mesh)
        check_mesh(self.mesh, exp.mesh)
        part, wide = exp.batch // exp.accumulate, exp.evaluate_length or exp.data.length
        for shape in ((part, exp.data.length), (part, wide)):
            batch_sharding(exp, self.mesh, shape)  # raises before anything is read
        self.make, self.target = first_state(exp, self.mesh)
        self.update, self.score = train_step(exp, self.mesh), evaluation_step(exp, self.mesh)
        self.training = exp.data.training(exp.seed)
        self.held_out = exp.data.evaluation(exp.evaluate_length or None)
        create()
        self.checkpoints = Checkpoints(self.directory / "checkpoints", exp.keep, clear=True)

    def emit(self, kind: str, **values: Any) -> None:
        try:
            for listener in self.listeners if first() else ():
                listener({"kind": kind, **values})
        except BrokenPipeError:  # nobody reads what is said
            raise
        except OSError as e:
            raise self.checkpoints.failed("the log", e) from e

    def begin(self) -> TrainState:
        """The state of the newest good checkpoint, or a new one."""
        if not self.checkpoints.steps():
            return self.make()
        step, state, damaged = self.checkpoints.restore(self.target, lambda text: self.emit("note", text=text))
        for worse in damaged:  # out of the way of new ones, now that a good one is in hand
            self.checkpoints.set_aside(worse)
        self.emit("resume", step=step)
        return state

    def save(self, state: TrainState, wait: bool = False) -> None:
        self.checkpoints.save(int(state.step), state, wait)
        self.emit("save", step=int(state.step))

    def stop(self, state: TrainState, signum: int) -> None:
        """Answer a signal."""
        self.save(state, wait=True)
        raise Stopped(signum, int(state.step))

    def evaluate(self, state: TrainState, rows: int, watch: Watch) -> float:
        def between() -> None:
            if signum := watch():
                self.stop(state, signum)

        bits = evaluate(self.exp, self.mesh, self.score, state.params, self.held_out, rows, between)
        self.emit("evaluation", step=int(state.step), bits_per_byte=bits, whole=not rows)
        return bits

    def __call__(self) -> Result:
        """Train to the last step; returns what it ended with, or raises Stopped after saving."""
        began = time.monotonic()
        with signals_noted() as caught:
            watch = Watch(caught)
            try:
                state = self.begin()
                state, loss = self.updates(state, watch)
                self.save(state)
                bits = self.evaluate(state, 0, watch)
                self.checkpoints.wait()
                if signum := watch.now():
                    raise Stopped(signum, self.exp.steps)
            except BaseException as e:
                if alone() or isinstance(e, SHARED):  # else other processes may be gone, and closing waits for them
                    self.checkpoints.close()
                raise
            self.checkpoints.close()
        return Result(state.params, self.exp.steps, int(state.guard.skipped), loss, bits, time.monotonic() - began)

    def updates(self, state: TrainState, watch: Watch) -> tuple[TrainState, float]:
        exp, begun, loss = self.exp, int(state.step), math.nan
        if begun > exp.steps:
            raise ConfigError(
                f"Experiment.steps = {exp.steps}: the run has made {begun} already; expected at least that"
            )
        clock = Clock(exp, begun)
        skips = Skips(self.directory / "skipped", exp.spike, exp.patience, int(state.guard.row), self.emit)
        self.emit("begin", step=begun, steps=exp.steps)
        if begun and self.evaluates(begun):  # it was due, and may have been cut short
            self.evaluate(state, exp.evaluate_rows, watch)
        for step in range(begun + 1, exp.steps + 1):
            batch = placed(exp, self.mesh, self.training, step - 1, exp.batch)
            state, metrics = self.update(state, batch)
            skips(step, batch, metrics)
            if skips.over:
                self.save(state, wait=True)
                raise Diverged(f"{skips.row} updates in a row were skipped; {skips.reason}; try a smaller --lr")
            last = step == exp.steps
            stop, due = watch(), step % exp.log_every == 0 or step == begun + 1 or last
            saving = bool(exp.save_every) and step % exp.save_every == 0 and not last
            if due or saving or stop:
                skips.settle()
            if due and not skips.row:
                loss, weight, norm = (float(metrics[name]) for name in ("loss", "weight", "norm"))
                bits = self.training.stream.bits_per_byte(loss * weight, weight)
                aux = {name: float(metrics[name]) for name, _ in exp.aux}
                self.emit("update", step=step, loss=loss, bits_per_byte=bits, norm=norm, **aux, **clock.tick(step))
            if stop:
                self.stop(state, stop)
            if saving and not skips.row:  # a state that is not new would push out an older one
                self.save(state)
            if self.evaluates(step):
                self.evaluate(state, exp.evaluate_rows, watch)
        return state, loss

    def evaluates(self, step: int) -> bool:
        """Is an evaluation due after an update? After the last one there is another, of all rows."""
        every = self.exp.evaluate_every
        return bool(every) and step % every == 0 and step < self.exp.steps


class Clock:
    """Rate and time to go, from the updates after the compiling one."""

    def __init__(self, exp: Experiment, first: int):
        self.exp, self.first = exp, first
        self.began, self.steady = time.monotonic(), None

    def tick(self, step: int) -> dict[str, float]:
        """{tokens_per_second, seconds_left, seconds}; rate 0 until two updates are done."""
        now = time.monotonic()
        if self.steady is None:
            self.steady = (now, step)
        since, at = self.steady
        rate = (step - at) / (now - since) if step > at else 0.0
        left = (self.exp.steps - step) / rate if rate else 0.0
        per_step = self.exp.batch * self.exp.data.length
        return {"tokens_per_second": rate * per_step, "seconds_left": left, "seconds": now - self.began}


def restore_weights(exp: Experiment, directory: Path, note: Callable[[str], None]) -> tuple[int, Params]:
    """(step, weights) of the newest good checkpoint of a run."""
    if not (Path(directory) / "checkpoints").is_dir():
        raise ConfigError(f"run = {str(directory)!r}: expected a run directory with checkpoints")
    _, target = first_state(exp, make_mesh(exp.mesh))
    checkpoints = Checkpoints(Path(directory) / "checkpoints", exp.keep)
    try:
        step, state, _ = checkpoints.restore(target, note)
    finally:
        checkpoints.close()
    return step, state.params
