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
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]
from jax.sharding import PartitionSpec

import jaxlm
from jaxlm.mixers.lem import LEM
from jaxlm.models.sequence import SequenceModel
from jaxlm.typing import Array, Params

RESULT = Path(__file__).parent / "results" / "lem_against_torch.json"
DT, RATE, CLASSES = 0.21, 0.0018, 10


class TorchLEM(torch.nn.Module):
    """The equations as the authors' plain version has them: one linear map each of the input, of y and of z."""

    def __init__(self, params: Params):
        super().__init__()
        self.width = params["body"]["memory"].shape[0]
        body = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), dict(params["body"]))
        # The order of the gates is jaxlm's: slow, fast, drive of y, drive of z; of the hidden map slow, fast, z.
        self.of_input = linear(body["input"].flatten(1), body["bias"].flatten())
        self.of_y = linear(body["hidden"].flatten(1))
        self.of_z = linear(body["memory"])
        readout = (torch.from_numpy(np.array(params[name])) for name in ("readout", "readout_bias"))
        self.readout = linear(*readout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = z = x.new_zeros(x.shape[0], self.width)
        for u in x.unbind(1):
            slow_u, fast_u, y_u, z_u = self.of_input(u).chunk(4, 1)
            slow_y, fast_y, z_y = self.of_y(y).chunk(3, 1)
            slow, fast = DT * torch.sigmoid(slow_u + slow_y), DT * torch.sigmoid(fast_u + fast_y)
            z = (1 - fast) * z + fast * torch.tanh(z_u + z_y)
            y = (1 - slow) * y + slow * torch.tanh(y_u + self.of_z(z))
        return self.readout(y)


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Linear:
    """A linear layer with given weights.   weight (in, out)"""
    layer = torch.nn.Linear(*weight.shape, bias=bias is not None)
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias
    return layer


def torch_turn(params: Params, x: np.ndarray, labels: np.ndarray) -> tuple[Callable[[int], float], Callable]:
    """(train for n steps, (loss, gradients in jaxlm's layout) of the initial weights)."""
    net, inputs, wanted = TorchLEM(params), torch.from_numpy(x), torch.from_numpy(labels).long()
    adam = torch.optim.Adam(net.parameters(), lr=RATE)

    def backward() -> float:
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), wanted)
        loss.backward()
        return loss.item()

    def turn(steps: int) -> float:
        for _ in range(steps):
            last = backward()
            adam.step()
        return last

    def gradients() -> tuple[float, Params]:
        loss = backward()
        own = {name: p.grad.numpy().T.copy() for name, p in net.named_parameters() if p.grad is not None}
        m = net.width
        body = {
            "input": own["of_input.weight"].reshape(-1, 4, m),
            "bias": own["of_input.bias"].reshape(4, m),
            "hidden": own["of_y.weight"].reshape(m, 3, m),
            "memory": own["of_z.weight"],
        }
        return loss, {"body": body, "readout": own["readout.weight"], "readout_bias": own["readout.bias"]}

    return turn, gradients


def jaxlm_turn(
    model: SequenceModel, params: Params, x: np.ndarray, labels: np.ndarray, devices: int, steps: int
) -> tuple[Callable[[int], float], Callable]:
    """As `torch_turn`; the rows are split over the devices, and `steps` steps are one program."""
    mesh, rows = jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices]), PartitionSpec("rows")
    spread = partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), check_vma=False)
    adam = optax.adam(RATE)

    def loss(params: Params, x: Array, labels: Array) -> Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x)[0], labels))

    def gradients(params: Params, x: Array, labels: Array) -> tuple[Array, Params]:
        return jax.lax.pmean(jax.value_and_grad(loss)(params, x, labels), "rows")

    def train(carry: Any, x: Array, labels: Array) -> tuple[Any, Array]:
        def step(carry: Any, _: None) -> tuple[Any, Array]:
            params, moments = carry
            value, grads = gradients(params, x, labels)
            updates, moments = adam.update(grads, moments)
            return (optax.apply_updates(params, updates), moments), value

        carry, values = jax.lax.scan(step, carry, None, length=steps)
        return carry, values[-1]

    place = lambda tree, spec: jax.device_put(tree, jax.NamedSharding(mesh, spec))  # noqa: E731
    carry, batch = place((params, adam.init(params)), PartitionSpec()), place((x, labels), rows)
    compiled = jax.jit(spread(train, out_specs=PartitionSpec())).lower(carry, *batch).compile()

    def turn(n: int) -> float:
        nonlocal carry
        assert n == steps
        carry, value = compiled(carry, *batch)
        return float(value)

    return turn, lambda: jax.jit(spread(gradients, out_specs=PartitionSpec()))(place(params, PartitionSpec()), *batch)


def furthest(got: Any, want: Any) -> float:
    """The greatest difference of any leaf, relative to that leaf's greatest entry."""
    gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()), got, want)
    return max(jax.tree.leaves(gaps))


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
    model = SequenceModel(LEM(s.width, inputs=1, dt=DT), CLASSES)
    params = jaxlm.init(model, jax.random.key(0))
    sides = {
        "torch": torch_turn(params, x, labels),
        "jaxlm": jaxlm_turn(model, params, x, labels, s.cores, s.steps),
        "jaxlm_one_device": jaxlm_turn(model, params, x, labels, 1, s.steps),
    }
    results = {name: gradients() for name, (_, gradients) in sides.items()}
    gap = max(furthest(results[name], results["torch"]) for name in ("jaxlm", "jaxlm_one_device"))
    print(f"loss {results['torch'][0]:.6f}; loss and gradients differ by at most {gap:.1e} of a leaf's size")
    if gap > 1e-3:
        raise SystemExit("the two sides do not compute the same: nothing is timed")
    seconds = {name: [] for name in sides}
    for turn in range(-1, s.repeats):  # the first round only warms up
        for name, (run, _) in sides.items():
            began = time.perf_counter()
            run(s.steps)
            if turn >= 0:
                seconds[name].append((time.perf_counter() - began) / s.steps)
                print(f"turn {turn + 1}: {name} {seconds[name][-1]:.3f} s a step", flush=True)
    fastest, median = ({n: f(v) for n, v in seconds.items()} for f in (min, statistics.median))
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
    print(
        f"jaxlm is {record['ratio_of_fastest']:.2f} (fastest), {record['ratio_of_medians']:.2f} (median) times as fast"
    )
    s.out.parent.mkdir(parents=True, exist_ok=True)
    s.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
