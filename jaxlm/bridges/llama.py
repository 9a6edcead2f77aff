"""The Llama family: RMSNorm, rotary grouped attention, SwiGLU (Touvron et al. 2023)."""

from typing import Any

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.config import THEIRS, Config, read_rope, write_rope
from jaxlm.bridges.tensors import Tensor, bias, linear, plain
from jaxlm.layers.mlp import GatedMLP
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM

IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")
PREFIX = ""
TWIN = ("lm_head.weight", "model.embed_tokens.weight")  # may be there besides, if tied


def model(c: Config) -> LM:
    """The model that a config.json describes."""
    c.only(mlp_bias=False, pretraining_tp=1)
    d, h = c.get("hidden_size", int), c.get("num_attention_heads", int)
    k = c.get("head_dim", int, d // h)
    groups = c.get("num_key_value_heads", int, h)
    attention = Attention(d, h, groups, k, position=read_rope(c), bias=c.get("attention_bias", bool, False))
    mlp = GatedMLP(d, c.get("intermediate_size", int), c.activation("hidden_act"))
    norm = RMSNorm(d, c.get("rms_norm_eps", float, 1e-6))
    body = Stack(Block(attention, mlp, norm), c.get("num_hidden_layers", int))
    return LM(c.get("vocab_size", int), d, body, c.get("tie_word_embeddings", bool, False), norm, 1.0)


def config(m: Any) -> dict[str, Any]:
    """The entries of which `model` makes this model."""
    block = m.body.blocks
    a, rope = block.mixer, block.mixer.position
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": m.width,
        "intermediate_size": block.mlp.hidden,
        "num_hidden_layers": m.body.depth,
        "num_attention_heads": a.h,
        "num_key_value_heads": a.g,
        "head_dim": a.k,
        "vocab_size": m.vocab,
        "rms_norm_eps": block.norm.eps,
        "hidden_act": THEIRS[block.mlp.activation],
        "tie_word_embeddings": m.tied,
        "attention_bias": a.bias,
        "mlp_bias": False,
        "rope_theta": rope.base,
        **({} if rope.fraction == 1 else {"partial_rotary_factor": rope.fraction}),
        **write_rope(rope),
    }


def tensors(m: Any) -> list[Tensor]:
    """Every tensor of the file."""
    block, d = m.body.blocks, m.width
    a, f = block.mixer, block.mlp.hidden
    layer, at, mlp = "body/block0", "model.layers.{i}.self_attn", "model.layers.{i}.mlp"
    out = [
        plain("model.embed_tokens.weight", "embed", m.vocab, d),
        plain("model.norm.weight", "norm/gain", d),
        plain("model.layers.{i}.input_layernorm.weight", f"{layer}/norm/gain", d),
        plain("model.layers.{i}.post_attention_layernorm.weight", f"{layer}/mlp_norm/gain", d),
        linear(f"{at}.o_proj.weight", f"{layer}/mixer/out", (a.h, a.k), (d,)),
    ]
    for n, long, heads in (("q", "query", a.h), ("k", "key", a.g), ("v", "value", a.g)):
        out.append(linear(f"{at}.{n}_proj.weight", f"{layer}/mixer/{long}", (d,), (heads, a.k)))
        if a.bias:
            out.append(bias(f"{at}.{n}_proj.bias", f"{layer}/mixer/{long}_bias", heads, a.k))
    if a.bias:
        out.append(bias(f"{at}.o_proj.bias", f"{layer}/mixer/out_bias", d))
    for n, ins, outs in (("gate", d, f), ("up", d, f), ("down", f, d)):
        out.append(linear(f"{mlp}.{n}_proj.weight", f"{layer}/mlp/{n}", (ins,), (outs,)))
    if not m.tied:
        out.append(linear("lm_head.weight", "readout", (d,), (m.vocab,)))
    return out
