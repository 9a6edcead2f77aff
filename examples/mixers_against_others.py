"""Measure the mixers side by side with other libraries, and their decoding over a growing past.

command    pip install torch "memax[equinox]==0.1.1" && python examples/mixers_against_others.py
cost       about eight minutes on two idle CPU cores; leave the machine alone meanwhile; `--parts` takes some alone
memax      the gradient of one row of 1024 and 4096 tokens, width 64, by the weights and the input: seconds in turns,
           A B A B, and the temporary memory of the compiled program. Ours also with one state kept every 64 tokens
           (`Checkpointed`) where it alone needs more than a tenth of theirs. Outputs are compared first.
torch      a training step of a cell against a plain PyTorch loop of the same equations, as in lem_against_torch.py
decoding   seconds a token after 1k to 64k tokens, of every mixer whose state has one size at every length
Each part is written to examples/results/mixers_against_others.json as it ends; the other parts stay as they were.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import furthest, summary, take_turns

import jaxlm
from jaxlm.blocks import Checkpointed
from jaxlm.mixers import GRU, LEM, LSTM, MIXERS, Attention, Mixer, make
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import is_spec
from jaxlm.papers.record import commit
from jaxlm.typing import Array, Params, State

RESULT = Path(__file__).parent / "results" / "mixers_against_others.json"
CLOSE, CLASSES, PIECE = 1e-3, 10, 1024
Result = dict[str, Any]


def against_memax(s: argparse.Namespace) -> Result:
    """Every pair at every length."""
    from memax_layers import pairs

    out: Result = {}
    for name, pair in pairs(s.width, s.window).items():
        if s.only and name not in s.only:
            continue
        out[name] = {"gap": output_gap(pair, s), "difference": pair.difference, "lengths": {}}
        for length in s.lengths:
            out[name]["lengths"][str(length)] = found = one_length(pair, length, s)
            for side in ("jaxlm", "checkpointed"):
                if side in found["ratios"]:
                    r = found["ratios"][side]
                    print(
                        f"{name:20s} T={length:5d} {side:12s} theirs / ours: time {r['fastest']:7.2f} (fastest), "
                        f"{r['median']:7.2f} (median); temporary memory {r['mebibytes']:6.2f}",
                        flush=True,
                    )
    return out


def output_gap(pair: Any, s: argparse.Namespace) -> float | None:
    """The greatest difference of the outputs of one row, relative to the greatest output; None: not comparable."""
    from memax_layers import theirs

    params, apply = theirs(pair.layer)
    x = row(s, min(s.lengths))
    if pair.params is not None:
        ours = jax.jit(lambda p, x: pair.mixer.apply(p, x)[0])(pair.params, x)
    elif pair.same is not None:
        ours = jax.jit(pair.same)(x)
    else:
        return None
    gap = furthest(ours, np.asarray(jax.jit(apply)(params, x)))
    if not gap < CLOSE:
        raise SystemExit(f"{type(pair.layer).__name__}: outputs differ by {gap:.1e}: nothing is timed")
    return gap


def one_length(pair: Any, length: int, s: argparse.Namespace) -> Result:
    """Seconds and MiB of the sides, and what theirs takes over what ours takes."""
    from memax_layers import theirs

    def apply(mixer: Mixer) -> tuple[Params, Callable]:
        given = jaxlm.init(mixer, jax.random.key(0)) if pair.params is None else pair.params
        return given, lambda p, x: mixer.apply(p, x)[0]

    x = row(s, length)
    compiled = {"memax": gradient(*theirs(pair.layer), x), "jaxlm": gradient(*apply(pair.mixer), x)}
    memory = {name: mebibytes(run) for name, (run, _) in compiled.items()}
    if memory["memax"] < 10 * memory["jaxlm"]:
        compiled["checkpointed"] = gradient(*apply(Checkpointed(pair.mixer, s.every)), x)
        memory["checkpointed"] = mebibytes(compiled["checkpointed"][0])
    seconds = take_turns({name: partial(run, p, x) for name, (run, p) in compiled.items()}, s.repeats)
    found = summary(seconds)
    ratios = {
        name: {"mebibytes": memory["memax"] / memory[name]}
        | {kind: values["memax"] / values[name] for kind, values in found.items()}
        for name in compiled
        if name != "memax"
    }
    return {"seconds": found, "mebibytes": memory, "ratios": ratios}


def row(s: argparse.Namespace, length: int) -> Array:
    return jax.random.normal(jax.random.key(1), (1, length, s.width))


def gradient(params: Params, apply: Callable, x: Array) -> tuple[jax.stages.Compiled, Params]:
    """The compiled gradient of the sum of squares, by weights and input."""
    loss = jax.grad(lambda p, x: jnp.sum(apply(p, x) ** 2), argnums=(0, 1))
    return jax.jit(loss).lower(params, x).compile(), params


def mebibytes(compiled: jax.stages.Compiled) -> float:
    stats = compiled.memory_analysis()
    assert stats is not None, "this backend tells no memory"
    return stats.temp_size_in_bytes / 2**20


def against_torch(s: argparse.Namespace) -> Result:
    """A training step of each cell; the rows are split over the cores on our side, torch uses as many threads."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch_loops import TorchGRU, TorchLEM, TorchLSTM, jaxlm_turn, torch_turn

    torch.set_num_threads(s.cores)
    draw = np.random.default_rng(0)
    x = draw.random((s.batch, s.steps, 1), np.float32)
    labels = draw.integers(0, CLASSES, s.batch).astype(np.int32)
    cells = {"LSTM": (LSTM, TorchLSTM), "GRU": (GRU, TorchGRU), "LEM": (partial(LEM, dt=TorchLEM.dt), TorchLEM)}
    out: Result = {}
    for name, (cell, loop) in cells.items():
        model = SequenceModel(cell(s.cell_width, inputs=1), CLASSES)
        params = jaxlm.init(model, jax.random.key(0))
        sides = {"torch": torch_turn(loop(params), x, labels)}
        sides["jaxlm"] = jaxlm_turn(model, params, x, labels, s.cores, 1)
        gap = furthest(*(sides[side][1]() for side in ("jaxlm", "torch")))
        if not gap < CLOSE:
            raise SystemExit(f"{name}: loss and gradients differ by {gap:.1e}: nothing is timed")
        found = summary(take_turns({side: partial(run, 1) for side, (run, _) in sides.items()}, s.repeats))
        ratios = {kind: values["torch"] / values["jaxlm"] for kind, values in found.items()}
        out[name] = {"gap": gap, "seconds": found, "ratios": ratios}
        print(
            f"{name:20s} torch / ours: {ratios['fastest']:.2f} (fastest), {ratios['median']:.2f} (median)", flush=True
        )
    return out


