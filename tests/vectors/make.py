"""Write the test vectors of this folder with Hugging Face transformers, which the library itself does not use.

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy        in an environment of its own
    python tests/vectors/make.py

README.md says what they are.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

HERE = Path(__file__).parent
LENGTH, TOKENS, KEPT, VOCAB = 16, 40, 10, 48
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LENGTH,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 1.5, 3.0, 4.0],
        "original_max_position_embeddings": LENGTH,
    },
}


def llama(scaling: dict | None = None) -> LlamaForCausalLM:
    limit = LENGTH if scaling is None or scaling["rope_type"] == "dynamic" else 4 * LENGTH
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=limit, rms_norm_eps=1e-5, rope_theta=100.0,
            rope_scaling=scaling, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=3, n_positions=48, n_inner=40, bos_token_id=0, eos_token_id=1
        )
    )  # fmt: skip


def neox() -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=64, rotary_pct=0.25, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def mamba() -> MambaForCausalLM:
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCAB, hidden_size=24, state_size=5, num_hidden_layers=2, conv_kernel=3, time_step_rank=3,
            bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def mamba2() -> Mamba2ForCausalLM:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCAB, hidden_size=24, state_size=5, num_hidden_layers=2, num_heads=6, head_dim=8, n_groups=2,
            chunk_size=16, layer_norm_epsilon=1e-3, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


MODELS = {"gpt2": gpt2, "llama": llama, "neox": neox, "mamba": mamba, "mamba2": mamba2}


@torch.no_grad()
def shake(model: torch.nn.Module, seed: int) -> None:
    """No weight may be 0 or 1, or an error in it would not be seen."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=draw)
        if p.ndim == 2:
            p.copy_(noise * (0.7 if "emb" in name or "wte" in name or "wpe" in name else 1.3 * p.shape[-1] ** -0.5))
        else:
            p.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray:
    """Of the last tokens, all read at once; in float64 but for what the library itself keeps in float32."""
    return model.double().eval()(tokens[None]).logits[0, -KEPT:].float().numpy()


@torch.no_grad()
def decoded(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray:
    """The same, one token at a time through the cache."""
    model, cache, out = model.double().eval(), None, []
    for i in range(len(tokens)):
        step = model(tokens[None, i : i + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        out.append(step.logits[0, 0])
    return torch.stack(out)[-KEPT:].float().numpy()


def main() -> None:
    tokens = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(0))
    out = {"tokens": tokens.numpy().astype(np.int32), "version": np.array(transformers.__version__)}
    for seed, (name, make) in enumerate(MODELS.items()):
        model = make()
        shake(model, seed)
        model.save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        (HERE / name / "model.safetensors").chmod(0o644)
        out[name] = logits(model, tokens)
    weights = llama()
    shake(weights, 1)
    for name, scaling in SCALINGS.items():
        folder = HERE / "llama" / name
        model = llama(scaling)
        model.load_state_dict(weights.state_dict())
        model.config.save_pretrained(folder)
        out[f"llama/{name}"] = logits(model, tokens)
        model = llama(scaling)
        model.load_state_dict(weights.state_dict())
        out[f"llama/{name}/decoded"] = decoded(model, tokens)
    np.savez_compressed(HERE / "logits.npz", **out)


if __name__ == "__main__":
    main()
