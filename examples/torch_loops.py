"""Cells as plain PyTorch loops, and the training steps of both sides."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]
from jax.sharding import PartitionSpec

from jaxlm.models.sequence import SequenceModel
from jaxlm.typing import Array, Params

RATE = 0.0018
Own = dict[str, np.ndarray]


class TorchCell(torch.nn.Module):
    """A cell over time and a readout of its last output, with jaxlm's weights. A subclass says its maps and a step."""

    states = 1

    def __init__(self, params: Params):
        super().__init__()
        body = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), dict(params["body"]))
        self.width = body["bias"].shape[-1]
        self.of_input = linear(body["input"].flatten(1), body["bias"].flatten())
        self.maps(body)
        readout = (torch.from_numpy(np.array(params[name])) for name in ("readout", "readout_bias"))
        self.readout = linear(*readout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = (x.new_zeros(x.shape[0], self.width),) * self.states
        for u in x.unbind(1):
            state = self.advance(self.of_input(u), *state)
        return self.readout(state[0])

    def gradients(self) -> Params:
        """Those of the weights, as jaxlm lays them out."""
        own = {name: p.grad.numpy().T.copy() for name, p in self.named_parameters() if p.grad is not None}
        bias = own["of_input.bias"].reshape(-1, self.width)
        body = {"input": own["of_input.weight"].reshape(-1, *bias.shape), "bias": bias, **self.layout(own)}
        return {"body": body, "readout": own["readout.weight"], "readout_bias": own["readout.bias"]}


class TorchLEM(TorchCell):
    """The equations as the authors' plain version has them: one linear map each of the input, of y and of z."""

    states = 2
    dt = 0.21

    def maps(self, body: dict[str, torch.Tensor]) -> None:
        # The order of the gates is jaxlm's: slow, fast, drive of y, drive of z; of the hidden map slow, fast, z.
        self.of_y, self.of_z = linear(body["hidden"].flatten(1)), linear(body["memory"])

    def advance(self, u: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        slow_u, fast_u, y_u, z_u = u.chunk(4, 1)
        slow_y, fast_y, z_y = self.of_y(y).chunk(3, 1)
        slow, fast = self.dt * torch.sigmoid(slow_u + slow_y), self.dt * torch.sigmoid(fast_u + fast_y)
        z = (1 - fast) * z + fast * torch.tanh(z_u + z_y)
        return (1 - slow) * y + slow * torch.tanh(y_u + self.of_z(z)), z

    def layout(self, own: Own) -> Params:
        return {"hidden": own["of_y.weight"].reshape(-1, 3, self.width), "memory": own["of_z.weight"]}


class TorchLSTM(TorchCell):
    """Gates i, f, z, o by one linear map each of the input and of h."""

    states = 2

    def maps(self, body: dict[str, torch.Tensor]) -> None:
        self.of_h = linear(body["hidden"].flatten(1))

    def advance(self, u: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i, f, z, o = (u + self.of_h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        return torch.sigmoid(o) * torch.tanh(c), c

    def layout(self, own: Own) -> Params:
        return {"hidden": own["of_h.weight"].reshape(-1, 4, self.width)}


class TorchGRU(TorchCell):
    """The paper's form, which resets h before its map."""

    def maps(self, body: dict[str, torch.Tensor]) -> None:
        self.of_h, self.of_reset = linear(body["hidden"][:, :2].flatten(1)), linear(body["hidden"][:, 2])

    def advance(self, u: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        of_gates, of_inner = u[:, : 2 * self.width], u[:, 2 * self.width :]
        reset, write = torch.sigmoid(of_gates + self.of_h(h)).chunk(2, 1)
        return ((1 - write) * h + write * torch.tanh(of_inner + self.of_reset(reset * h)),)

    def layout(self, own: Own) -> Params:
        gates = own["of_h.weight"].reshape(-1, 2, self.width)
        return {"hidden": np.concatenate([gates, own["of_reset.weight"][:, None]], axis=1)}


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Linear:
    """A linear layer with given weights.   weight (in, out)"""
    layer = torch.nn.Linear(*weight.shape, bias=bias is not None)
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias
    return layer


def torch_turn(net: TorchCell, x: np.ndarray, labels: np.ndarray) -> tuple[Callable[[int], float], Callable]:
    """(train for n steps, (loss, gradients in jaxlm's layout) of the initial weights)."""
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(labels).long()
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

    return turn, lambda: (backward(), net.gradients())


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
