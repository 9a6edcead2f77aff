"""Law 4 over a set of meshes: python tests/placing_table.py --json examples/results/placing.json [--missing]

Every mixer, a hybrid, a mixture of experts and a language model on 8 simulated devices: outputs, last state and all
gradients against one device. A row is printed as it is done; `-` stands where sizes of the subject do not divide the
mesh. Fails (exit 1) where a relative error is beyond the table of tolerances.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import conftest  # noqa: F401  8 devices, strict promotion
import jax
from laws.placing import on_mesh, on_one
from laws.subject import Subject
from tolerance import TOLERANCE, distance

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ShapeError
from jaxlm.layers.mlp import SwiGLU
from jaxlm.layers.moe import MoE
from jaxlm.mixers import MIXERS, Attention, make
from jaxlm.models import LM
from jaxlm.train.rundir import versions

WIDTH, VOCAB, BATCH, LENGTH = 16, 24, 8, 36
MESHES = ("data=8", "fsdp=8", "tensor=8", "data=2,fsdp=2,tensor=2", "data=2,context=4", "fsdp=2,tensor=2,context=2")
EXPERTS = ("data=2,expert=4", "tensor=2,context=2,expert=2")


def block(mixer) -> Block:
    return Block(mixer, SwiGLU(WIDTH))


HYBRID = Stack((block(make("GLA", WIDTH)), block(Attention(WIDTH))), 4)
MIXTURE = Block(make("LRU", WIDTH), MoE(WIDTH, experts=4, hidden=8))
SUBJECTS = {
    **{name: Subject(make(name, WIDTH)) for name in MIXERS},
    "Attention window": Subject(Attention(WIDTH, window=9)),
    "hybrid Stack": Subject(HYBRID),
    "MoE": Subject(MIXTURE),
    "LM": Subject(LM(VOCAB, WIDTH, HYBRID), VOCAB),
}


def row(subject: Subject, meshes: Sequence[str]) -> dict[str, float | None]:
    """The largest relative error on each mesh; None where sizes do not divide."""
    want, out = on_one(subject, batch=BATCH, t=LENGTH), {}
    for text in meshes:
        try:
            out[text] = max(distance(on_mesh(subject, text, batch=BATCH, t=LENGTH), want).values())
        except ShapeError:
            out[text] = None
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--meshes", nargs="+", default=[*MESHES, *EXPERTS], metavar="MESH")
    parser.add_argument("--json", type=Path, help="written after each row; what it holds of other cells stays")
    parser.add_argument("--missing", action="store_true", help="run the cells only that the file does not hold")
    args = parser.parse_args()
    limit, meshes = TOLERANCE["float32"], args.meshes
    print("  ".join([f"{'':24}", *(m.replace(",", " ") for m in meshes)]))
    found = []
    for name in args.only:
        known = held(args.json).get(name, {}) if args.missing else {}
        todo = [m for m in meshes if (name == "MoE" or "expert" not in m) and m not in known]
        if not todo:
            continue
        jax.clear_caches()  # each program maps memory
        own = row(SUBJECTS[name], todo)
        cells = [own.get(m, "") for m in meshes]
        texts = ["-" if c is None else c if c == "" else f"{c:.1e}{'' if c <= limit else ' !'}" for c in cells]
        print("  ".join([f"{name:24}", *(f"{c:>{len(m)}}" for c, m in zip(texts, meshes, strict=True))]), flush=True)
        found += [(e, name, m) for m, e in own.items() if e is not None]
        if args.json:
            keep(args.json, name, own)
    if not found:
        return 0
    print(f"{len(found)} placed; the largest error is {max(found)[0]:.1e}: {max(found)[1]} on {max(found)[2]}")
    return int(any(not e <= limit for e, _, _ in found))


def held(file: Path | None) -> dict[str, dict[str, float | None]]:
    """The rows of the file."""
    return json.loads(file.read_text())["errors"] if file and file.exists() else {}


def keep(file: Path, name: str, own: dict[str, float | None]) -> None:
    """Put cells of a row into the file."""
    old = held(file)
    own = {**old.get(name, {}), **own}
    errors = {n: own if n == name else old[n] for n in SUBJECTS if n == name or n in old}
    sizes = {"width": WIDTH, "batch": BATCH, "length": LENGTH, "devices": 8}
    result = {"tolerance": TOLERANCE["float32"], "sizes": sizes, "errors": errors, "versions": versions()}
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
