"""RWKV language models: a norm after the embedding, time mix and channel mix in turn; RWKV-7 hands values on."""

import dataclasses
from typing import Any

import jax

from jaxlm.blocks import REMAT, Block, Chain
from jaxlm.initializers import Layers
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.channel_mix import ChannelMix
from jaxlm.mixers.rwkv7 import RWKV7
from jaxlm.mixers.tokenwise import Tokenwise
from jaxlm.models.lm import LM
from jaxlm.module import Spec, map_specs
from jaxlm.ops.isolate import tokenwise
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, Tree


class RWKV7Body(Mixer):
    """Layers of RWKV-7 (Peng et al. 2025, 2503.14456, section 4), the values of the first one shared with all others.

    x <- x + TimeMix(Norm x), then x <- x + ChannelMix(Norm x)

    x, y      (b, t, d)
    mixer     of the first layer; the later ones are the same with `shares`
    channel   None: ChannelMix(width)
    depth     number of layers
    remat     what the backward pass keeps of a layer, as of a Stack
    Weights and states are those of layer `first` and, stacked along `layers`, those of the `rest`, if any.
    """

    mixer: RWKV7
    channel: ChannelMix | None = None
    depth: int = 1
    remat: str = "none"

    def __post_init__(self):
        self.check(isinstance(self.mixer, RWKV7) and not self.mixer.shares, "mixer", "an RWKV7 that does not share")
        ok = self.channel is None or self.channel.width == self.width
        self.check(ok, "channel", f"a ChannelMix of width {self.width}, or None")
        self.check(self.depth > 0, "depth", "a positive number of layers")
        self.check(self.remat in REMAT, "remat", f"one of {', '.join(REMAT)}")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.mixer.width

    @property
    def later(self) -> RWKV7:
        return dataclasses.replace(self.mixer, shares=True)

    @property
    def norm(self) -> LayerNorm:
        return LayerNorm(self.width)

    @property
    def block(self) -> Block:
        """The channel's half."""
        return Block(ChannelMix(self.width) if self.channel is None else self.channel, norm=self.norm)

    def split(self, first: Tree, later: Tree) -> Tree:
        """Specs of one layer -> Specs of them all."""

        def one(s: Spec) -> Spec:
            init: Any = s.init
            return dataclasses.replace(s, init=init.at(0, self.depth)) if hasattr(init, "at") else s

        def stacked(s: Spec) -> Spec:
            shape, axes = (self.depth - 1, *s.shape), ("layers", *s.axes)
            return dataclasses.replace(s, shape=shape, axes=axes, init=Layers(s.init, s, 1, 1, self.depth))

        p = {"first": map_specs(one, first)}
        return p | {"rest": map_specs(stacked, later)} if self.depth > 1 else p

    def params(self):
        half = lambda m: {"norm": self.norm.params(), "mixer": m.params(), "channel": self.block.params()}  # noqa: E731
        return self.split(half(self.mixer), half(self.later))

    def state(self, batch: int, room: int = 0):
        layer = {"mixer": self.mixer.state(batch, room), "channel": self.block.state(batch, room)}
        return self.split(layer, layer)

    def layer(
        self, params: Params, x: Array, state: State, starts: Array | None, first: Array | None
    ) -> tuple[Array, State, Array]:
        """One layer, and the values of its time mix."""
        before = {"mixer": None, "channel": None} if state is None else state
        mixer = self.mixer if first is None else self.later
        h = tokenwise(lambda x: self.norm.apply(params["norm"], x), x)
        h, time, values = mixer.mix(params["mixer"], h, before["mixer"], starts, first)
        x = name(x + name(h, "mixer.out"), "resid")
        x, channel = self.block.apply(params["channel"], x, before["channel"], starts)
        return x, {"mixer": time, "channel": channel}, values

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, after, values = self.layer(params["first"], x, None if state is None else state["first"], starts, None)
        out = {"first": after}
        if self.depth > 1:

            def unit(x: Array, layer: tuple[Tree, Tree]) -> tuple[Array, State]:
                return self.layer(layer[0], x, layer[1], starts, values)[:2]

            if REMAT[self.remat] is not None:
                unit = jax.checkpoint(unit, policy=REMAT[self.remat], prevent_cse=False)
            x, out["rest"] = jax.lax.scan(unit, x, (params["rest"], None if state is None else state["rest"]))
        return x, out


def rwkv(vocab: int, body: Mixer) -> LM:
    """The language model of every RWKV: LayerNorm after the embedding and before the readout, which is its own."""
    norm = LayerNorm(body.width)
    return LM(vocab, body.width, Chain((Tokenwise(norm), body)), tied=False, norm=norm, scale=1.0)
