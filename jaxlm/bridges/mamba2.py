"""The Mamba-2 family: blocks of one state space with a scalar decay a head, no MLP (Dao & Gu 2024)."""

import math
from typing import Any

from jaxlm.bridges.config import Config
from jaxlm.bridges.mamba import ALSO, IGNORED, MIXER, PREFIX, TWIN, outer_config, outer_tensors, outside
from jaxlm.bridges.tensors import Tensor, bias, linear, plain, taps
from jaxlm.mixers.mamba2 import Mamba2
from jaxlm.models.lm import LM

__all__ = ["ALSO", "IGNORED", "PREFIX", "TWIN", "config", "model", "tensors"]

SIZES = {  # our field: their entry, and what it is where it is not told
    "expand": ("expand", 2), "head": ("head_dim", 64), "slots": ("state_size", 128), "groups": ("n_groups", 8),
}  # fmt: skip
FREE = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])  # a step without bounds, as files spell it


def model(c: Config) -> LM:
    """The model that a config.json describes."""
    c.only(conv_kernel=4)
    if c.entries.get("time_step_limit") not in (None, *FREE):
        raise c.wrong("time_step_limit", "[0.0, Infinity], the only form known here")
    sizes = {ours: c.get(n, int, default) for ours, (n, default) in SIZES.items()}
    m = Mamba2(c.get("hidden_size", int), **sizes, eps=c.get("layer_norm_epsilon", float, 1e-5))
    c.only(num_heads=m.h)
    return outside(c, m, tied=False)


def config(m: Any) -> dict[str, Any]:
    """The entries of which `model` makes this model."""
    mixer = m.body.blocks.mixer
    return {
        "architectures": ["Mamba2ForCausalLM"],
        **outer_config(m),
        "expand": mixer.expand,
        "num_heads": mixer.h,
        "head_dim": mixer.v,
        "state_size": mixer.k,
        "n_groups": mixer.groups,
        "conv_kernel": 4,
    }


def tensors(m: Any) -> list[Tensor]:
    """Every tensor of the file. The rows of in_proj are [z | v | B | C | δ]."""
    mixer, layer = m.body.blocks.mixer, "body/block0/mixer"
    d, inner, h, g = m.width, mixer.inner, mixer.h, mixer.groups
    return [
        *outer_tensors(m),
        linear(f"{MIXER}.in_proj.weight", f"{layer}/into", (d,), (inner + mixer.mixed + h,)),
        *taps(f"{MIXER}.conv1d", f"{layer}/conv", 4, mixer.mixed),
        plain(f"{MIXER}.A_log", f"{layer}/A_log", h),
        plain(f"{MIXER}.D", f"{layer}/skip", h),
        plain(f"{MIXER}.dt_bias", f"{layer}/dt_bias", h),
        bias(f"{MIXER}.norm.weight", f"{layer}/norm", g, inner // g),
        linear(f"{MIXER}.out_proj.weight", f"{layer}/out", (inner,), (d,)),
    ]
