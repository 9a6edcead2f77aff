"""Hugging Face folders: the reference implementation's own logits, there and back to the bit, and what is refused."""

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.huggingface import FAMILIES, load, save
from jaxlm.errors import ConfigError
from jaxlm.layers.mlp import SwiGLU
from jaxlm.layers.norm import RMSNorm
from jaxlm.layers.rope import NTK, Rope
from jaxlm.mixers import LEM, Attention, Mamba, Mamba2
from jaxlm.models import LM
from jaxlm.module import count, init, rebuild

VECTORS = Path(__file__).parent / "vectors"
FOLDERS = {"gpt2": "gpt2", "llama": "llama", "gpt_neox": "neox", "mamba": "mamba", "mamba2": "mamba2"}
SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")
apply = jax.jit(lambda model, params, tokens: model.apply(params, tokens)[0], static_argnums=0)


@cache
def expected():
    return dict(np.load(VECTORS / "logits.npz"))


def agrees(model, params, name):
    tokens = jnp.asarray(expected()["tokens"])[None]
    want = expected()[name]
    got = apply(model, params, tokens)[0, -len(want) :]
    assert np.abs(np.asarray(got) - want).max() < 1e-4  # logits of size 5


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture
def edit(tmp_path):
    """Copy a family's folder, with its tensors and entries changed."""

    def make(family, change=lambda tensors: None, **entries):
        folder = tmp_path / "edited"
        shutil.copytree(VECTORS / FOLDERS[family], folder, dirs_exist_ok=True)
        tensors = tensors_of(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        about = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps(about))
        return folder

    return make


def refused(folder, *words):
    with pytest.raises(ConfigError) as error:
        load(folder)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text, text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("family", FOLDERS)
def test_logits_equal_the_reference_and_the_way_back_is_exact(family, tmp_path):
    folder = VECTORS / FOLDERS[family]
    model, params = load(folder)
    agrees(model, params, FOLDERS[family])
    own = tensors_of(folder)
    assert count(model) == sum(t.size for t in own.values())
    save(tmp_path, model, params, {"eos_token_id": 1})
    same(tensors_of(tmp_path), own)
    again, back = load(tmp_path)
    assert again == model and json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 1
    same(dict(leaves(back)), dict(leaves(params)))


def leaves(params):
    return [(jax.tree_util.keystr(p), np.asarray(x)) for p, x in jax.tree_util.tree_leaves_with_path(params)]


@pytest.mark.parametrize("name", SCALINGS)
def test_every_scaling_beyond_the_trained_length(name, tmp_path):
    """One token at a time for the reference, whose dynamic angles depend on the length of the text; and all at once."""
    shutil.copy(VECTORS / "llama/model.safetensors", tmp_path)
    shutil.copy(VECTORS / "llama" / name / "config.json", tmp_path)
    model, params = load(tmp_path)
    agrees(model, params, f"llama/{name}/decoded")
    assert np.abs(expected()[f"llama/{name}"] - expected()["llama"]).max() > 0.1

    def known(m):
        return dataclasses.replace(m, position=m.position.at(40)) if isinstance(m, Attention) else m

    if name in ("dynamic", "longrope"):
        agrees(rebuild(model, known), params, f"llama/{name}")
    save(tmp_path / "back", model, params)
    assert load(tmp_path / "back")[0] == model


