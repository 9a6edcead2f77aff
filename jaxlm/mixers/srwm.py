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
from jaxlm.ops.self_reference import picard, sequential
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
    rates        4: one for each row block; 1: a single one (the paper's basic variant, eq. 4)
    every        the gradient keeps one shift per `every` tokens
    sweeps       None: token by token; a number: that many Picard sweeps over every `every` tokens (a power of two), all
                 of them at once, exact from `every` sweeps on

    The state is the shift, so that a document begins at the current W_0 and a detached state leaves W_0 its gradient.
    """

    width: int
    heads: int | None = None
    input_map: str = "softmax"
    query_scale: float = 0.01
    rate_bias: float = 0.0
    rates: int = 4
    every: int = 32
    sweeps: int | None = None

    paper = "Irie et al. 2022"
    forms = ("sequential", "picard")

    def __post_init__(self):
        self.check(self.heads is None or self.heads > 0, "heads", "a positive number, or None")
        self.check(self.width % self.parts == 0, "width", f"a multiple of the number of heads, {self.parts}")
        self.check(self.input_map in ("softmax", "identity"), "input_map", "softmax or identity")
        self.check(self.query_scale > 0, "query_scale", "a positive scale")
        self.check(self.rates in (1, 4), "rates", "1 or 4")
        self.check(self.every > 0, "every", "a positive number of tokens")
        if self.sweeps is not None:
            self.check(self.sweeps > 0, "sweeps", "a positive number, or None")
            self.check(self.every.bit_count() == 1, "every", "a power of two, to be swept")

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
            "beta": block(self.rates, mean=self.rate_bias),
            "out": Spec((h, k, self.width), ("heads", "head", "embed"), FanIn(), ins=("heads", "head")),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.parts, self.width // self.parts
        return {
            name: leaf(batch, (h, k, self.rates if name == "beta" else k), ("heads", None, None)) for name in BLOCKS
        }

    def read(self, x: Array) -> Array:
        """φ(x), what W reads.   (b, t, d) -> (b, t, h, k), wide"""
        heads = wide(x).reshape(*x.shape[:2], self.parts, self.width // self.parts)
        return jax.nn.softmax(heads, axis=-1) if self.input_map == "softmax" else heads

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        learned = wide(_join(params))
        if self.sweeps is None:
            ys, shift = sequential(self.read(x), learned, _join(state), starts, self.every)
        else:
            ys, shift = picard(self.read(x), learned, _join(state), starts, self.sweeps, self.every)
        k = self.width // self.parts
        state = dict(zip(BLOCKS, jnp.split(shift, (k, 2 * k, 3 * k), axis=-1), strict=True))
        return spoil(spoiled, merge(ys.astype(x.dtype), params["out"])), spoil(spoiled[:, -1], state)


def _join(blocks: State) -> Array:
    """The four blocks side by side: a token then costs two products with W and one outer product."""
    return jnp.concatenate([blocks[name] for name in BLOCKS], axis=-1)


class FakeSR(Mixer):
    """The control of an SRWM: its W^y alone, never changed, so nothing is remembered (Irie et al. 2022, section 4).

    y_n = W^y φ(x_n), heads side by side, then a linear map.   x, y (b, t, d); no state
    """

    of: SRWM

    paper = "Irie et al. 2022"

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.of.width

    def params(self):
        return {name: spec for name, spec in self.of.params().items() if name in ("y", "out")}

    def state(self, batch: int, room: int = 0):
        return {}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, _, spoiled = isolate(starts, x)
        y = jnp.einsum("bthk,hkv->bthv", self.of.read(x), wide(params["y"]))
        return spoil(spoiled, merge(y.astype(x.dtype), params["out"])), {}
