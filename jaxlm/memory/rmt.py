"""The recurrent memory transformer: tokens of memory before and behind each segment of a model."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal
from jaxlm.layers.norm import RMSNorm
from jaxlm.memory.segmented import Segmented, where_rows
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Module, Spec
from jaxlm.ops.segments import Segments
from jaxlm.typing import Array, Params, Tree, wide


class RMT(Segmented):
    """A body that reads memory tokens before a segment and writes them behind it (Bulatov et al. 2022, eq. 1-3).

    [_; y; w] = body([M; x; M])     M <- Norm(w)     of one segment x, M m tokens, learned before the first

    The body is causal: the leading copy of M is what tokens read, the trailing one is where the segment is written.
    So LM(vocab, width, RMT(Stack(...))) is the paper's model; without memory it is the base model on each segment.

    x, y     (b, t, d)
    body     any mixer; each segment is a fresh start of it
    memory   m
    segment  tokens
    bptt     segments at the end of a call that share their gradients; None: all, and the state's
    norm     of what is written (the paper's models give normalised states); None: RMSNorm
    """

    body: Mixer
    memory: int = 4
    segment: int = 64  # type: ignore[override]
    bptt: int | None = None
    norm: Module | None = None

    paper = "Bulatov et al. 2022"

    def __post_init__(self):
        self.check(self.body.reads == self.body.width, "body", "a mixer that gives the width it reads")
        self.check(self.memory >= 0, "memory", "at least 0")
        self.check(self.segment > 0, "segment", "at least 1")
        self.check(self.bptt is None or self.bptt > 0, "bptt", "at least 1, or None")
        fits = self.norm is None or self.norm.width == self.width  # type: ignore[attr-defined]
        self.check(fits, "norm", f"a module of width {self.width}")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.body.width

    @property
    def normalise(self) -> Any:  # a Module with apply(params, x)
        return RMSNorm(self.width) if self.norm is None else self.norm

    def params(self):
        p = {"body": self.body.params()}
        if self.memory:  # entries of unit size, as the embeddings on entry have
            p["memory"] = Spec((self.memory, self.width), ("slots", "embed"), Normal(1.0))
            p["norm"] = self.normalise.params()
        return p

    def tie(self, params: Params) -> Params:
        return {**params, "body": self.body.tie(params["body"])}

    def memory_state(self, batch: int) -> Tree:
        return leaf(batch, (self.memory, self.width), (None, "embed")) if self.memory else {}

    def first(self, params: Params, batch: int) -> Tree:
        if not self.memory:
            return {}
        return jnp.broadcast_to(wide(params["memory"])[None], (batch, self.memory, self.width))

    def over(self, params: Params, memory: Tree, x: Array, rows: Segments, key: Array | None) -> tuple[Array, Tree]:
        last = (rows.p + rows.t - 1) // self.segment  # each row's last segment that holds a token

        def one(memory: Tree, at: tuple[Array, Array, Array]) -> tuple[Tree, Array]:
            x, done, i = at
            if self.bptt is not None:
                memory = where_rows(i + self.bptt > last + 1, memory, jax.lax.stop_gradient(memory))
            y, new = self.one(params, memory, x, None if key is None else jax.random.fold_in(key, i))
            return where_rows(done, new, memory), y

        memory, y = jax.lax.scan(one, memory, (x, rows.complete, jnp.arange(rows.n, dtype=jnp.int32)))
        return y, memory

    def one(self, params: Params, memory: Tree, x: Array, key: Array | None) -> tuple[Array, Tree]:
        """One segment and the memory that it leaves.   x, y (b, segment, d);  memory (b, m, d)"""
        m = self.memory
        if not m:
            return self.body.apply(params["body"], x, key=key)[0], memory
        read = memory.astype(x.dtype)
        y = self.body.apply(params["body"], jnp.concatenate([read, x, read], axis=1), key=key)[0]
        return y[:, m:-m], self.normalise.apply(params["norm"], y[:, -m:])
