"""Hugging Face folders, safetensors and config.json: GPT-2, Llama, GPT-NeoX, Mamba and Mamba-2.

    model, params = load("folder")
    save("other", model, params)

Loading runs no code of the folder. The families are a closed table; a tensor that is unknown, missing or of another
shape raises by its name; buffers that hold no weights are passed over. Weights keep their dtype, and there and back is
exact to the bit.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlm.blocks import Block, Stack
from jaxlm.bridges import gpt2, llama, mamba, mamba2, neox
from jaxlm.bridges.config import Config
from jaxlm.bridges.tensors import Tensor, to_tensors, to_weights
from jaxlm.codec import one_line
from jaxlm.errors import ConfigError
from jaxlm.files import check_names, check_weight, named
from jaxlm.layers.mlp import MLP, GatedMLP, hidden_width
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.mamba import Mamba
from jaxlm.mixers.mamba2 import Mamba2
from jaxlm.models.lm import LM
from jaxlm.module import Module, is_spec, path_name, rebuild
from jaxlm.typing import Params

__all__ = ["FAMILIES", "ends", "load", "save"]

FAMILIES: dict[str, Any] = {  # by `model_type`
    "gpt2": gpt2, "llama": llama, "gpt_neox": neox, "mamba": mamba, "mamba2": mamba2,
}  # fmt: skip
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATING = ("float64", "float32", "float16", "bfloat16")


def load(dir: str | os.PathLike) -> tuple[LM, Params]:
    """(model, params) of a folder with config.json and model.safetensors, or the pieces that its index names.

    Raises ConfigError, in one line that names file and tensor, for whatever is not as the config says.
    """
    folder = Path(dir)
    about = Config(_json(folder / CONFIG), str(folder / CONFIG))
    kind = about.get("model_type", str)
    if kind not in FAMILIES:
        raise about.wrong("model_type", f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        model = family.model(about)
        specs = model.params()
    except ConfigError as error:
        raise error if str(folder) in f"{error}" else ConfigError(f"{folder / CONFIG}: {error}") from error
    entries, layers = family.tensors(model), depth(model)
    tensors = _read(folder, family, model, {n: e for e in entries for n in e.names(layers)})
    weights = to_weights(entries, layers, tensors)
    for path, spec in named(specs).items():
        check_weight(path, weights[path].shape, weights[path].dtype, spec, str(folder))
    tree = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(weights[path_name(p)]), specs, is_leaf=is_spec)
    return model, tree


def save(dir: str | os.PathLike, model: LM, params: Params, config: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors into a folder, which is made if need be.

    model    one that a family can hold; ConfigError names the first field of it that none can. Rematerialisation,
             dropout and the dtype of the cache are left out
    config   further entries, for example max_position_embeddings or eos_token_id
    """
    kind, plain = _family(model)
    weights, folder = named(params), Path(dir)
    specs = named(plain.params())
    check_names(weights, specs, "params")
    for path, value in weights.items():
        check_weight(path, tuple(value.shape), value.dtype, specs[path], "params")
    host = {path: np.asarray(jax.device_get(value)) for path, value in weights.items()}
    family = FAMILIES[kind]
    tensors = to_tensors(family.tensors(plain), depth(plain), host)
    entries = {"model_type": kind, **family.config(plain), "torch_dtype": host["embed"].dtype.name, **(config or {})}
    if family.model(Config(entries)) != plain:
        raise ConfigError(f"config = {config}: expected entries that leave the model as it is")
    tensors = {n if n == family.TWIN[0] else family.PREFIX + n: t for n, t in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS}.{os.getpid()}.part"
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.chmod((folder / CONFIG).stat().st_mode)
        part.replace(folder / WEIGHTS)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def ends(dir: str | os.PathLike) -> tuple[int, ...]:
    """The tokens that end a text, as config.json tells; none where it does not."""
    file = Path(dir) / CONFIG
    told = Config(_json(file), str(file)).entries.get("eos_token_id")
    tokens = told if isinstance(told, list) else [] if told is None else [told]
    if any(type(t) is not int or t < 0 for t in tokens):
        raise ConfigError(f"{file}: eos_token_id = {told!r}: expected a token or a list of tokens")
    return tuple(tokens)


def depth(model: LM) -> int:
    """Layers of a model of one of the families."""
    body: Any = model.body
    return (body if isinstance(body, Stack) else body.parts[-1]).depth


