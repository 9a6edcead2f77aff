"""The GPT-2 family: learned positions, LayerNorm, tanh GELU, biases (Radford et al. 2019)."""

from typing import Any

import numpy as np

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.bridges.config import THEIRS, Config
from jaxlm.bridges.tensors import Tensor, affine, bias, layer_norm, linear, plain
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models.lm import LM

IGNORED = (r"h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask, kept as a buffer
PREFIX = "transformer."  # in some files before every name but lm_head's
TWIN = ("lm_head.weight", "wte.weight")


def model(c: Config) -> LM:
    """The model that a config.json describes."""
    c.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    d, h = c.get("n_embd", int), c.get("n_head", int)
    mlp = MLP(d, c.get("n_inner", int, 4 * d), c.activation("activation_function"))
    norm = LayerNorm(d, c.get("layer_norm_epsilon", float, 1e-5))
    blocks = Stack(Block(Attention(d, h, h, d // h, position=None, bias=True), mlp, norm), c.get("n_layer", int))
    body = Chain((LearnedPositions(d, c.get("n_positions", int, 1024)), blocks))
    return LM(c.get("vocab_size", int), d, body, c.get("tie_word_embeddings", bool, True), norm, 1.0)


def config(m: Any) -> dict[str, Any]:
    """The entries of which `model` makes this model."""
    learned, stack = m.body.parts
    block = stack.blocks
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": m.width,
        "n_layer": stack.depth,
        "n_head": block.mixer.h,
        "n_inner": block.mlp.hidden,
        "n_positions": learned.length,
        "vocab_size": m.vocab,
        "layer_norm_epsilon": block.norm.eps,
        "activation_function": THEIRS[block.mlp.activation],
        "tie_word_embeddings": m.tied,
    }


def tensors(m: Any) -> list[Tensor]:
    """Every tensor of the file. `Conv1D` is (in, out); c_attn is [query | key | value] along its outputs."""
    learned, stack = m.body.parts
    block, d = stack.blocks, m.width
    h, k, f = block.mixer.h, block.mixer.k, block.mlp.hidden
    layer, at = "body/part1/block0", "h.{i}.attn"
    three = tuple(f"{layer}/mixer/{n}" for n in ("query", "key", "value"))
    out = [
        plain("wte.weight", "embed", m.vocab, d),
        plain("wpe.weight", "body/part0/table", learned.length, d),
        *layer_norm("ln_f", "norm", d),
        *layer_norm("h.{i}.ln_1", f"{layer}/norm", d),
        *layer_norm("h.{i}.ln_2", f"{layer}/mlp_norm", d),
        Tensor(
            f"{at}.c_attn.weight", three, (d, 3 * d),
            lambda w: tuple(p.reshape(d, h, k) for p in np.split(w, 3, axis=1)),
            lambda *ws: np.concatenate([w.reshape(d, d) for w in ws], axis=1),
        ),
        Tensor(
            f"{at}.c_attn.bias", tuple(f"{n}_bias" for n in three), (3 * d,),
            lambda w: tuple(p.reshape(h, k) for p in np.split(w, 3)),
            lambda *ws: np.concatenate([w.reshape(d) for w in ws]),
        ),
        linear(f"{at}.c_proj.weight", f"{layer}/mixer/out", (h, k), (d,), turned=False),
        bias(f"{at}.c_proj.bias", f"{layer}/mixer/out_bias", d),
        *affine("h.{i}.mlp.c_fc", f"{layer}/mlp/up", d, f, turned=False),
        *affine("h.{i}.mlp.c_proj", f"{layer}/mlp/down", f, d, turned=False),
    ]  # fmt: skip
    return out if m.tied else [*out, linear("lm_head.weight", "readout", (d,), (m.vocab,))]
