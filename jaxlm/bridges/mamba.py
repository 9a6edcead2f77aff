"""The Mamba family: blocks of one selective state space each, no MLP (Gu & Dao 2023). Mamba-2 shares its outside."""

from typing import Any

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.config import Config
from jaxlm.bridges.tensors import Tensor, affine, linear, plain, taps
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.mamba import Mamba
from jaxlm.models.lm import LM

IGNORED = ()
PREFIX = ""
TWIN = ("lm_head.weight", "backbone.embeddings.weight")
ALSO = {"backbone.embedding.weight": "backbone.embeddings.weight"}  # the authors' own files
MIXER = "backbone.layers.{i}.mixer"


def model(c: Config) -> LM:
    """The model that a config.json describes."""
    d = c.get("hidden_size", int)
    told = c.entries.get("time_step_rank", "auto")
    rank = -(-d // 16) if told == "auto" else c.get("time_step_rank", int)
    m = Mamba(d, c.get("state_size", int, 16), c.get("expand", int, 2), c.get("conv_kernel", int, 4), rank)
    c.only(intermediate_size=m.channels)
    return outside(c, m, tied=True)


def outside(c: Config, mixer: Mixer, tied: bool) -> LM:
    """What stands around the mixers; `tied` where the file does not say."""
    c.only(hidden_act="silu", use_bias=False, use_conv_bias=True)
    norm = RMSNorm(mixer.width, c.get("layer_norm_epsilon", float, 1e-5))
    body = Stack(Block(mixer, norm=norm), c.get("num_hidden_layers", int))
    tied = c.get("tie_word_embeddings", bool, tied)
    return LM(c.get("vocab_size", int), mixer.width, body, tied, norm, 1.0)


def config(m: Any) -> dict[str, Any]:
    """The entries of which `model` makes this model."""
    mixer = m.body.blocks.mixer
    return {
        "architectures": ["MambaForCausalLM"],
        **outer_config(m),
        "state_size": mixer.slots,
        "expand": mixer.expand,
        "intermediate_size": mixer.channels,
        "conv_kernel": mixer.window,
        "time_step_rank": mixer.r,
    }


def outer_config(m: Any) -> dict[str, Any]:
    """The entries that `outside` reads."""
    return {
        "hidden_size": m.width,
        "num_hidden_layers": m.body.depth,
        "vocab_size": m.vocab,
        "layer_norm_epsilon": m.norm.eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def tensors(m: Any) -> list[Tensor]:
    """Every tensor of the file. The rows of in_proj are [u | z], those of x_proj [δ | B | C]."""
    mixer, layer = m.body.blocks.mixer, "body/block0/mixer"
    d, c, n, r = m.width, mixer.channels, mixer.slots, mixer.r
    return [
        *outer_tensors(m),
        linear(f"{MIXER}.in_proj.weight", f"{layer}/input", (d,), (2, c)),
        *taps(f"{MIXER}.conv1d", f"{layer}/conv", mixer.window, c),
        linear(f"{MIXER}.x_proj.weight", f"{layer}/select", (c,), (r + 2 * n,)),
        *affine(f"{MIXER}.dt_proj", f"{layer}/dt", r, c),
        plain(f"{MIXER}.A_log", f"{layer}/A_log", c, n),
        plain(f"{MIXER}.D", f"{layer}/skip", c),
        linear(f"{MIXER}.out_proj.weight", f"{layer}/out", (c,), (d,)),
    ]


def outer_tensors(m: Any) -> list[Tensor]:
    """The tensors around the mixers."""
    d = m.width
    out = [
        plain("backbone.embeddings.weight", "embed", m.vocab, d),
        plain("backbone.norm_f.weight", "norm/gain", d),
        plain("backbone.layers.{i}.norm.weight", "body/block0/norm/gain", d),
    ]
    return out if m.tied else [*out, linear("lm_head.weight", "readout", (d,), (m.vocab,))]
