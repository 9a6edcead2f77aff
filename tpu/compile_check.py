"""Compile a config's real training step for a pod that is not there, and tell what it needs.

command    pip install -e '.[tpu]' && python tpu/compile_check.py CONFIG --topology v5e-256 --mesh fsdp=-1 [--knobs]
needs      libtpu, which holds the compiler; no TPU
A step that does not fit, or a mesh that cannot split the model, is one line and exit code 1 or 2.
`--json FILE` writes the answers; compile_table.py makes a table of many.
"""

import dataclasses
import json
import math
import os
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask for a machine's metadata, and there is none
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it guards a TPU, and there is none
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from jaxlm.cli import explain, say
from jaxlm.cli.knobs import parse
from jaxlm.errors import ConfigError
from jaxlm.module import count
from jaxlm.plan import chip, plan
from jaxlm.plan.compiled import bytes_of, collectives
from jaxlm.sharding import mesh as make_mesh
from jaxlm.sharding import mesh_sizes, mesh_text
from jaxlm.train.config import build, find_config, known_configs, load_config
from jaxlm.train.experiment import Experiment
from jaxlm.train.step import abstract_batch, first_state, train_step

# A pod's name says chips (v5e, v6e) or cores, two a chip (v4, v5p); the compiler wants the grid.
GRIDS = {
    "v5e": {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v6e": {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v4": {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    "v5p": {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
}
FULL = re.compile(r"(?:Used|HLO temporaries) \(?([\d.]+)([KMGT])\b.*?([\d.]+[KMGT])\b")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def options(topology: str = "v5e-16", json: Path | None = None, plan_only: bool = False) -> None:
    """For which pod.

    Args:
        topology: A pod, for example v5e-16, v5e-256, v5p-128, v6e-256, v4-32.
        json: A file for the same answers.
        plan_only: Compile nothing, only plan.
    """


def devices_of(topology: str) -> list:
    """The devices of a pod by its name, without the pod."""
    from jax.experimental import topologies

    kind, _, size = topology.partition("-")
    grids = GRIDS.get(kind, {})
    if not size.isdigit() or int(size) not in grids:
        known = ", ".join(f"{k}-{n}" for k, sizes in GRIDS.items() for n in sizes)
        raise ConfigError(f"topology = {topology!r}: unknown; expected one of {known}")
    try:
        return topologies.get_topology_desc(topology_name=f"{kind}:{grids[int(size)]}", platform="tpu").devices
    except Exception as error:
        raise ConfigError(
            f"topology = {topology!r}: libtpu gives no such pod ({error}): pip install 'jaxlm[tpu]'"
        ) from error


def compiled(exp: Experiment, devices: list) -> Any:
    """The training step, compiled for those devices."""
    mesh = make_mesh(exp.mesh, devices)
    _, target = first_state(exp, mesh)
    return train_step(exp, mesh).lower(target, abstract_batch(exp, mesh)).compile()


Row = dict[str, Any]


def planned(name: str, exp: Experiment, topology: str) -> Row:
    """What the plan says of a config on a pod: all that can be known before it is compiled.

    held       bytes a chip
    moved      bytes that a chip sends in an update, by collective
    turns      of loops, one after the other
    """
    devices, kind = devices_of(topology), chip(topology.partition("-")[0])
    sizes = mesh_sizes(exp.mesh).values()
    if -1 not in sizes and math.prod(sizes) != len(devices):
        taken = math.prod(sizes)
        raise ConfigError(f"mesh {exp.mesh!r}: takes {taken} chips, expected the {len(devices)} of {topology}")
    exp = dataclasses.replace(exp, mesh=mesh_text(make_mesh(exp.mesh, devices)))
    told = plan(exp, kind)
    parts = {part: getattr(told, part) for part in ("weights", "optimizer", "memory", "batch", "temporary")}
    own = {"held": told.bytes, "bytes": parts, "fits": told.fits, "moved": told.moved, "seconds": told.seconds}
    return {
        "config": name,
        "topology": topology,
        "chips": len(devices),
        "mesh": exp.mesh,
        "rows": exp.batch,
        "accumulate": exp.accumulate,
        "length": exp.data.length,
        "weights": count(exp.model),
        "tokens": told.tokens,
        "flops": told.flops,
        "turns": told.turns,
        "plan": {**own, "step_seconds": told.step_seconds, "utilisation": told.utilisation},
        "outcome": "not compiled",
        "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
        "date": time.strftime("%Y-%m-%d"),
    }


def check(row: Row, exp: Experiment) -> Row:
    """The compiler's answers beside the plan's.

    outcome    'compiled', or 'out of memory': then `said` is the compiler's word, and `held` what it wanted
    seconds    of an update for what can bound it: products and memory as planned, the network as compiled
    """
    kind, told = chip(row["topology"].partition("-")[0]), row["plan"]
    began, ran = time.monotonic(), time.process_time()
    try:
        program = compiled(exp, devices_of(row["topology"]))
        held, moved = bytes_of(program), collectives(program.as_text())
        seconds = told["seconds"] | {"network": sum(moved.values()) / kind.network}
        step, fits = max(seconds.values()), sum(held.values()) <= kind.memory
        own = {"outcome": "compiled", "bytes": held, "held": sum(held.values()), "fits": fits, "moved": moved}
        own |= {"seconds": seconds, "step_seconds": step, "utilisation": seconds["products"] / step}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        own = {"outcome": "out of memory", "fits": False, **refused(str(error))}
    took = {"wall": time.monotonic() - began, "core": time.process_time() - ran}
    return {**row, **own, "compile_seconds": {k: round(s, 1) for k, s in took.items()}}


def refused(text: str) -> Row:
    """The compiler's word in one line where it found no room, and the bytes that it wanted."""
    line = " ".join(text.split())
    full = FULL.search(line)
    held = round(float(full[1]) * UNITS[full[2]]) if full else None
    return {"said": f"wants {full[1]}{full[2]} of {full[3]}" if full else line[:240], "held": held}


def table(row: Row) -> str:
    """A row in words."""
    gib = lambda n: f"{n / 2**30:9.3f} GiB"  # noqa: E731
    lines = [f"{row['config']} on {row['topology']} ({row['chips']} chips), mesh {row['mesh'] or 'of one device'}"]
    took = f"compiled in {row['compile_seconds']['wall']} s"
    lines += [f"  {row['weights']:,} weights, {row['tokens']:,} tokens an update; {took}"]
    lines += [f"  {name:12}{gib(n)}" for name, n in row["bytes"].items()]
    lines += [f"  a chip      {gib(row['held'])}: {'fits' if row['fits'] else 'DOES NOT FIT'}"]
    lines += [f"  by the plan {gib(row['plan']['held'])}"]
    lines += [f"  {name:20}{gib(n)} a chip and update" for name, n in sorted(row["moved"].items())]
    lines += [f"  {name:12}{s * 1e3:10.2f} ms" for name, s in row["seconds"].items()]
    best = f"{row['step_seconds'] * 1e3:.1f} ms an update at best, {100 * row['utilisation']:.0f} % of the products"
    return "\n".join([*lines, f"  {best}"])


def main(args: list[str]) -> int:
    named = args[0] if args and not args[0].startswith("-") else "quickstart"
    config = find_config(named)
    function = load_config(config)
    about = f"Compile {config.stem} for a pod. Other configs: {', '.join(known_configs())}, or a path."
    rest = args[1:] if args[:1] == [named] else args
    knobs, opts = parse("compile_check.py", about, function, options, rest)
    exp = build(function, knobs)
    row = planned(config.stem, exp, opts["topology"])
    write = lambda: opts["json"].write_text(json.dumps(row, indent=1) + "\n") if opts["json"] else None  # noqa: E731
    write()  # what is known, should the compiler not come to an end
    if opts["plan_only"]:
        return 0 if row["plan"]["fits"] else 1
    row = check(row, exp)
    write()
    if row["outcome"] == "compiled":
        print(table(row))
    else:
        say(f"error: {config.stem} on {row['topology']}, mesh {row['mesh']}: does not fit: {row['said']}")
    return 0 if row["fits"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(explain(error))
