"""Block, Chain, Checkpointed, Stack: mixers of mixers. Depth is a scan, so that compile time does not grow with it."""

import dataclasses
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import Layers
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.base import Mixer
from jaxlm.module import Module, Spec, map_specs
from jaxlm.ops.isolate import tokenwise
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, Tree


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a share `rate` of x and scale up the rest; identity without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


class Block(Mixer):
    """Pre-norm residual block: x + Mixer(Norm x), then x + MLP(Norm x).

    x, y      (b, t, d)
    mlp       None: the mixer's half alone
    norm      None: RMSNorm
    dropout   on both branches, active when a key is given
    residual  'plain';
              'parallel': x + Mixer(Norm x) + MLP(Norm x), both of the same x (Wang & Komatsuzaki 2021; GPT-NeoX);
              'ln_skip': Norm x + Mixer(x), the mixer reads x as it is (the few-shot code of Irie et al. 2022)
    """

    mixer: Mixer
    mlp: Module | None = None
    norm: Module | None = None
    dropout: float = 0.0
    residual: str = "plain"

    def __post_init__(self):
        self.check(isinstance(self.mixer, Mixer), "mixer", "a Mixer")
        self.check(self.mixer.reads == self.mixer.width, "mixer", "a mixer that gives the width it reads")
        self.check(0 <= self.dropout < 1, "dropout", "a share in [0, 1)")
        self.check(self.residual in ("plain", "parallel", "ln_skip"), "residual", "plain, parallel or ln_skip")
        for field in ("mlp", "norm"):
            part = getattr(self, field)
            self.check(part is None or part.width == self.mixer.width, field, f"a module of width {self.mixer.width}")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.mixer.width

    @property
    def growth(self) -> str:  # type: ignore[override]
        return self.mixer.growth

    @property
    def normalise(self) -> Any:  # a Module with apply(params, x)
        return RMSNorm(self.width) if self.norm is None else self.norm

    def params(self):
        p = {"norm": self.normalise.params(), "mixer": self.mixer.params()}
        if self.mlp is not None:
            p |= {"mlp_norm": self.normalise.params(), "mlp": self.mlp.params()}
        return p

    def state(self, batch: int, room: int = 0):
        return self.mixer.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return self.mixer.start(params["mixer"], batch, room)

    def tie(self, params: Params) -> Params:
        return {**params, "mixer": self.mixer.tie(params["mixer"])}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        h = tokenwise(lambda x: self.normalise.apply(params["norm"], x), x)
        before = x
        read, skip = (x, h) if self.residual == "ln_skip" else (h, x)
        h, state = self.mixer.apply(params["mixer"], read, state, starts, keys[0])
        x = name(skip + dropout(name(h, "mixer.out"), self.dropout, keys[1]), "resid")
        if self.mlp is not None:
            mlp: Any = self.mlp
            read = before if self.residual == "parallel" else x
            h = tokenwise(lambda x: mlp.apply(params["mlp"], self.normalise.apply(params["mlp_norm"], x)), read)
            x = name(x + dropout(name(h, "mlp.out"), self.dropout, keys[2]), "resid")
        return x, state


class Chain(Mixer):
    """Mixers one after the other, each with weights of its own: part0, part1, ...   x, y (b, t, d)"""

    parts: tuple[Mixer, ...]

    def __post_init__(self):
        mixers = bool(self.parts) and all(isinstance(m, Mixer) for m in self.parts)
        self.check(mixers, "parts", "a tuple of at least one Mixer")
        fits = all(a.width == b.reads for a, b in pairwise(self.parts))
        self.check(fits, "parts", "mixers that each read the width that the one before gives")

    @property
    def named(self) -> dict[str, Mixer]:
        return {f"part{i}": m for i, m in enumerate(self.parts)}

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.parts[-1].width

    @property
    def reads(self) -> int:
        return self.parts[0].reads

    @property
    def growth(self) -> str:  # type: ignore[override]
        return "quadratic" if any(m.growth == "quadratic" for m in self.parts) else "linear"

    def params(self):
        return {n: m.params() for n, m in self.named.items()}

    def state(self, batch: int, room: int = 0):
        return {n: m.state(batch, room) for n, m in self.named.items()}

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return {n: m.start(params[n], batch, room) for n, m in self.named.items()}

    def tie(self, params: Params) -> Params:
        return {n: m.tie(params[n]) for n, m in self.named.items()}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        after = {}
        for i, (n, m) in enumerate(self.named.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            x, after[n] = m.apply(params[n], x, None if state is None else state[n], starts, own)
        return x, after


class Checkpointed(Mixer):
    """The same mixer, its weights and its values; the gradient keeps one state every `every` tokens, and y.

    mixer   of a state of fixed size
    every   tokens of a stretch; the backward pass reads each stretch again (Chen et al. 2016, section 4.1)
    What it costs is one forward pass more. What it saves is everything else that the mixer keeps for each token.
    """

    mixer: Mixer
    every: int = 64

    def __post_init__(self):
        self.check(isinstance(self.mixer, Mixer), "mixer", "a Mixer")
        self.check(self.mixer.growth == "linear", "mixer", "one whose cost is linear: a state of fixed size")
        self.check(self.every > 0, "every", "a positive number of tokens")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.mixer.width

    @property
    def reads(self) -> int:
        return self.mixer.reads

    def params(self):
        return self.mixer.params()

    def state(self, batch: int, room: int = 0):
        return self.mixer.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return self.mixer.start(params, batch, room)

    def tie(self, params: Params) -> Params:
        return self.mixer.tie(params)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        b, t, _ = x.shape
        if t <= self.every:
            return self.mixer.apply(params, x, state, starts, key)
        state = self.start(params, b, t) if state is None else state

        def stretch(state: State, at: tuple[Array, Array | None, Array]) -> tuple[State, Array]:
            x, starts, i = at
            own = None if key is None else jax.random.fold_in(key, i)
            y, state = self.mixer.apply(params, x, state, starts, own)
            return state, y

        n = t // self.every
        cut = n * self.every
        split = lambda a: jnp.moveaxis(a[:, :cut].reshape(b, n, self.every, *a.shape[2:]), 1, 0)  # noqa: E731
        head = (split(x), None if starts is None else split(starts), jnp.arange(n))
        # Inside a scan the recomputation cannot be merged with the forward, so no barrier is needed there.
        state, y = jax.lax.scan(jax.checkpoint(stretch, prevent_cse=False), state, head)
        y = jnp.moveaxis(y, 0, 1).reshape(b, cut, *y.shape[3:])
        if cut < t:
            rest = (x[:, cut:], None if starts is None else starts[:, cut:], jnp.asarray(n))
            state, last = jax.checkpoint(stretch)(state, rest)
            y = jnp.concatenate([y, last], axis=1)
        return y, state


REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "named": jax.checkpoint_policies.save_only_these_names("resid", "mixer.out", "mlp.out"),
}