def test_names_and_sizes_of_public_models():
    """Nothing is made: declarations alone."""
    gpt2 = {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "activation_function": "gelu_new"}
    llama = {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    pythia = {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
        "vocab_size": 50304, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
    }  # fmt: skip
    from jaxlm.bridges.config import Config

    mamba = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
    mamba2 = mamba | {"vocab_size": 50288, "num_heads": 24, "n_groups": 1, "tie_word_embeddings": True}
    sizes = {
        "gpt2": (gpt2, 124_439_808), "llama": (llama, 1_235_814_400), "gpt_neox": (pythia, 70_426_624),
        "mamba": (mamba, 129_135_360), "mamba2": (mamba2, 128_989_632),
    }  # fmt: skip
    for family, (entries, size) in sizes.items():
        model = FAMILIES[family].model(Config(entries))
        assert count(model) == size
        names = [n for e in FAMILIES[family].tensors(model) for n in e.names(2)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("family", FOLDERS)
def test_tensors_are_named_when_they_are_wrong(family, edit):
    name = {
        "gpt2": "wpe.weight", "llama": "norm.weight", "gpt_neox": "layers.1.attention.dense.weight",
        "mamba": "1.mixer.conv1d.weight", "mamba2": "1.mixer.norm.weight",
    }[family]  # fmt: skip
    full = next(n for n in tensors_of(VECTORS / FOLDERS[family]) if n.endswith(name))

    def flat(t):
        t[full] = t[full].reshape(-1, 1)

    refused(edit(family, lambda t: t.pop(full)), full.removeprefix("transformer."), "missing")
    refused(edit(family, lambda t: t.update({"model.stray": t[full]})), "model.stray", "unknown")
    refused(edit(family, flat), full, "shape")
    refused(edit(family, lambda t: t.update({full: t[full].astype(np.int32)})), full, "int32")
    refused(edit(family, lambda t: t.update({full: t[full].astype(np.float64)})), full, "float64", "x64")


def test_gpt2s_maps_are_not_turned(edit):
    def turn(t):
        t["transformer.h.0.attn.c_attn.weight"] = np.ascontiguousarray(t["transformer.h.0.attn.c_attn.weight"].T)

    refused(edit("gpt2", turn), "c_attn.weight has shape (72, 24), expected (24, 72)")


def test_buffers_and_other_spellings_of_a_file_are_accepted(edit):
    def original(t):  # OpenAI's names have no prefix; the causal mask was stored as a buffer
        bare = {n.removeprefix("transformer."): v for n, v in t.items()}
        mask = np.ones((1, 1, 48, 48), np.uint8)
        t.clear()
        t.update(bare | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.float32([-1e4])})
        t["lm_head.weight"] = t["wte.weight"].copy()

    model, params = load(edit("gpt2", original))
    agrees(model, params, "gpt2")
    old = {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 10000, "attention_bias": None}
    buffers = {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(1, np.float32)}
    model, params = load(edit("gpt_neox", lambda t: t.update(buffers), **old))
    agrees(model, params, "neox")

    def authors(t):  # the embedding in the singular; the tied readout is there too
        t["backbone.embedding.weight"] = t.pop("backbone.embeddings.weight")
        t["lm_head.weight"] = t["backbone.embedding.weight"].copy()

    agrees(*load(edit("mamba", authors, time_step_rank=3, intermediate_size=None)), "mamba")


def test_a_tied_readout_must_be_the_embedding(edit):
    other = lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + np.float32(1)})  # noqa: E731
    refused(edit("gpt2", other), "lm_head.weight", "tie_word_embeddings")


def test_weights_in_several_files(tmp_path):
    tensors = tensors_of(VECTORS / "llama")
    shutil.copy(VECTORS / "llama/config.json", tmp_path)
    where = {n: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, n in enumerate(tensors)}
    for file in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    agrees(*load(tmp_path), "llama")
    index.write_text(json.dumps({"weight_map": where | {"x": "../elsewhere.safetensors"}}))
    refused(tmp_path, "elsewhere")
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    refused(tmp_path, "missing")


def test_dtypes_are_kept(edit, tmp_path):
    half = lambda t: t.update({n: v.astype(ml_dtypes.bfloat16) for n, v in t.items()})  # noqa: E731
    folder = edit("llama", half)
    model, params = load(folder)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    save(tmp_path / "back", model, params)
    same(tensors_of(tmp_path / "back"), tensors_of(folder))

    def mixed(t):
        name = "model.layers.1.mlp.up_proj.weight"
        t[name] = t[name].astype(np.float16)

    with pytest.raises(ConfigError, match=r"up_proj\.weight: of float16 and float32"):
        load(edit("llama", mixed))


