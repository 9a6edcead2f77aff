"""Sequence models with memory, as pure functions.

    model  = LM(vocab=256, width=128, body=Stack(Block(LEM(128), SwiGLU(128)), depth=4))
    params = jaxlm.init(model, jax.random.key(0))
    logits, state = model.apply(params, tokens)

A model is a frozen value; its weights are a nested dict; its memory is a state that goes in and comes out.
Training (`jaxlm.train`) and the command line (`jaxlm.cli`) are imported by themselves.
"""

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError, ShapeError, UnknownAxis
from jaxlm.files import load, save
from jaxlm.generate import Sampling, generate
from jaxlm.layers.mlp import MLP, GatedMLP, SwiGLU
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.mixers import *  # noqa: F403  (every registered mixer)
from jaxlm.mixers import MIXERS, Mixer
from jaxlm.models import LM, SequenceModel
from jaxlm.module import Module, Spec, abstract, cast, count, decay_mask, init
from jaxlm.sharding import RULES, mesh, shardings

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "LM",
    "MIXERS",
    "MLP",
    "RULES",
    "Block",
    "ConfigError",
    "GatedMLP",
    "LayerNorm",
    "Mixer",
    "Module",
    "RMSNorm",
    "Sampling",
    "SequenceModel",
    "ShapeError",
    "Spec",
    "Stack",
    "SwiGLU",
    "UnknownAxis",
    "abstract",
    "cast",
    "count",
    "decay_mask",
    "generate",
    "init",
    "load",
    "mesh",
    "save",
    "shardings",
    *MIXERS,
]
