"""What a run meets, and what is left of it: every fault on a small run, and the recovery table.

python tests/faults.py [--kills 20] [--seed 0] [--json examples/results/faults.json]
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import conftest  # noqa: F401  the settings of the tests: 8 devices, quick compiles
import jax
from fault_child import NO_DISK, Fault, jaxlm, on_small_disk
from fault_lab import EVALUATE, TEXT, TINY, Lab, Row, bits, damage, shown, went_on
from tiny import experiment

from jaxlm.cli import hush
from jaxlm.cli.cluster import joined
from jaxlm.cli.train import command
from jaxlm.sharding import mesh as make_mesh
from jaxlm.train.checkpoint import Checkpoints
from jaxlm.train.loop import placed
from jaxlm.train.processes import first
from jaxlm.train.report import read_metrics
from jaxlm.train.rundir import newest_run, versions
from jaxlm.train.step import first_state, train_step

DAY = 86400.0
HALF = ("truncated", "one bit flipped")
PHASES = ("compile", "evaluation", "save", "update", "last evaluation", "export")


def random_kill(rng: random.Random, where: str, step: int) -> Fault:
    """SIGKILL at that place, some time after its first, or, for an update, after one of the next."""
    delay = rng.uniform(0, {"save": 0.1, "start": 1.5}.get(where, 0.02))
    return Fault(signal.SIGKILL, where, step + rng.randint(1, 8) if where == "update" else 1, delay)


def kills(lab: Lab, times: int) -> list[Row]:
    """SIGKILL at random points of one run, again and again, then on to its end."""
    run, step = "killed", 0
    wheres = [("save", "update", "evaluation", "save", "update", "start")[i % 6] for i in range(times)]
    lab.rng.shuffle(wheres)
    wheres = [*wheres[:-1], "export"] if times > 6 else wheres
    open_, seen, halves = [], {where: [] for where in wheres}, 0
    for where in [*wheres, None]:
        fault = random_kill(lab.rng, where, step) if where else None
        ended = lab.go(run, fault)[0]
        assert ended.code == (-signal.SIGKILL if where else 0), (fault, ended)
        if re.search(r"going on after|step \d+/", ended.said):  # else it was killed before it could say where it began
            for place, step, made in open_:
                seen[place].append((went_on(ended, step), max(made - step, 0)))
            open_ = []
        step = lab.committed(run)
        halves += lab.half(run)
        open_.append((where, step, lab.logged(run)))
    same = lab.same(run)
    said = f"{halves} of {times} left a half-written checkpoint"
    return [
        Row("SIGKILL", where, len(all_), sum(ok for ok, _ in all_), max(lost for _, lost in all_), same, None, said)
        for where, all_ in seen.items()
    ]


def stops(lab: Lab, wheres: tuple[str, ...] = PHASES) -> list[Row]:
    """SIGTERM in every phase of one run, and a SIGINT; each time it goes on. While it compiles, it acts after that."""
    run, step, rows = "stopped", 0, []
    last = len(range(EVALUATE, lab.steps, EVALUATE))
    for where in wheres:
        passed = step // EVALUATE - (step > 0 and step % EVALUATE == 0)  # one at the first step is made again
        fault = {
            "compile": Fault(signal.SIGTERM, "update", 1, 0.3),
            "save": Fault(signal.SIGTERM, "save", 1, lab.rng.uniform(0, 0.05)),
            "update": Fault(signal.SIGINT, "update", step + lab.rng.randint(2, 6)),
            "last evaluation": Fault(signal.SIGTERM, "evaluation", last - passed + 1),
        }.get(where, Fault(signal.SIGTERM, where))
        ended = lab.go(run, fault, cold=where == "compile")[0]
        begun, step = step, lab.committed(run)
        name = signal.Signals(fault.signum).name
        line = f"stopped by {name}" + (f" after step {step}, which is saved" if where != "export" else "")
        ok = ended.code == 128 + fault.signum and line in ended.said and went_on(ended, begun)
        lost = max(lab.logged(run) - step, 0)
        rows.append(Row(name, where, 1, int(ok), lost, None, ended.seconds, ended.said.strip().splitlines()[-1]))
    ended = lab.go(run)[0]
    assert ended.code == 0, ended.said
    same = went_on(ended, lab.steps) and lab.same(run)
    return [row._replace(same=same) for row in rows]


def deaths(lab: Lab) -> list[Row]:
    """One of several processes dies, not the first and then the first; the others end, and all begin again."""
    run, step, rows = "died", 0, []
    lab.quiet()
    for who in (lab.rng.randint(1, lab.processes - 1), 0):
        ended = lab.go(run, Fault(signal.SIGKILL, "update", step + lab.rng.randint(6, 10)), who)
        others = [e for i, e in enumerate(ended) if i != who]
        lines = [re.findall(r"^(?:error|stopped)\b.*$", e.said, re.MULTILINE) for e in others]
        clear = all(
            len(found) == 1 and e.said.rstrip().endswith(found[0]) for e, found in zip(others, lines, strict=True)
        )
        ok = ended[who].code == -signal.SIGKILL and clear and all(e.code == 1 for e in others)
        begun, step = step, lab.committed(run)
        ok = ok and went_on(ended[0], begun)
        name = f"process {who} of {lab.processes}" + (", which all meet at" if who == 0 else "")
        later = max(e.ended for e in ended) - (ended[who].hurt or 0)
        said = f"{later:.1f} s later: {others[0].said.strip().splitlines()[-1]}"
        rows.append(Row("a process dies", name, 1, int(ok), max(lab.logged(run) - step, 0), None, None, said))
    ended = lab.go(run)
    same = all(e.code == 0 for e in ended) and went_on(ended[0], step) and lab.same(run)
    return [row._replace(same=same) for row in rows]


def damage_of_one(lab: Lab) -> list[Row]:
    lab.quiet()
    return damage(lab.folder / "quiet", lab.folder / "copy", lab.rng.randrange(2**32))


def damage_of_two(lab: Lab, hows: tuple[str, ...] = HALF) -> list[Row]:
    """The same, written and read by two processes; then a run of two goes on from the one before, to the same end."""
    ended = lab.go("quiet", work=partial(train_and_damage, hows=hows))
    assert all(e.code == 0 for e in ended), ended
    rows = [Row(*row) for row in json.loads((lab.folder / "quiet.json").read_text())]
    lab.end = lab.ending("quiet")
    run = lab.folder / "fell"
    shutil.copytree(lab.folder / "quiet", run)
    for file in (run / "checkpoints" / str(lab.steps) / "values").glob("ocdbt.process_1/d/*"):
        file.write_bytes(b"")
    ended = lab.go("fell")
    step = lab.steps - 5
    ok = all(e.code == 0 for e in ended) and went_on(ended[0], step)
    ok = ok and f"checkpoint {lab.steps} is damaged" in ended[0].said and "damaged" not in ended[1].said
    said = next(line for line in ended[0].said.splitlines() if "damaged" in line)
    return [
        *rows,
        Row(
            "files emptied",
            "a run of two processes goes on",
            1,
            int(ok),
            lab.steps - step,
            lab.same("fell"),
            None,
            said,
        ),
    ]


def train_and_damage(args: list[str], hows: tuple[str, ...] = HALF) -> None:
    """In each process of a run: train, then hurt copies of what was written."""
    with joined(args):
        command(args[1:])
        run = Path(args[args.index("--run-dir") + 1])
        rows = damage(run, run.with_name("copy"), 0, hows)
        if first():
            run.with_suffix(".json").write_text(json.dumps(rows))


def restores(lab: Lab) -> list[Row]:
    """A checkpoint of one mesh is read on the next one, bit for bit, and an update made there."""
    meshes = ("data=2,fsdp=4", "data=4,fsdp=2", "", "fsdp=8")
    checkpoints, rows, before = Checkpoints(lab.folder / "meshes"), [], {}
    for step, name in enumerate(meshes):
        exp, notes = experiment(text=(TEXT,), mixer="MinGRU", mesh=name), []
        mesh = make_mesh(name)
        make, target = first_state(exp, mesh)
        state = checkpoints.restore(target, notes.append)[1] if step else make()
        same = bits(jax.device_get(state)) == before and not notes
        there = jax.tree.all(jax.tree.map(lambda x, t: x.sharding == t.sharding, state, target))
        state, seen = train_step(exp, mesh)(state, placed(exp, mesh, exp.data.training(0), step, exp.batch))
        went = math.isfinite(float(seen["loss"])) and bits(jax.device_get(state)) != before
        before = bits(jax.device_get(state))
        checkpoints.save(step + 1, state, wait=True)
        if step:
            where = f"{meshes[step - 1] or 'one device'} to {name or 'one device'}"
            rows.append(Row("another mesh", where, 1, int(there and went), 0, same))
    checkpoints.close()
    return rows


def no_room(lab: Lab) -> list[Row]:
    """The disk takes no more, in the log or in a checkpoint; later it does."""
    rows = []
    for run, where, fault, work in (
        ("limited", "files may not grow beyond 20 kB", Fault(where="save", count=3, file=20_000), jaxlm),
        ("small", "a disk of 400 kB", None, on_small_disk),
    ):
        ended = lab.go(run, fault, work=work)[0]
        if ended.code == NO_DISK:
            print("no disk of its own for a process here: that row is left out", file=sys.stderr)
            continue
        step = lab.committed(run)
        line = next((s for s in ended.said.splitlines() if s.startswith("error")), "")
        ok = ended.code == 1 and "cannot write" in line and f"the last good one is step {step}" in line and step > 0
        ok = ok and "Traceback" not in ended.said
        made = lab.logged(run)
        again = lab.go(run)[0]
        ok = ok and again.code == 0 and went_on(again, step)
        rows.append(Row("disk full", where, 1, int(ok), max(made - step, 0), lab.same(run), None, line))
    return rows


def clock(lab: Lab) -> list[Row]:
    """A run begins, is stopped, and goes on a day before that; then the clock jumps back two days more."""
    run, first_stop = "clock", 13
    lab.quiet()
    lab.go(run, Fault(signal.SIGTERM, "update", first_stop))
    for file in [p for name in (run, "quiet") for p in (lab.folder / name).rglob("*")]:
        later = file.stat().st_mtime + (3 * DAY if "quiet" in str(file) else 2 * DAY)
        os.utime(file, (later, later))
    step = lab.committed(run)
    ended = lab.go(run, Fault(clock=-2 * DAY, where="update", count=step + 7), shift=-DAY)[0]
    ok = ended.code == 0 and went_on(ended, step)
    ok = ok and newest_run(lab.folder, TINY).path.name == run
    ok = ok and shown(lab.folder / run / "tensorboard") == list(range(1, lab.steps + 1))
    said = "newest run, order of logs and of checkpoints as begun"
    return [Row("clock goes back", "between two processes, and in one", 2, 2 * ok, 0, lab.same(run), None, said)]


def bad_batches(lab: Lab) -> list[Row]:
    """A batch that is not finite, one far off: each skipped, told, written down; then the same with a kill after it."""
    rows = []
    for how, bad in (("nan", 7), ("spike", 36)):
        world = {"args": ["--spike", "2"], "bad": bad, "how": how}
        quiet = lab.go(how, **world)[0]
        skipped = [e["step"] for e in read_metrics(lab.folder / how / "metrics.jsonl") if e["kind"] == "skipped"]
        files = [p.name for p in (lab.folder / how / "skipped").iterdir()]
        ok = quiet.code == 0 and skipped == [bad] and files == [f"step-{bad:06d}.npz"]
        run = f"{how}-killed"
        lab.go(run, Fault(signal.SIGKILL, "update", bad + 2, lab.rng.uniform(0, 0.05)), **world)
        made, step = lab.logged(run), lab.committed(run)
        ok = ok and went_on(lab.go(run, **world)[0], step)
        said = next((line for line in quiet.said.splitlines() if "skipped" in line), "")
        same = lab.ending(run) == lab.ending(how)
        rows.append(
            Row("a bad batch", f"{how}, and SIGKILL after it", 1, int(ok), max(made - step, 0), same, None, said)
        )
    return rows


def table(rows: list[Row]) -> str:
    """Every fault on a small run, and the recovery table."""
    head = ("fault", "where", "times", "recovered", "made again", "same bits", "s to a commit", "what is said")
    cells = [
        (r.fault, r.where, str(r.times), str(r.recovered), str(r.lost), {True: "yes", False: "NO", None: "-"}[r.same],
         "-" if r.seconds is None else f"{r.seconds:.2f}", r.said[:110])
        for r in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=table.__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many SIGKILLs")
    parser.add_argument("--seed", type=int, default=0, help="of all random points")
    parser.add_argument("--json", type=Path, help="write the table there; rows of scenarios that did not run stay")
    parser.add_argument("--only", default="", help="scenarios by name, with commas between them; default: all")
    given = parser.parse_args()
    hush()
    scenarios: dict[str, tuple[int, int, Callable[[Lab], list[Row]]]] = {
        "kills": (10 * given.kills + 10, 1, partial(kills, times=given.kills)),
        "stops": (40, 1, stops),
        "deaths": (40, 4, deaths),
        "damage_of_one": (20, 1, damage_of_one),
        "damage_of_two": (20, 2, damage_of_two),
        "no_room": (40, 1, no_room),
        "clock": (40, 1, clock),
        "bad_batches": (40, 1, bad_batches),
        "restores": (0, 1, restores),
    }
    found: dict[str, list[Row]] = {}
    for name, (steps, processes, scenario) in scenarios.items():
        if given.only and name not in given.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = scenario(Lab(Path(folder), steps, given.seed, processes))
            found[name] = [row._replace(said=row.said.replace(f"{folder}/", "")) for row in rows]
            print(f"{name}: done", file=sys.stderr, flush=True)
    rows = [row for of_one in found.values() for row in of_one]
    print(f"seed {given.seed}\n{table(rows)}")
    if given.json:
        record(given.json, given.seed, found, list(scenarios))
    sys.exit(0 if all(r.recovered == r.times and r.same is not False for r in rows) else 1)


def record(file: Path, seed: int, found: dict[str, list[Row]], order: list[str]) -> None:
    """Write the rows of the scenarios that ran; those of others stay in the file as they are."""
    old = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [row for row in old if row.get("scenario") in order and row["scenario"] not in found]
    rows += [{"scenario": name, "seed": seed, **row._asdict()} for name, of_one in found.items() for row in of_one]
    rows.sort(key=lambda row: order.index(row["scenario"]))
    file.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
