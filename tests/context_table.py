"""Memory of a training step against devices along time: python tests/context_table.py [--json FILE]

A language model of each mixer, 2,048 tokens a row, compiled for `context=n` on simulated devices: temporary bytes of
one device by the compiler, the share of one device's, and the idle share of the relay's ticks.
"""

import argparse
import json
from pathlib import Path

import conftest  # noqa: F401  8 devices
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data import Bytes, Text, TextFiles
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import make
from jaxlm.models import LM
from jaxlm.relay import Gathered, Relay, idle, spread
from jaxlm.sharding import mesh as make_mesh
from jaxlm.train import Experiment
from jaxlm.train.rundir import versions
from jaxlm.train.step import abstract_batch, first_state, train_step

SIZES = {"width": 64, "depth": 4, "vocab": 256, "length": 2048, "batch": 8}


def row(name: str, n: int) -> dict:
    """What a step of a model of this mixer takes on n devices along time."""
    body = Stack(Block(make(name, SIZES["width"]), SwiGLU(SIZES["width"])), SIZES["depth"])
    text = Text(TextFiles((str(Path(__file__).parents[1] / "LICENSE"),)), Bytes(), SIZES["length"])
    model = LM(SIZES["vocab"], SIZES["width"], body)
    exp = Experiment("context", model, optax.adamw(1e-3), text, 1, SIZES["batch"], mesh=f"context={n}")
    mesh = make_mesh(exp.mesh)
    around = spread(body, mesh).blocks.mixer
    program = train_step(exp, mesh).lower(first_state(exp, mesh)[1], abstract_batch(exp, mesh)).compile()
    waits = idle(n, around.groups(exp.batch)) if isinstance(around, Relay) else 0.0
    form = {Relay: "relay", Gathered: "gathered"}.get(type(around), "one device")
    return {"temporary": program.memory_analysis().temp_size_in_bytes, "idle": waits, "form": form}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", default=["GLA", "Attention"])
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path)
    args, table = parser.parse_args(), {}
    for name in args.mixers:
        for n in args.devices:
            found = table.setdefault(name, {})[str(n)] = row(name, n)
            share = found["temporary"] / table[name][str(args.devices[0])]["temporary"]
            mib = found["temporary"] / 2**20
            print(
                f"{name:16} context={n}  {mib:8.1f} MiB  {share:.3f}  idle {found['idle']:.2f}  {found['form']}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"sizes": SIZES, "steps": table, "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
