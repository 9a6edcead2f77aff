"""A small experiment to do harm to: runs of it in processes of their own, and what is left of them."""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from fault_child import Fault, Setting, by_flags, gone, jaxlm, start

from jaxlm.sharding import mesh as make_mesh
from jaxlm.train.checkpoint import Checkpoints, flat
from jaxlm.train.processes import once, whole
from jaxlm.train.report import read_metrics
from jaxlm.train.rundir import RunDirectory
from jaxlm.train.step import first_state

ROOT = Path(__file__).parents[1]
TEXT, TINY = str(ROOT / "LICENSE"), ROOT / "tests" / "tiny.py"
SAVE, EVALUATE = 5, 10  # updates between two
MESH = "data=4,fsdp=2"
HOWS = ("truncated", "emptied", "one bit flipped", "removed")


class Row(NamedTuple):
    """A line of the table.

    fault, where   what happened
    times          how often
    recovered      how often it went on from the newest commit, and said what it should
    lost           updates after the last commit that were made again, at most
    same           whether the end is that of the quiet run bit for bit; None: another mesh
    seconds        from the signal to a committed checkpoint, at most; None: no signal that it could answer
    said           a line that the user reads
    """

    fault: str
    where: str
    times: int
    recovered: int
    lost: int
    same: bool | None
    seconds: float | None = None
    said: str = ""


class Ended(NamedTuple):
    """How a process ended.

    code      exit code, minus the signal that killed it
    said      all that it said
    hurt      when it was hurt, ended: when it was gone (monotonic seconds)
    seconds   from the hurt until a checkpoint was complete
    """

    code: int | None
    said: str
    hurt: float | None
    ended: float
    seconds: float | None


class Lab:
    """A folder for runs of one small experiment, and a quiet one of them to compare with.

    steps   updates of a run
    seed    of all random points
    """

    def __init__(self, folder: Path, steps: int, seed: int, processes: int = 1):
        self.folder, self.steps, self.rng, self.processes = Path(folder), steps, random.Random(seed), processes
        self.args = ["train", str(TINY), "--text", TEXT, "--mixer", "MinGRU", "--steps", str(steps)]
        self.args += ["--save-every", str(SAVE), "--evaluate-every", str(EVALUATE)]
        self.args += ["--mesh", MESH] if processes > 1 else []
        self.end: Any = None

    def go(
        self, run: str, fault: Fault | None = None, who: int = 0, work: Callable = jaxlm, args: Sequence[str] = (),
        cold: bool = False, **seen: Any,
    ) -> list[Ended]:  # fmt: skip
        """Train in FOLDER/run to the end or to the fault of process `who`; how each process ended."""
        members = by_flags(self.processes) if self.processes > 1 else [[]]
        cache = "" if cold else str(self.folder / "cache")
        setting = Setting(max(8 // len(members), 1) if members[0] else 1, cache, **seen)
        logs = [self.folder / f"{run}.{i}.log" for i in range(len(members))]
        before = [log.stat().st_size if log.exists() else 0 for log in logs]
        times = logs[who].with_suffix(".times")
        times.unlink(missing_ok=True)
        args = [*self.args, *args, "--run-dir", str(self.folder / run)]
        processes = [
            start([*args, *flags], log, setting, fault if i == who else None, work)
            for i, (flags, log) in enumerate(zip(members, logs, strict=True))
        ]
        times_gone = [gone(process) for process in processes]
        noted = [json.loads(line) for line in times.read_text().splitlines()] if times.exists() else []
        hurt = next((e["signal"] for e in noted if "signal" in e), None)
        saved = next((e["committed"] for e in noted if hurt and e.get("committed", 0) > hurt), None)
        said = [log.read_bytes()[n:].decode(errors="replace") for log, n in zip(logs, before, strict=True)]
        seconds = saved - hurt if hurt and saved else None
        ends = zip(processes, said, times_gone, strict=True)
        return [Ended(process.exitcode, text, hurt, when, seconds) for process, text, when in ends]

    def quiet(self) -> Any:
        """How the run ends that nothing befalls."""
        if self.end is None:
            ended = self.go("quiet")
            assert all(e.code == 0 for e in ended), ended[0].said
            self.end = self.ending("quiet")
        return self.end

    def ending(self, run: str) -> Any:
        """Exported weights, fingerprint of the whole last state, every loss and evaluation."""
        where = self.folder / run
        meta = json.loads((where / "checkpoints" / str(self.steps) / "meta" / "metadata").read_text())
        logged = read_metrics(where / "metrics.jsonl")
        events = [(e["kind"], e["step"], e.get("loss"), e.get("bits_per_byte")) for e in logged]
        return (where / "params.safetensors").read_bytes(), meta["fingerprint"], events

    def same(self, run: str) -> bool:
        """Whether a run ended as the quiet one, each step and evaluation logged once."""
        return self.ending(run) == self.quiet()

    def committed(self, run: str) -> int:
        """The newest complete checkpoint, 0 for none."""
        folder = self.folder / run / "checkpoints"
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)

    def half(self, run: str) -> bool:
        """Whether a checkpoint was left half written."""
        return any((self.folder / run / "checkpoints").glob("*tmp*"))

    def logged(self, run: str) -> int:
        """The last update that was told of."""
        return max((e["step"] for e in read_metrics(self.folder / run / "metrics.jsonl")), default=0)


def went_on(ended: Ended, step: int) -> bool:
    """Whether a process began where it should."""
    found = re.search(r"going on after step (\d+)", ended.said)
    return (int(found[1]) if found else 0) == step


def shown(folder: Path) -> list[int]:
    """The updates that TensorBoard shows: files in the order of their names, each taking back from where it begins."""
    record = import_module("tensorboardX.proto.event_pb2").Event
    steps: list[int] = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = struct.unpack_from("<Q", data, at)[0]
            event = record.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == "update/loss"]
    return steps


