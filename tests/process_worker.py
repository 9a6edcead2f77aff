"""One process of a run, for tests: the command line itself, and a record of the rows that it read.

python process_worker.py REPORT.json [--stop-at STEP] [--restore RUN VALUES.npz] [--damage ROWS.json] -- ARGUMENTS
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from fault_lab import damage

import jaxlm.cli
from jaxlm.cli import train
from jaxlm.data.rows import Evaluation, Rows
from jaxlm.sharding import mesh
from jaxlm.train.checkpoint import Checkpoints, flat
from jaxlm.train.processes import first, whole
from jaxlm.train.rundir import RunDirectory
from jaxlm.train.step import first_state


def recorded(layout: type, stop_at: int = -1) -> dict[int, list[int]]:
    """{batch: its rows that were made}, filled from now on; this process gets SIGTERM as it begins that batch."""
    seen, real = {}, layout.batch

    def batch(self, step: int, size: int, part: slice = slice(None)):
        if step == stop_at and step not in seen:  # once: a second signal would end it at once
            os.kill(os.getpid(), signal.SIGTERM)
        seen.setdefault(step, []).extend(range(size)[part])
        return real(self, step, size, part)

    layout.batch = batch
    return seen


def restore(run: Path, values: Path) -> None:
    """Read another run's newest checkpoint on the devices of all processes, and write what was read."""
    exp = RunDirectory(run).experiment()
    checkpoints = Checkpoints(run / "checkpoints")
    _, state, damaged = checkpoints.restore(first_state(exp, mesh(exp.mesh))[1], print)
    checkpoints.close()
    assert not damaged
    state = whole(state)
    if first():
        np.savez(values, **flat(state))


def hurt(run: Path, rows: Path) -> None:
    """Hurt each file of copies of the run's newest checkpoint, and write what reading them gave."""
    found = damage(run, rows.with_suffix(""), 0, ("one bit flipped",))
    if first():
        rows.write_text(json.dumps(found))


if __name__ == "__main__":
    cut = sys.argv.index("--")
    own, args = sys.argv[1:cut], sys.argv[cut + 1 :]
    seen = {
        "training": recorded(Rows, int(own[own.index("--stop-at") + 1]) if "--stop-at" in own else -1),
        "held_out": recorded(Evaluation),
    }
    trained = train.command

    def and_more(args: list[str]) -> None:
        trained(args)
        if "--restore" in own:
            at = own.index("--restore")
            restore(Path(own[at + 1]), Path(own[at + 2]))
        if "--damage" in own:
            hurt(Path(args[args.index("--run-dir") + 1]), Path(own[own.index("--damage") + 1]))

    train.command = and_more
    try:
        jaxlm.cli.main(args)
    finally:
        Path(own[0]).write_text(json.dumps(seen))
