"""LM2: a bank of slots beside attention, read by every token through a gate and rewritten at a segment's end."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Ones, Zeros
from jaxlm.memory.segmented import Segmented, where_rows
from jaxlm.mixers.base import Mixer
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.segments import Segments
from jaxlm.typing import Array, Params, Tree, wide


@dataclasses.dataclass(frozen=True)
class Identity:
    """Row n of each matrix is the unit vector n mod d."""

    def __call__(self, key: Array, spec: Spec) -> Array:
        del key
        n, d = spec.shape[-2:]
        rows = jnp.arange(n, dtype=jnp.int32) % d
        return jnp.broadcast_to(jax.nn.one_hot(rows, d, dtype=spec.dtype), spec.shape)


class LM2(Segmented):
    """Attention on each segment, and beside it a bank M of n slots (Kang et al. 2025, section 2).

    A = softmax(E W_Q (M W_K)^T / √d)           E_mem = A M W_V             y = Attention(E) + g_o ⊙ E_mem
    M' = g_in ⊙ tanh(B E_mem) + g_f ⊙ M         B_nt = A_tn / Σ_s A_sn      at the segment's end

    g_o = σ(E_mem W_o + b_o)    g_in = σ(B E W_in + b_in)    g_f = σ(B E_mem W_f + b_f)

    E is what the block reads, (t, d). The paper's update asks for as many slots as tokens; here a slot takes the mean
    of the tokens that read it, each by its share of the slot: where token and slot go one to one, B is A^T and this
    is the paper's update. Tokens of a segment see what earlier segments left: M is the state, and M_0 is Identity.

    x, y       (b, t, d)
    attention  any mixer; each segment is a fresh start of it
    slots      n
    segment    tokens
    """

    attention: Mixer
    slots: int = 16
    segment: int = 64  # type: ignore[override]

    paper = "Kang et al. 2025"

    def __post_init__(self):
        self.check(self.attention.reads == self.attention.width, "attention", "a mixer that gives the width it reads")
        self.check(self.slots > 0, "slots", "at least 1")
        self.check(self.segment > 0, "segment", "at least 1")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.attention.width

    def params(self):
        d = self.width
        square = Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",))
        bias = Spec((d,), ("embed",), Zeros, keep=True)
        p = {n: square for n in ("query", "out", "input", "forget")}
        # The bank's rows begin with length 1 and not sqrt(d): a larger start, or hardly anything is read at first.
        p |= {n: dataclasses.replace(square, init=FanIn(4.0)) for n in ("key", "value")}
        p |= {"out_bias": bias, "input_bias": bias, "forget_bias": dataclasses.replace(bias, init=Ones)}
        return {"attention": self.attention.params(), **p}

    def tie(self, params: Params) -> Params:
        return {**params, "attention": self.attention.tie(params["attention"])}

    def memory_state(self, batch: int) -> Tree:
        return Spec((batch, self.slots, self.width), ("batch", None, "embed"), Identity())

    def over(self, params: Params, memory: Tree, x: Array, rows: Segments, key: Array | None) -> tuple[Array, Tree]:
        y = self.attention.apply(params["attention"], x.reshape(-1, *x.shape[2:]), key=key)[0].reshape(x.shape)
        query, into = (wide(dense(x, params[n])) for n in ("query", "input"))

        def one(bank: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            query, into, done = at
            read, new = self.exchange(params, bank, query, into)
            return where_rows(done, new, bank), read

        memory, read = jax.lax.scan(one, memory, (query, into, rows.complete))
        read = read.astype(x.dtype)
        gate = jax.nn.sigmoid(dense(read, params["out"], params["out_bias"]))
        return y + gate * read, memory

    def exchange(self, params: Params, bank: Array, query: Array, into: Array) -> tuple[Array, Array]:
        """What tokens read, and the bank that they leave.

        bank    M               (b, n, d)
        query   E W_Q           (b, t, d)
        into    E W_in          (b, t, d)
        ->      E_mem (b, t, d);  M' (b, n, d)
        """
        bank = bank.astype(query.dtype)
        scores = jnp.einsum("btd,bnd->btn", query, dense(bank, params["key"])) * self.width**-0.5
        near = jax.nn.log_softmax(scores, axis=2)
        read = jnp.einsum("btn,bnd->btd", jnp.exp(near), dense(bank, params["value"]))
        share = jax.nn.softmax(near, axis=1)  # A over its sum along time, also where all of a column underflows
        into, found = (jnp.einsum("btn,btd->bnd", share, x) for x in (into, read))
        keep = jax.nn.sigmoid(dense(found, params["forget"], params["forget_bias"]))
        into = jax.nn.sigmoid(into + params["input_bias"].astype(into.dtype)[None, None])
        return read, into * jnp.tanh(found) + keep * bank
