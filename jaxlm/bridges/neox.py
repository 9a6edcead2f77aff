"""The GPT-NeoX family, Pythia among it: parallel residual, partial rotary, erf GELU (Black et al. 2022)."""

from typing import Any

import numpy as np

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.config import THEIRS, Config, read_rope, write_rope
from jaxlm.bridges.tensors import Tensor, affine, bias, layer_norm, linear, plain
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM

IGNORED = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
PREFIX = ""
TWIN = ("embed_out.weight", "gpt_neox.embed_in.weight")


def model(c: Config) -> LM:
    """The model that a config.json describes."""
    d, h = c.get("hidden_size", int), c.get("num_attention_heads", int)
    rope = read_rope(c, "rotary_emb_base", "rotary_pct", 0.25)
    attention = Attention(d, h, h, d // h, position=rope, bias=c.get("attention_bias", bool, True))
    mlp = MLP(d, c.get("intermediate_size", int), c.activation("hidden_act"))
    norm = LayerNorm(d, c.get("layer_norm_eps", float, 1e-5))
    residual = "parallel" if c.get("use_parallel_residual", bool, True) else "plain"
    body = Stack(Block(attention, mlp, norm, residual=residual), c.get("num_hidden_layers", int))
    return LM(c.get("vocab_size", int), d, body, c.get("tie_word_embeddings", bool, False), norm, 1.0)


def config(m: Any) -> dict[str, Any]:
    """The entries of which `model` makes this model."""
    block = m.body.blocks
    rope = block.mixer.position
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": m.width,
        "intermediate_size": block.mlp.hidden,
        "num_hidden_layers": m.body.depth,
        "num_attention_heads": block.mixer.h,
        "vocab_size": m.vocab,
        "layer_norm_eps": block.norm.eps,
        "hidden_act": THEIRS[block.mlp.activation],
        "tie_word_embeddings": m.tied,
        "attention_bias": block.mixer.bias,
        "use_parallel_residual": block.residual == "parallel",
        "rotary_emb_base": rope.base,
        "rotary_pct": rope.fraction,
        **write_rope(rope),
    }


def tensors(m: Any) -> list[Tensor]:
    """Every tensor of the file. The rows of query_key_value are (head, [query, key, value], k)."""
    block, d = m.body.blocks, m.width
    h, k, f, biased = block.mixer.h, block.mixer.k, block.mlp.hidden, block.mixer.bias
    layer, of = "body/block0", "gpt_neox.layers.{i}"
    three = tuple(f"{layer}/mixer/{n}" for n in ("query", "key", "value"))
    out = [
        plain("gpt_neox.embed_in.weight", "embed", m.vocab, d),
        *layer_norm("gpt_neox.final_layer_norm", "norm", d),
        *layer_norm(f"{of}.input_layernorm", f"{layer}/norm", d),
        *layer_norm(f"{of}.post_attention_layernorm", f"{layer}/mlp_norm", d),
        Tensor(
            f"{of}.attention.query_key_value.weight", three, (3 * d, d),
            lambda w: tuple(np.moveaxis(w.reshape(h, 3, k, d), 3, 0)[:, :, j] for j in range(3)),
            lambda *ws: np.moveaxis(np.stack(ws, axis=2), 0, 3).reshape(3 * d, d),
        ),
        linear(f"{of}.attention.dense.weight", f"{layer}/mixer/out", (h, k), (d,)),
        *affine(f"{of}.mlp.dense_h_to_4h", f"{layer}/mlp/up", d, f),
        *affine(f"{of}.mlp.dense_4h_to_h", f"{layer}/mlp/down", f, d),
    ]  # fmt: skip
    if biased:
        out += [
            Tensor(
                f"{of}.attention.query_key_value.bias", tuple(f"{n}_bias" for n in three), (3 * d,),
                lambda w: tuple(w.reshape(h, 3, k)[:, j] for j in range(3)),
                lambda *ws: np.stack(ws, axis=1).reshape(3 * d),
            ),
            bias(f"{of}.attention.dense.bias", f"{layer}/mixer/out_bias", d),
        ]  # fmt: skip
    return out if m.tied else [*out, linear("embed_out.weight", "readout", (d,), (m.vocab,))]
