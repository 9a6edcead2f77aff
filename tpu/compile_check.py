"""Compile a config's real training step for a pod that is not there, and tell what it needs.

command    pip install -e '.[tpu]' && python tpu/compile_check.py CONFIG --topology v5e-256 --mesh fsdp=-1 [--knobs]
needs      libtpu, which holds the compiler; no TPU
A step that does not fit, or a mesh that cannot split the model, is one line and exit code 1 or 2.
`--json FILE` appends the answers to a table of several.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask for a machine's metadata, and there is none
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from jaxlm.cli import explain, say
from jaxlm.cli.knobs import parse
from jaxlm.errors import ConfigError
from jaxlm.module import count
from jaxlm.plan import chip, plan
from jaxlm.plan.compiled import bytes_of, collectives
from jaxlm.sharding import mesh as make_mesh
from jaxlm.sharding import mesh_text
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


def options(topology: str = "v5e-16", json: Path | None = None) -> None:
    """For which pod.

    Args:
        topology: A pod, for example v5e-16, v5e-256, v5p-128, v6e-256, v4-32.
        json: A file to which the answers are added.
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
        raise ConfigError(f"topology = {topology!r}: libtpu is not here ({error}): pip install 'jaxlm[tpu]'") from error


def compiled(exp: Experiment, devices: list):
    """The training step, compiled for those devices."""
    mesh = make_mesh(exp.mesh, devices)
    _, target = first_state(exp, mesh)
    return train_step(exp, mesh).lower(target, abstract_batch(exp, mesh)).compile()


def check(name: str, exp: Experiment, topology: str) -> dict:
    """Everything that the compiler and the plan say of a config on a pod."""
    devices, kind = devices_of(topology), chip(topology.partition("-")[0])
    exp = dataclasses.replace(exp, mesh=mesh_text(make_mesh(exp.mesh, devices)))
    began = time.monotonic()
    program = compiled(exp, devices)
    seconds = time.monotonic() - began
    own, moved, told = bytes_of(program), collectives(program.as_text()), plan(exp, kind)
    held = sum(own.values())
    bound = {**told.seconds, "network": sum(moved.values()) / kind.network}
    step = max(bound.values())
    return {
        "config": name,
        "topology": topology,
        "chips": len(devices),
        "mesh": exp.mesh,
        "weights": count(exp.model),
        "tokens": told.tokens,
        "bytes": own,
        "held": held,
        "fits": held <= kind.memory,
        "flops": told.flops,
        "collectives": moved,
        "seconds_at_best": bound,
        "step_seconds": step,
        "utilisation": bound["products"] / step,
        "plan": {"bytes": told.bytes, "moved": told.moved},
        "compile_seconds": round(seconds, 1),
        "jax": jax.__version__,
    }


def table(row: dict) -> str:
    """A row in words."""
    gib = lambda n: f"{n / 2**30:9.3f} GiB"  # noqa: E731
    lines = [f"{row['config']} on {row['topology']} ({row['chips']} chips), mesh {row['mesh'] or 'of one device'}"]
    lines += [
        f"  {row['weights']:,} weights, {row['tokens']:,} tokens an update; compiled in {row['compile_seconds']} s"
    ]
    lines += [f"  {name:12}{gib(n)}" for name, n in row["bytes"].items()]
    lines += [f"  a chip      {gib(row['held'])}: {'fits' if row['fits'] else 'DOES NOT FIT'}"]
    lines += [f"  {name:20}{gib(n)} a chip and update" for name, n in sorted(row["collectives"].items())]
    lines += [f"  {name:12}{s * 1e3:10.2f} ms" for name, s in row["seconds_at_best"].items()]
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
    try:
        row = check(config.stem, exp, opts["topology"])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = " ".join(str(error).split())
        say(f"error: {config.stem} on {opts['topology']}, mesh {exp.mesh}: does not fit: {text[:240]}")
        return 1
    print(table(row))
    if opts["json"]:
        file = opts["json"]
        rows = json.loads(file.read_text()) if file.exists() else []
        key = ("config", "topology", "mesh")
        rows = [r for r in rows if any(r[k] != row[k] for k in key)]
        file.write_text(json.dumps(sorted([*rows, row], key=lambda r: [r[k] for k in key]), indent=1) + "\n")
    return 0 if row["fits"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(explain(error))