@pytest.mark.parametrize(
    ("family", "entries", "words"),
    [
        ("llama", {"model_type": "mystery"}, ("model_type = 'mystery'", "gpt2, llama, gpt_neox, mamba, mamba2")),
        ("llama", {"hidden_size": "32"}, ("hidden_size = '32'", "int")),
        ("llama", {"vocab_size": None}, ("vocab_size", "missing")),
        ("llama", {"mlp_bias": True}, ("mlp_bias = True",)),
        ("llama", {"hidden_act": "mish"}, ("hidden_act = 'mish'", "silu")),
        ("llama", {"rope_parameters": {"rope_type": "spiral"}}, ("rope_type = 'spiral'", "yarn")),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, ("factor", "missing")),
        ("llama", {"num_key_value_heads": 3}, ("kv_heads",)),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
        ("mamba", {"use_bias": True}, ("use_bias = True",)),
        ("mamba", {"intermediate_size": 50}, ("intermediate_size = 50", "48")),
        ("mamba", {"time_step_rank": "low"}, ("time_step_rank = 'low'", "int")),
        ("mamba2", {"num_heads": 3}, ("num_heads = 3", "6")),
        ("mamba2", {"time_step_limit": [0.0, 1.0]}, ("time_step_limit = [0.0, 1.0]",)),
        ("mamba2", {"conv_kernel": 3}, ("conv_kernel = 3",)),
        ("gpt2", {"n_positions": 50}, ("wpe.weight has shape (48, 24), expected (50, 24)",)),
    ],
)
def test_configs_are_read_strictly(family, entries, words, edit):
    refused(edit(family, **entries), *words)


def test_files_that_are_none(tmp_path):
    refused(tmp_path, "config.json")
    shutil.copy(VECTORS / "llama/config.json", tmp_path)
    refused(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    refused(tmp_path, "no safetensors")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "no JSON")


@pytest.mark.parametrize(
    "block", [Block(Attention(16), SwiGLU(16), dropout=0.1), Block(Mamba(16)), Block(Mamba2(16))], ids=str
)
def test_a_model_made_here_can_be_saved(block, tmp_path):
    model = LM(24, 16, Stack(block, depth=2, remat="dots"), tied=False, scale=1.0)
    params = init(model, jax.random.key(0))
    save(tmp_path, model, params)
    read, back = load(tmp_path)
    same(dict(leaves(back)), dict(leaves(params)))
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(apply(read, back, tokens), apply(model, params, tokens))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LM(24, 16, Stack(Block(Attention(16), SwiGLU(16)), 2)), r"model\.scale = 4\.0: expected 1\.0 for llama"),
        (
            LM(24, 16, Stack(Block(LEM(16), SwiGLU(16)), 2), scale=1.0),
            "none of the families gpt2, llama, gpt_neox, mamba, mamba2$",
        ),
        (
            LM(24, 16, Stack(Block(Attention(16, position=Rope(scaling=NTK(2.0))), SwiGLU(16)), 2), scale=1.0),
            "none of the families",
        ),
        (
            LM(24, 16, Stack(Block(Mamba(16, negative=True), norm=RMSNorm(16, 1e-5)), 2), scale=1.0),
            r"model\.body\.blocks\.mixer\.negative = True: expected False for mamba$",
        ),
        (
            LM(24, 16, Stack(Block(Attention(16, window=4), SwiGLU(16)), 2), scale=1.0),
            r"model\.body\.blocks\.mixer\.window = 4: expected None for llama",
        ),
    ],
)
def test_what_no_family_holds_is_refused(model, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        save(tmp_path, model, {})
    assert not list(tmp_path.iterdir())


def test_wrong_weights_are_refused(tmp_path):
    model, params = load(VECTORS / "llama")
    with pytest.raises(ConfigError, match="readout has shape"):
        save(tmp_path, model, {**params, "readout": params["readout"].T})
    with pytest.raises(ConfigError, match="readout: missing"):
        save(tmp_path, model, {n: p for n, p in params.items() if n != "readout"})
    with pytest.raises(ConfigError, match="hidden_size"):
        save(tmp_path, model, params, {"hidden_size": 64})