class Stack(Mixer):
    """A pattern of blocks, repeated to `depth` blocks by a scan over their stacked weights.

    blocks   one mixer, or a tuple of mixers: the pattern of a hybrid
    depth    number of blocks in all; a multiple of the pattern's length
    remat    what the backward pass keeps of a unit: none (everything), dots, named, full (nothing)
    Weights and states gain a leading axis `layers`; the weights of block i do not depend on the depth.
    """

    blocks: Mixer | tuple[Mixer, ...]
    depth: int = 1
    remat: str = "none"

    def __post_init__(self):
        self.check(all(isinstance(b, Mixer) for b in self.pattern), "blocks", "a Mixer, or a tuple of Mixers")
        self.check(len({b.width for b in self.pattern}) == 1, "blocks", "blocks of one width")
        size = len(self.pattern)
        self.check(self.depth > 0 and self.depth % size == 0, "depth", f"a multiple of the pattern's length, {size}")
        self.check(self.remat in REMAT, "remat", f"one of {', '.join(REMAT)}")

    @property
    def pattern(self) -> tuple[Mixer, ...]:
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)

    @property
    def units(self) -> int:
        return self.depth // len(self.pattern)

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.pattern[0].width

    @property
    def growth(self) -> str:  # type: ignore[override]
        return "quadratic" if any(b.growth == "quadratic" for b in self.pattern) else "linear"

    def params(self):
        return {
            f"block{i}": map_specs(lambda s, i=i: self.stacked(s, i), b.params()) for i, b in enumerate(self.pattern)
        }

    def stacked(self, spec: Spec, place: int) -> Spec:
        """The Spec of all layers at one place of the pattern; a Stack inside a Stack keeps its own `layers` unnamed."""
        init = Layers(spec.init, spec, place, len(self.pattern), self.depth)
        axes = ("layers", *(None if a == "layers" else a for a in spec.axes))
        return dataclasses.replace(spec, shape=(self.units, *spec.shape), axes=axes, init=init)

    def state(self, batch: int, room: int = 0):
        return {
            f"block{i}": map_specs(lambda s, i=i: self.stacked(s, i), b.state(batch, room))
            for i, b in enumerate(self.pattern)
        }

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """Every layer's own start."""
        return {
            f"block{i}": jax.vmap(lambda p, b=b: b.start(p, batch, room))(params[f"block{i}"])
            for i, b in enumerate(self.pattern)
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        params = {f"block{i}": b.tie(params[f"block{i}"]) for i, b in enumerate(self.pattern)}
        keys = None if key is None else jax.random.split(key, self.units)

        def unit(x: Array, layer: tuple[Tree, Tree, Array | None]) -> tuple[Array, State]:
            params, state, key = layer
            out = {}
            for i, block in enumerate(self.pattern):
                own = None if key is None else jax.random.fold_in(key, i)
                before = None if state is None else state[f"block{i}"]
                x, out[f"block{i}"] = block.apply(params[f"block{i}"], x, before, starts, own)
            return x, out

        if REMAT[self.remat] is not None:
            unit = jax.checkpoint(unit, policy=REMAT[self.remat], prevent_cse=False)
        return jax.lax.scan(unit, x, (params, state, keys))
