"""Measure what the README claims and write it to examples/results/: claims.json, quickstart.json and quickstart.png.

command    python examples/claims.py
cost       about five minutes on two idle CPU cores
Times are ratios, or differences within one run, of interleaved repeats; memory is what the compiled program reports.
The main job is run as a user would run it, and timed from the command to its first loss and to its end.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxlm
from jaxlm import GLA, LEM, SRWM, Attention, Block, DeltaNet, GatedDeltaNet, Stack, SwiGLU
from jaxlm.train.rundir import versions

RESULTS = Path(__file__).parent / "results"


def import_seconds(repeats: int = 5) -> float:
    """Median seconds that `import jaxlm` takes beyond `import jax`, each in a fresh process."""
    code = "import time; import jax; t = time.perf_counter(); import jaxlm; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(repeats)]
    return statistics.median(float(r.stdout) for r in runs)


def compile_seconds(depth: int) -> float:
    """Seconds to compile the gradient of a Stack of that depth, from its lowered form."""
    stack = Stack(Block(LEM(32), SwiGLU(32)), depth)
    x = jax.ShapeDtypeStruct((2, 64, 32), jnp.float32)
    lowered = jax.jit(jax.grad(lambda p, x: jnp.sum(stack.apply(p, x)[0] ** 2))).lower(jaxlm.abstract(stack), x)
    began = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - began


def compile_ratio(repeats: int = 3) -> float:
    """Compile time of 48 blocks over that of 4, interleaved, medians."""
    times = {4: [], 48: []}
    for _ in range(repeats):
        for depth, seen in times.items():
            seen.append(compile_seconds(depth))
            jax.clear_caches()
    return statistics.median(times[48]) / statistics.median(times[4])


def temporary(lowered: jax.stages.Lowered) -> float:
    """Temporary memory of a compiled program, MiB."""
    stats = lowered.compile().memory_analysis()
    assert stats is not None, "this backend tells no memory"
    return stats.temp_size_in_bytes / 2**20


def gradient_mebibytes(mixer: jaxlm.Mixer, time_steps: int = 1024) -> float:
    """Temporary memory of the gradient of one row."""
    x = jax.ShapeDtypeStruct((1, time_steps, mixer.reads), jnp.float32)
    f = jax.grad(lambda p, x: jnp.sum(mixer.apply(p, x)[0] ** 2), argnums=(0, 1))
    return temporary(jax.jit(f).lower(jaxlm.abstract(mixer), x))


def op_mebibytes(time_steps: int = 1024, size: int = 64) -> dict[str, float]:
    """Temporary memory of the gradient of the decay and delta ops: one row, one head of `size`."""
    from jaxlm.ops.decay import decay
    from jaxlm.ops.delta import delta

    def shape(*tail):
        return jax.ShapeDtypeStruct((1, time_steps, 1, *tail), jnp.float32)

    qkv, out = [shape(size)] * 3, {}
    for name, gate in {"no gate": None, "scalar gate": shape(), "vector gate": shape(size)}.items():
        for op, args in {"decay": qkv, "delta": [*qkv, shape()]}.items():
            f = {"decay": decay, "delta": delta}[op]
            given = args if gate is None else [*args, gate]
            loss = lambda *a, f=f: sum(jnp.sum(x**2) for x in f(*a))  # noqa: E731
            grad = jax.jit(jax.grad(loss, argnums=tuple(range(len(given)))))
            out[f"{op}, {name}"] = temporary(grad.lower(*given))
    return out


def main_job() -> dict:
    """The result of `jaxlm train`, with the seconds from the command to its first loss and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        began, first = time.perf_counter(), None
        command = [sys.executable, "-m", "jaxlm", "train", "--run-dir", f"{folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="")
            if first is None and line.startswith("step 1/"):
                first = time.perf_counter() - began
        if process.wait():
            raise SystemExit("the main job failed")
        seconds = {"seconds_to_first_loss": first, "seconds_in_all": time.perf_counter() - began}
        shutil.copy(f"{folder}/run/loss.png", RESULTS / "quickstart.png")
        return json.loads(Path(f"{folder}/run/result.json").read_text()) | seconds


def write(name: str, result: dict) -> None:
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    write("quickstart.json", main_job())
    mixers = {"LEM": LEM(64), "SRWM": SRWM(64), "GLA": GLA(64), "DeltaNet": DeltaNet(64)}
    mixers |= {"GatedDeltaNet": GatedDeltaNet(64), "Attention": Attention(64), "window 64": Attention(64, window=64)}
    result = {
        "import_seconds": import_seconds(),
        "compile_ratio": compile_ratio(),
        "op_mebibytes": op_mebibytes(),
        "gradient_mebibytes": {name: gradient_mebibytes(m) for name, m in mixers.items()},
        "versions": versions(),
    }
    write("claims.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