def hurt(path: Path, how: str, rng: random.Random) -> None:
    """Damage one file."""
    data = bytearray(path.read_bytes())
    if how == "removed":
        return path.unlink()
    if how == "one bit flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data[: {"truncated": len(data) // 2, "emptied": 0}.get(how, len(data))])


def damage(run: Path, scratch: Path, seed: int, hows: tuple[str, ...] = HOWS) -> list[Row]:
    """Every file of the newest checkpoint hurt in each way, in a copy; called by all processes of a run."""
    rng, rows, exp = random.Random(seed), [], RunDirectory(run).experiment()
    _, target = first_state(exp, make_mesh(exp.mesh))
    checkpoints = Checkpoints(run / "checkpoints")
    newest, older = checkpoints.steps()[:2]
    want = {step: bits(whole(checkpoints.read(step, target))) for step in (newest, older)}
    checkpoints.close()
    folder = run / "checkpoints" / str(newest)
    files = sorted(p.relative_to(folder.parent) for p in folder.rglob("*") if p.is_file())
    for how in hows:
        right, fell, said = 0, 0, ""
        for file in files:
            if how != "removed" and not (folder.parent / file).stat().st_size:
                right += 1  # nothing in it that could be hurt
                continue

            def copy(file: Path = file, how: str = how) -> None:
                shutil.rmtree(scratch, ignore_errors=True)
                for step in (newest, older):
                    shutil.copytree(folder.with_name(str(step)), scratch / "checkpoints" / str(step))
                hurt(scratch / "checkpoints" / file, how, rng)

            once(copy)
            notes: list[str] = []
            checkpoints = Checkpoints(scratch / "checkpoints")
            step, state, damaged = checkpoints.restore(target, notes.append)
            for worse in damaged:
                checkpoints.set_aside(worse)
            checkpoints.close()
            told = (step == newest and not notes) or (step == older and len(notes) == 1 and "is damaged" in notes[0])
            right += bits(whole(state)) == want[step] and told and (step == newest or (scratch / "damaged").is_dir())
            fell += step == older
            said = notes[0] if notes else said
        processes = "one process" if jax.process_count() == 1 else f"{jax.process_count()} processes"
        where = f"each file of the newest checkpoint, {processes}; {fell} mattered"
        all_right, lost = right == len(files), newest - older if fell else 0
        rows.append(Row(f"a file {how}", where, len(files), right, lost, all_right, None, said))
    return rows


def bits(tree: Any) -> dict[str, bytes]:
    """Every value of a tree by its path."""
    return {name: np.asarray(x).tobytes() for name, x in flat(tree).items()}
