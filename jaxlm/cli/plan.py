"""jaxlm plan CONFIG --chip v5e [--knobs]"""

import dataclasses
import json
from pathlib import Path

from jaxlm.cli.knobs import parse
from jaxlm.plan import CHIPS, Plan, chip, plan
from jaxlm.plan.plan import abstract_mesh
from jaxlm.sharding import replicated
from jaxlm.train.config import build, find_config, known_configs, load_config
from jaxlm.train.experiment import Experiment
from jaxlm.train.step import first_state


def options(chip: str = "v5e", json: Path | None = None) -> None:
    """Which chips.

    Args:
        chip: One of v4, v5e, v5p, v6e, a100, h100.
        json: A file for the same answers.
    """


def main(args: list[str]) -> int:
    """Tell what a config needs on a mesh that need not be there; 1 if it does not fit."""
    named = args[0] if args and not args[0].startswith("-") else None
    config = find_config(named or "quickstart")
    function = load_config(config)
    about = (
        f"Plan {config.stem} on chips of {', '.join(CHIPS)}. Other configs: {', '.join(known_configs())}, or a path."
    )
    knobs, opts = parse(f"jaxlm plan {config.stem}", about, function, options, args[1:] if named else args)
    exp, kind = build(function, knobs), chip(opts["chip"])
    found = plan(exp, kind)
    if opts["json"]:
        opts["json"].write_text(json.dumps(as_json(exp, found), indent=1) + "\n")
    print(table(exp, found))
    return 0 if found.fits else 1


def as_json(exp: Experiment, p: Plan) -> dict:
    """Everything that the plan says, as numbers."""
    derived = {"seconds": p.seconds, "step_seconds": p.step_seconds, "utilisation": p.utilisation, "fits": p.fits}
    return {"name": exp.name, "mesh": exp.mesh, **dataclasses.asdict(p), "bytes": p.bytes, **derived}


def table(exp: Experiment, p: Plan) -> str:
    """The plan in words and columns."""
    parts = ("weights", "optimizer", "memory", "batch", "temporary")
    lines = [f"{exp.name} on {p.devices} {p.chip.name}, mesh {exp.mesh or 'of one device'}", ""]
    lines += [f"  {name:12}{getattr(p, name) / 2**30:10.3f} GiB" for name in parts if getattr(p, name)]
    room = f"of {p.chip.memory / 2**30:.0f}: {'fits' if p.fits else 'DOES NOT FIT'}"
    lines += [f"  {'a chip':12}{p.bytes / 2**30:10.3f} GiB {room}", ""]
    lines += [f"  {p.flops:.3e} operations an update, {p.flops / p.tokens:.3e} a token"]
    lines += [f"  {kind:14}{n / 2**30:8.3f} GiB a chip and update" for kind, n in sorted(p.moved.items())]
    lines += [f"  {name:12}{s * 1e3:10.2f} ms" for name, s in p.seconds.items()]
    lines += [f"  {p.turns:,} turns of loops, one after the other"]
    lines += [
        f"  at best     {p.step_seconds * 1e3:10.2f} ms an update, {p.tokens / p.step_seconds:,.0f} tokens a second, "
        f"{100 * p.utilisation:.0f} % of the products",
        f"  {exp.steps} updates: {p.hours(exp.steps):.2f} hours, about ${p.dollars(exp.steps):,.0f}",
    ]
    _, held = first_state(exp, abstract_mesh(exp.mesh))
    lines += [f"  whole on every chip: {t.path}, {t.bytes / 2**20:.0f} MiB" for t in replicated(held)]
    return "\n".join(lines)
