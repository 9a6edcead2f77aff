"""Self-Referential Weight Matrix: a matrix that computes its own updates, rates included."""

import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal
from jaxlm.layers.heads import divisor
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, wide

BLOCKS = ("y", "q", "k", "beta")


class SRWM(Mixer):
    """Self-Referential Weight Matrix (Irie et al. 2022, eqs. 5-8), heads side by side, then a linear map.

    [y_n, q_n, k_n, β_n] = W_{n-1} φ(x_n)               y is read BEFORE the update
    W_n = W_{n-1} + σ(β_n) (W_{n-1} φ(q_n) - W_{n-1} φ(k_n)) φ(k_n)'
    φ = softmax over the channels of a head; each of the four row blocks of W has its own rate in β.

    input, output         (b, t, d)
    state   y, q, k       (b, h, k, k)      the shift W_n - W_0, rows are inputs; W_0 is learned
            beta          (b, h, k, 4)
    heads        h; None: heads of 16 channels (the paper's), but two at least; k = d / h
    input_map    'softmax' (the paper) or 'identity' (the few-shot code): what W reads of x
    query_scale  W_q starts at N(0, query_scale^2 / k), the others at N(0, 1 / k); 0.01 is the authors' later choice,
                 for stability; 1 their first
    rate_bias    mean of the initial weights of β: with the softmax, rates start about σ(rate_bias)
    every        the gradient keeps one shift per `every` tokens

    The state is the shift, so that a document begins at the current W_0 and a detached state leaves W_0 its gradient.
    """

    width: int
    heads: int | None = None
    input_map: str = "softmax"
    query_scale: float = 0.01
    rate_bias: float = 0.0
    every: int = 32

    paper = "Irie et al. 2022"

    def __post_init__(self):
        self.check(self.heads is None or self.heads > 0, "heads", "a positive number, or None")
        self.check(self.width % self.parts == 0, "width", f"a multiple of the number of heads, {self.parts}")
        self.check(self.input_map in ("softmax", "identity"), "input_map", "softmax or identity")
        self.check(self.query_scale > 0, "query_scale", "a positive scale")
        self.check(self.every > 0, "every", "a positive number of tokens")

    @property
    def parts(self) -> int:
        """Number of heads."""
        return divisor(self.width, max(2, self.width // 16)) if self.heads is None else self.heads

    def params(self):
        h, k = self.parts, self.width // self.parts
        std = 1 / math.sqrt(k)

        def block(size: int, scale: float = 1.0, mean: float = 0.0) -> Spec:
            return Spec((h, k, size), ("heads", "head", None), Normal(scale * std, mean), ins=("head",))

        return {
            "y": block(k),
            "q": block(k, self.query_scale),
            "k": block(k),
            "beta": block(4, mean=self.rate_bias),
            "out": Spec((h, k, self.width), ("heads", "head", "embed"), FanIn(), ins=("heads", "head")),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.parts, self.width // self.parts
        return {name: leaf(batch, (h, k, 4 if name == "beta" else k), ("heads", None, None)) for name in BLOCKS}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        h, k = self.parts, self.width // self.parts
        heads = wide(x).reshape(*x.shape[:2], h, k)
        heads = jax.nn.softmax(heads, axis=-1) if self.input_map == "softmax" else heads
        # The blocks lie side by side, so that a token costs two products with W and one outer product.
        learned = wide(jnp.concatenate([params[name] for name in BLOCKS], axis=-1))[None]

        def step(x: Array, shift: Array) -> tuple[Array, Array]:
            weights = learned + shift
            y, q, key, rate = _blocks(jnp.einsum("bhk,bhkn->bhn", x, weights), k)
            key = jax.nn.softmax(key, axis=-1)
            # What is stored under the query less what is stored under the key, for both are linear in W.
            change = jnp.einsum("bhk,bhkn->bhn", jax.nn.softmax(q, axis=-1) - key, weights)
            rate = jax.nn.sigmoid(rate)
            parts = [rate[..., i : i + 1] * part for i, part in enumerate(_blocks(change, k))]
            return y, shift + key[..., :, None] * jnp.concatenate(parts, axis=-1)[..., None, :]

        fresh = None if fresh is None else _join(fresh)
        ys, shift = scan(step, heads, _join(state), starts, fresh, self.every)
        state = dict(zip(BLOCKS, _blocks(shift, k), strict=True))
        return spoil(spoiled, merge(ys.astype(x.dtype), params["out"])), spoil(spoiled[:, -1], state)


def _join(shift: State) -> Array:
    """The four blocks of the shift side by side, (b, h, k, 3k + 4)."""
    return jnp.concatenate([shift[name] for name in BLOCKS], axis=-1)


def _blocks(x: Array, k: int) -> list[Array]:
    """The blocks y, q, k, beta of the last axis, of sizes k, k, k, 4."""
    return jnp.split(x, (k, 2 * k, 3 * k), axis=-1)