def _read(folder: Path, family: Any, model: LM, wanted: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """{name: tensor}, each of its shape and every one of them, from one file or several."""
    out: dict[str, np.ndarray] = {}
    twin, shared = family.TWIN
    also: dict[str, str] = getattr(family, "ALSO", {})
    seen: dict[str, np.ndarray] = {}
    for file in _pieces(folder):
        try:
            with file.open("rb"), safe_open(file, framework="np") as f:
                for full in f.keys():  # noqa: SIM118
                    name = str(full).removeprefix(family.PREFIX)
                    name = also.get(name, name)
                    if name == twin and model.tied:
                        seen[name] = f.get_tensor(full)
                    elif name in wanted:
                        shape, want = tuple(f.get_slice(full).get_shape()), wanted[name].shape
                        if shape != want:
                            raise ConfigError(f"{file}: {full} has shape {shape}, expected {want}")
                        out[name] = _checked(f.get_tensor(full), f"{file}: {full}")
                    elif not any(re.fullmatch(p, name) for p in family.IGNORED):
                        raise ConfigError(f"{file}: {full}: unknown, expected only tensors of the model")
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or one_line(error)}: expected safetensors") from error
        except (SafetensorError, AttributeError, TypeError) as error:
            raise ConfigError(f"{file}: truncated or altered, no safetensors: {one_line(error)}") from error
    for name in wanted:
        if name not in out:
            raise ConfigError(f"{folder}: {name}: missing, expected every tensor of the model")
    if twin in seen and not np.array_equal(seen[twin], out[shared]):
        raise ConfigError(f"{folder}: {twin}: differs from {shared}, expected the same, as tie_word_embeddings says")
    return out


def _checked(value: np.ndarray, where: str) -> np.ndarray:
    if value.dtype.name not in FLOATING:
        raise ConfigError(f"{where} is {value.dtype}, expected one of {', '.join(FLOATING)}")
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise ConfigError(f"{where} is {value.dtype}: expected jax_enable_x64 to be on, to keep it as it is")
    return value


def _pieces(folder: Path) -> list[Path]:
    """The files that hold the tensors."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    files = set(Config(_json(folder / INDEX), str(folder / INDEX)).get("weight_map", dict).values())
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ConfigError(f"{folder / INDEX}: weight_map names {file!r}: expected a file of the same folder")
    return [folder / file for file in sorted(files)]


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: expected a Hugging Face folder with {file.name}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return value


def _family(model: LM) -> tuple[str, LM]:
    """(model_type, the model as the bridge makes it)."""
    plain, near = rebuild(model, _explicit), ""
    for kind, family in FAMILIES.items():
        try:
            made = family.model(Config(family.config(plain)))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # of another make, or with what no entry can say
        if made == plain:
            return kind, plain
        near = near or f"; {_difference(plain, made)} for {kind}"
    raise ConfigError(f"model: {type(model).__name__} is none of the families {', '.join(FAMILIES)}{near}")


def _explicit(m: Module) -> Module:
    """Defaults spelt out; what does not change the function, as the bridge has it."""
    if isinstance(m, Attention):
        return dataclasses.replace(m, heads=m.h, kv_heads=m.g, head=m.k, cache_dtype="float32")
    if isinstance(m, Mamba):
        return dataclasses.replace(m, rank=m.r)
    if isinstance(m, Mamba2):
        return dataclasses.replace(m, head=m.v, slots=m.k)
    if isinstance(m, GatedMLP):
        return dataclasses.replace(m, hidden=hidden_width(m.width, m.hidden))
    if isinstance(m, MLP):
        return dataclasses.replace(m, hidden=m.hidden or 4 * m.width)
    if isinstance(m, Block):
        return dataclasses.replace(m, norm=m.normalise, dropout=0.0)
    if isinstance(m, Stack):
        one = m.blocks[0] if isinstance(m.blocks, tuple) and len(m.blocks) == 1 else m.blocks
        return dataclasses.replace(m, blocks=one, remat="none")
    if isinstance(m, LM):
        return dataclasses.replace(m, norm=m.normalise, scale=m.width**0.5 if m.scale is None else m.scale)
    return m


def _difference(ours: Any, theirs: Any, path: str = "model") -> str:
    """The first field in which two modules differ."""
    if type(ours) is not type(theirs) or not isinstance(ours, Module):
        shown = ours if not isinstance(ours, Module) else type(ours).__name__
        wanted = theirs if not isinstance(theirs, Module) else type(theirs).__name__
        return f"{path} = {shown!r}: expected {wanted!r}"
    fields = [f.name for f in dataclasses.fields(ours)]  # type: ignore[arg-type]
    name = next(n for n in fields if getattr(ours, n) != getattr(theirs, n))
    return _difference(getattr(ours, name), getattr(theirs, name), f"{path}.{name}")
