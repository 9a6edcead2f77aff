"""A model and its weights as two files that hold only data: `model.json` and `params.safetensors`.

    save("out/small", model, params)
    model, params = load("out/small")

`model.json` spells the nested frozen dataclasses out; reading it looks names up in a closed table of classes and runs
no other code. Each file carries a digest of the other, so that an altered or mismatched one is noticed.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlm.codec import classes_in, decode, encode, one_line
from jaxlm.errors import ConfigError
from jaxlm.module import Module, Spec, is_spec, path_name
from jaxlm.typing import Params, Tree

__all__ = ["decode", "encode", "load", "save"]

MODEL, WEIGHTS = "model.json", "params.safetensors"
FORMAT = 1
STORED = ("float64", "float32", "float16", "bfloat16", "complex64", "bool")  # and all integers of 8 to 64 bits


def save(dir: str | os.PathLike, model: Module, params: Params) -> None:
    """Write a model and its weights into a folder, which is made if need be.

    Both files are written under other names first: a reader finds whole files, and a failed write leaves the old ones.
    params   of the model; floating leaves may be in another floating dtype than declared (see `cast`)
    """
    folder = Path(dir)
    tensors = {}
    specs = named(model.params())
    given = named(params)
    check_names(given, specs, "params")
    for path, value in given.items():
        check_weight(path, tuple(value.shape), value.dtype, specs[path], "params")
        tensors[path] = np.asarray(jax.device_get(value), order="C")
    about: dict[str, Any] = {"format": FORMAT, "model": encode(model)}
    decode(about["model"], classes_in(model), "model")  # what could not be read again is refused now
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = (folder / f".{name}.{os.getpid()}.part" for name in (WEIGHTS, MODEL))
    try:
        save_file(tensors, weights, metadata={"format": "jaxlm", "model": _digest(about["model"])})
        about["weights"] = {"file": WEIGHTS, "sha256": _file_digest(weights)}
        text.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        weights.chmod(text.stat().st_mode)  # readable by whoever may read the other file
        for part in (weights, text):
            with part.open("rb+") as f:
                os.fsync(f.fileno())
        weights.replace(folder / WEIGHTS)
        text.replace(folder / MODEL)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: {error}") from error
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)


def load(dir: str | os.PathLike, classes: Iterable[type] = ()) -> tuple[Any, Params]:
    """(model, params) of a folder that `save` wrote; bit for bit what was saved.

    classes  the user's own classes that the model is made of, besides the library's
    Raises ConfigError, in one line that names the file and the place, for anything that is not as `save` wrote it.
    """
    about, text = _read_json(Path(dir) / MODEL)
    model = decode(about["model"], classes, str(text))
    try:
        specs = model.params()
    except Exception as error:
        raise ConfigError(f"{text}: {type(model).__name__} cannot declare its weights: {one_line(error)}") from error
    file = Path(dir) / WEIGHTS
    tensors, metadata = _read_weights(file, named(specs))
    if metadata.get("model") != _digest(about["model"]):
        raise ConfigError(f"{text}: altered, or not of the same save as {WEIGHTS}: their digests differ")
    if about["weights"]["sha256"] != _file_digest(file):
        raise ConfigError(f"{file}: altered, or not of the same save as {MODEL}: its digest differs")
    tree = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(tensors[path_name(p)]), specs, is_leaf=is_spec)
    return model, tree


def named(tree: Tree) -> dict[str, Any]:
    """{path: leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_spec)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def check_names(given: Iterable[str], specs: Iterable[str], where: str) -> None:
    """ConfigError for the first path that is missing or unknown."""
    for path in sorted(set(specs) - set(given)):
        raise ConfigError(f"{where}: {path}: missing, expected every weight of the model")
    for path in sorted(set(given) - set(specs)):
        raise ConfigError(f"{where}: {path}: unknown, expected only weights of the model")


def check_weight(path: str, shape: tuple[int, ...], dtype: Any, spec: Spec, where: str) -> None:
    """ConfigError for a weight of another shape, or of a dtype that cannot stand for the declared one."""
    if shape != spec.shape:
        raise ConfigError(f"{where}: {path} has shape {shape}, expected {spec.shape}")
    wanted, dtype = jnp.dtype(spec.dtype), jnp.dtype(dtype)
    floating = jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(wanted, jnp.floating)
    if dtype != wanted and not floating:
        raise ConfigError(f"{where}: {path} is {dtype}, expected {wanted}")
    if dtype.name not in STORED and dtype.kind not in "iu":
        raise ConfigError(f"{where}: {path} is {dtype}, expected one of {', '.join(STORED)} or an integer")


def _read_json(file: Path) -> tuple[dict[str, Any], Path]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise ValueError("a key occurs twice")
        return out

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is no JSON number")

    try:
        about = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: expected a file written by jaxlm.save") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: truncated or altered, no JSON: {one_line(error)}") from error
    keys = {"format", "model", "weights"}
    if not isinstance(about, dict) or about.get("format") != FORMAT or set(about) != keys:
        raise ConfigError(f"{file}: expected format {FORMAT} with the keys {', '.join(sorted(keys))}")
    weights, model = about["weights"], about["model"]
    if not isinstance(weights, dict) or weights.get("file") != WEIGHTS or set(weights) != {"file", "sha256"}:
        raise ConfigError(f"{file}: weights = {weights!r}: expected the file {WEIGHTS} and its sha256")
    if not isinstance(model, dict) or "class" not in model:
        raise ConfigError(f"{file}: model: expected a module, with its class")
    return about, file


def _read_weights(file: Path, specs: dict[str, Spec]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with file.open("rb"), safe_open(file, framework="np") as f:
            check_names(f.keys(), specs, str(file))
            for path, spec in specs.items():
                check_weight(path, tuple(f.get_slice(path).get_shape()), spec.dtype, spec, str(file))
            tensors = {path: f.get_tensor(path) for path in specs}
            metadata = f.metadata() or {}
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror or one_line(error)}: expected a file written by jaxlm.save"
        ) from error
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ConfigError(f"{file}: truncated or altered, no safetensors: {one_line(error)}") from error
    for path, value in tensors.items():
        check_weight(path, value.shape, value.dtype, specs[path], str(file))
        if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
            raise ConfigError(f"{file}: {path} is {value.dtype}: expected jax_enable_x64 to be on, to keep it as it is")
    return tensors, metadata


def _digest(model: Any) -> str:
    return hashlib.sha256(json.dumps(model, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
