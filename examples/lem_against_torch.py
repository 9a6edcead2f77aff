"""Time one training step of LEM against a plain PyTorch loop of the same equations, on the same cores.

command    pip install torch && python examples/lem_against_torch.py
cost       about two minutes on two idle CPU cores; leave the machine alone meanwhile
Width 128, 784 steps, batch 128, one input, ten classes, cross-entropy, Adam. First both sides get the same weights and
must agree in loss and gradients. Then they take turns, A B A B, and the fastest and the median turn are written to
examples/results/lem_against_torch.json. jaxlm's side gives each core half of the batch (a mesh of two CPU devices) and
runs the steps of a turn in one program, as `jaxlm.train.fit` does; its time with a single device is told too.
"""

import argparse
import json
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch_loops import TorchLEM, jaxlm_turn, torch_turn
from turns import furthest, summary, take_turns

import jaxlm
from jaxlm.mixers.lem import LEM
from jaxlm.models.sequence import SequenceModel

RESULT = Path(__file__).parent / "results" / "lem_against_torch.json"
CLASSES = 10


def main() -> None:
    """Compare, take turns, write."""
    parser = argparse.ArgumentParser(description="LEM: a training step of jaxlm against a plain PyTorch loop.")
    sizes = {"width": 128, "length": 784, "batch": 128, "repeats": 5, "steps": 4, "cores": 2}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--out", type=Path, default=RESULT)
    s = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", s.cores)
    torch.set_num_threads(s.cores)
    draw = np.random.default_rng(0)
    x = draw.random((s.batch, s.length, 1), np.float32)
    labels = draw.integers(0, CLASSES, s.batch).astype(np.int32)
    model = SequenceModel(LEM(s.width, inputs=1, dt=TorchLEM.dt), CLASSES)
    params = jaxlm.init(model, jax.random.key(0))
    sides = {
        "torch": torch_turn(TorchLEM(params), x, labels),
        "jaxlm": jaxlm_turn(model, params, x, labels, s.cores, s.steps),
        "jaxlm_one_device": jaxlm_turn(model, params, x, labels, 1, s.steps),
    }
    results = {name: gradients() for name, (_, gradients) in sides.items()}
    gap = max(furthest(results[name], results["torch"]) for name in ("jaxlm", "jaxlm_one_device"))
    print(f"loss {results['torch'][0]:.6f}; loss and gradients differ by at most {gap:.1e} of a leaf's size")
    if gap > 1e-3:
        raise SystemExit("the two sides do not compute the same: nothing is timed")
    seconds = take_turns({name: partial(run, s.steps) for name, (run, _) in sides.items()}, s.repeats, s.steps)
    fastest, median = summary(seconds).values()
    record = {
        "sizes": {name: getattr(s, name) for name in sizes},
        "gap": gap,
        "fastest": fastest,
        "median": median,
        "ratio_of_fastest": fastest["torch"] / fastest["jaxlm"],
        "ratio_of_medians": median["torch"] / median["jaxlm"],
        "band": "at least 3",
        "seconds": seconds,
        "versions": {name: metadata.version(name) for name in ("torch", "jax", "jaxlm")},
    }
    print("\n".join(f"{n}: {fastest[n]:.3f} s a step at its fastest, median {median[n]:.3f}" for n in sides))
    print(
        f"jaxlm is {record['ratio_of_fastest']:.2f} (fastest), {record['ratio_of_medians']:.2f} (median) times as fast"
    )
    s.out.parent.mkdir(parents=True, exist_ok=True)
    s.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