def decoding(s: argparse.Namespace) -> Result:
    """Seconds a token at each length of the past, for every mixer of a fixed state."""
    out: Result = {}
    mixers = {name: make(name, s.width) for name in MIXERS} | {"Attention, window 64": Attention(s.width, window=64)}
    for name, mixer in mixers.items():
        if s.only and name not in s.only:
            continue
        sizes = [state_bytes(mixer, length) for length in s.contexts]
        if len(set(sizes)) > 1:
            out[name] = {"bytes": sizes, "fixed": False}
            print(f"{name:20s} state grows from {sizes[0]:,} to {sizes[-1]:,} bytes", flush=True)
            continue
        found = token_seconds(mixer, s)
        fastest = [found["fastest"][str(c)] for c in s.contexts]
        out[name] = {"bytes": sizes, "fixed": True, "seconds": found, "ratio": fastest[-1] / fastest[0]}
        shown = " ".join(f"{1e6 * t:7.2f}" for t in fastest)
        print(
            f"{name:20s} {sizes[0]:9,} bytes; microseconds a token {shown}; last / first {out[name]['ratio']:.2f}",
            flush=True,
        )
    return out


def state_bytes(mixer: Mixer, room: int) -> int:
    specs = jax.tree.leaves(mixer.state(1, room), is_leaf=is_spec)
    return sum(math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize for spec in specs)


def token_seconds(mixer: Mixer, s: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One token after the other from states that have read so much; one compiled program for all of them."""
    params, piece = jaxlm.init(mixer, jax.random.key(0)), min(PIECE, *s.contexts)
    x = jax.random.normal(jax.random.key(1), (piece, 1, mixer.reads))
    read = jax.jit(lambda params, state: mixer.apply(params, jnp.moveaxis(x, 0, 1), state)[1])

    def write(params: Params, state: State) -> tuple[State, Array]:
        def one(state: State, x: Array) -> tuple[State, Array]:
            y, state = mixer.step(params, x, state)
            return state, y

        return jax.lax.scan(one, state, x[: s.tokens])

    state, states = mixer.start(params, 1, max(s.contexts)), {}
    for done in range(piece, max(s.contexts) + 1, piece):
        state = read(params, state)
        if done in s.contexts:
            states[str(done)] = state
    run = jax.jit(write)
    finite = all(bool(jnp.all(jnp.isfinite(run(params, state)[1]))) for state in states.values())
    assert finite, f"{type(mixer).__name__}: not finite after a long past"
    return summary(take_turns({c: partial(run, params, state) for c, state in states.items()}, s.turns, s.tokens))


PARTS = {"memax": against_memax, "torch": against_torch, "decoding": decoding}


def main() -> None:
    """Measure the parts asked for, and write each as it ends."""
    parser = argparse.ArgumentParser(description="The mixers side by side with other libraries.")
    sizes = {"width": 64, "window": 64, "every": 64, "repeats": 5, "cores": 2}  # of the pairs
    sizes |= {"batch": 128, "steps": 784, "cell_width": 128, "tokens": 256, "turns": 15}  # of cells, of decoding
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--contexts", type=int, nargs="+", default=[PIECE * n for n in (1, 4, 16, 64)])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", help="names of mixers; for a look, with --out elsewhere")
    parser.add_argument("--out", type=Path, default=RESULT)
    s = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", s.cores)
    record = json.loads(s.out.read_text()) if s.out.exists() else {}
    packages = {"memax": ["memax", "equinox"], "torch": ["torch"], "decoding": []}
    for part in s.parts:
        began = time.perf_counter()
        found = PARTS[part](s)
        record[part] = {
            "found": found,
            "sizes": {n: v for n, v in vars(s).items() if n not in ("parts", "only", "out")},
            "seconds": round(time.perf_counter() - began, 1),
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "versions": {n: metadata.version(n) for n in (*packages[part], "jax", "jaxlm")}
            | {"device": f"{s.cores} cores, {jax.devices()[0].device_kind}"},
        }
        s.out.parent.mkdir(parents=True, exist_ok=True)
        s.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
