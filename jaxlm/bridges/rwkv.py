"""RWKV-4, 5.2 and 7 from the single-file format of rwkv.cpp.

    model, params = load("model.bin")

The file: int32 magic, version, vocab, width, layers, kind of number; then for each tensor int32 number of sizes, length
of its name, kind of number, the sizes with the last first, the name, the numbers. All of it is little-endian. Decays
are kept as they act, -exp(w) in RWKV-4 and exp(-exp(w)) in RWKV-5; mixes of both as the share of the token itself.
"""

import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.tensors import Tensor, bias, layer_norm, linear, plain, to_weights
from jaxlm.errors import ConfigError
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.channel_mix import ChannelMix
from jaxlm.mixers.rwkv4 import RWKV4
from jaxlm.mixers.rwkv5 import RWKV5
from jaxlm.mixers.rwkv7 import RWKV7
from jaxlm.models.lm import LM
from jaxlm.models.rwkv import RWKV7Body, rwkv
from jaxlm.module import is_spec, path_name
from jaxlm.typing import Params

MAGIC, VERSIONS = 0x67676D66, (100, 101)
NUMBERS = {0: "<f4", 1: "<f2"}
ATT, FFN = "blocks.{i}.att", "blocks.{i}.ffn"
Tensors = Mapping[str, np.ndarray]


class Group(NamedTuple):
    """Tensors of some layers of the file; `alone`: of one layer, whose weights are not stacked."""

    entries: list[Tensor]
    layers: range
    alone: bool = False


def read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """{name: tensor} of a file; ConfigError says what is wrong with it."""
    path, at = Path(file), 24
    out: dict[str, np.ndarray] = {}
    try:
        raw = path.read_bytes()
        magic, version = struct.unpack_from("<6i", raw)[:2]
        if magic != MAGIC or version not in VERSIONS:
            raise ConfigError(f"{path}: magic {magic:#x}, version {version}: expected {MAGIC:#x}, one of {VERSIONS}")
        while at < len(raw):
            sizes, length, kind = struct.unpack_from("<3i", raw, at)
            shape = struct.unpack_from(f"<{sizes}i", raw, at + 12)[::-1]
            at += 12 + 4 * sizes
            name = raw[at : at + length].decode()
            if kind not in NUMBERS:
                raise ConfigError(f"{path}: {name}: numbers of kind {kind}, expected one of {tuple(NUMBERS)}")
            out[name] = np.frombuffer(raw, NUMBERS[kind], math.prod(shape), at + length).reshape(shape)
            at += length + out[name].nbytes
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: expected an RWKV model") from error
    except ConfigError:
        raise
    except (struct.error, ValueError) as error:
        raise ConfigError(f"{path}: truncated or altered, no RWKV model: {error}") from error
    return out


def load(file: str | os.PathLike) -> tuple[LM, Params]:
    """(model, params) of a file; numbers become float32.

    Raises ConfigError, in one line that names file and tensor, for what is missing, unknown or of another shape.
    """
    tensors, where = read(file), str(file)
    try:
        model, groups = _family(tensors)
    except KeyError as error:
        raise ConfigError(f"{where}: {error.args[0]}: missing, expected RWKV-4, 5.2 or 7") from error
    weights = _weights(groups, tensors, where)
    leaf = lambda path, spec: jnp.asarray(weights[path_name(path)], spec.dtype)  # noqa: E731
    return model, jax.tree_util.tree_map_with_path(leaf, model.params(), is_leaf=is_spec)


def _family(tensors: Tensors) -> tuple[LM, list[Group]]:
    """The model, and its tensors group by group."""
    size = lambda name, axis=0: tensors[name].shape[axis]  # noqa: E731
    vocab, d, f = size("emb.weight"), size("emb.weight", -1), size("blocks.0.ffn.key.weight")
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    outer = [
        plain("emb.weight", "embed", vocab, d),
        *layer_norm("blocks.0.ln0", "body/part0", d),
        *layer_norm("ln_out", "norm", d),
        linear("head.weight", "readout", (d,), (vocab,)),
    ]
    at = "body/part1"
    if "blocks.0.att.r_k" in tensors:
        ranks = tuple(size(f"blocks.{i}.att.{n}1") for i, n in ((0, "w"), (0, "a"), (1, "v"), (0, "g")))
        first: Any = RWKV7(d, size("blocks.0.att.r_k"), ranks)  # type: ignore[arg-type]
        body: Any = RWKV7Body(first, ChannelMix(d, f), depth)
        pieces = [(first, f"{at}/first", range(1), True), (body.later, f"{at}/rest", range(1, depth), False)]
        groups = [
            Group([*_seven(m, f"{here}/mixer"), *_halves(d, f, here, f"{here}/channel")], layers, alone)
            for m, here, layers, alone in pieces
        ]
    else:
        five = "blocks.0.att.ln_x.weight" in tensors
        mixer = RWKV5(d, size("blocks.0.att.time_faaaa"), 1e-5) if five else RWKV4(d)
        norm = LayerNorm(d)
        body = Stack((Block(mixer, norm=norm), Block(ChannelMix(d, f, True), norm=norm)), 2 * depth)
        att = _five(mixer, f"{at}/block0/mixer") if five else _four(d, f"{at}/block0/mixer")
        groups = [Group([*att, *_halves(d, f, f"{at}/block0", f"{at}/block1", True)], range(depth))]
    return rwkv(vocab, body), [Group(outer, range(1)), *groups]


def _weights(groups: Sequence[Group], tensors: Tensors, where: str) -> dict[str, np.ndarray]:
    """{path: weight}; every tensor of the file is used."""
    out: dict[str, np.ndarray] = {}
    used = set()
    for entries, layers, alone in groups:
        local = {}
        for e in entries:
            for here, name in enumerate(e.name.format(i=i) for i in (layers if e.per_layer else range(1))):
                if name not in tensors:
                    raise ConfigError(f"{where}: {name}: missing, expected every tensor of the model")
                if tensors[name].shape != e.shape:
                    raise ConfigError(f"{where}: {name} has shape {tensors[name].shape}, expected {e.shape}")
                local[e.name.format(i=here)] = tensors[name]
                used.add(name)
        own = to_weights(entries, len(layers), local)
        out |= {path: w[0] for path, w in own.items()} if alone else own
    for name in sorted(tensors.keys() - used):
        raise ConfigError(f"{where}: {name}: unknown, expected only tensors of the model")
    return out


def _changed(name: str, path: str, shape: tuple[int, ...], own: tuple[int, ...], there: Any, back: Any) -> Tensor:
    """A weight of shape `own` that the file keeps as another function of it."""
    return Tensor(name, (path,), shape, lambda w: (there(w).reshape(own),), lambda w: back(w).reshape(shape))


def _flat(name: str, path: str, d: int, *own: int) -> Tensor:
    """A vector, in the file (1, 1, d)."""
    return _changed(name, path, (1, 1, d), own or (d,), lambda w: w, lambda w: w)


def _mixes(part: str, path: str, d: int, names: str) -> list[Tensor]:
    """Shares of the token before, in the file of the token itself; `names` by their first letters."""
    long = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    other = lambda w: 1 - w  # noqa: E731
    return [_changed(f"{part}.time_mix_{n}", f"{path}/mix/{long[n]}", (d,), (d,), other, other) for n in names]


def _halves(d: int, f: int, time: str, channel: str, receptance: bool = False) -> list[Tensor]:
    """The two norms of a layer and its channel mix."""
    at = f"{channel}/mixer"
    mix = _mixes(FFN, at, d, "kr") if receptance else [_flat(f"{FFN}.x_k", f"{at}/mix/key", d)]
    maps = [("key", d, f), ("value", f, d), *([("receptance", d, d)] if receptance else [])]
    return [
        *layer_norm("blocks.{i}.ln1", f"{time}/norm", d),
        *layer_norm("blocks.{i}.ln2", f"{channel}/norm", d),
        *mix,
        *(linear(f"{FFN}.{n}.weight", f"{at}/{n}", (ins,), (outs,)) for n, ins, outs in maps),
    ]


def _heads(d: int, h: int, mixer: str, names: Sequence[str]) -> list[Tensor]:
    """Maps into heads and out of them, and the norm over each."""
    k = d // h
    return [
        *(linear(f"{ATT}.{n}.weight", f"{mixer}/{n}", (d,), (h, k)) for n in names),
        linear(f"{ATT}.output.weight", f"{mixer}/out", (h, k), (d,)),
        bias(f"{ATT}.ln_x.weight", f"{mixer}/norm/gain", h, k),
        bias(f"{ATT}.ln_x.bias", f"{mixer}/norm/bias", h, k),
    ]


def _four(d: int, mixer: str) -> list[Tensor]:
    return [
        *_mixes(ATT, mixer, d, "rkv"),
        _changed(f"{ATT}.time_decay", f"{mixer}/decay", (d,), (d,), lambda w: np.log(-w), lambda w: -np.exp(w)),
        plain(f"{ATT}.time_first", f"{mixer}/bonus", d),
        *(linear(f"{ATT}.{n}.weight", f"{mixer}/{n}", (d,), (d,)) for n in ("receptance", "key", "value")),
        linear(f"{ATT}.output.weight", f"{mixer}/out", (d,), (d,)),
    ]


def _five(m: Any, mixer: str) -> list[Tensor]:
    d, h = m.width, m.h
    own = (h, d // h)
    same, acts = (lambda w: w), (lambda w: np.exp(-np.exp(w)))
    return [
        *_mixes(ATT, mixer, d, "rkvg"),
        _changed(f"{ATT}.time_decay", f"{mixer}/decay", (*own, 1), own, lambda w: np.log(-np.log(w)), acts),
        _changed(f"{ATT}.time_faaaa", f"{mixer}/bonus", (*own, 1), own, same, same),
        *_heads(d, h, mixer, ("receptance", "key", "value", "gate")),
    ]


def _seven(m: RWKV7, mixer: str) -> list[Tensor]:
    d, h = m.width, m.h
    k = d // h
    names = ("receptance", "decay", "key", "value", "rate", "gate")
    out = [
        Tensor(
            f"{ATT}.x_rwkvag", tuple(f"{mixer}/mix/{n}" for n in names), (6, 1, d),
            lambda w: tuple(w.reshape(6, d)), lambda *ws: np.stack(ws)[:, None],
        ),
        _flat(f"{ATT}.k_k", f"{mixer}/removal", d, h, k),
        _flat(f"{ATT}.k_a", f"{mixer}/replacement", d, h, k),
        plain(f"{ATT}.r_k", f"{mixer}/bonus", h, k),
        *_heads(d, h, mixer, ("receptance", "key", "value")),
    ]  # fmt: skip
    w, a, v, g = m.through
    low = [("w", "decay", w), ("a", "rate", a), ("g", "gate", g), ("v", "share", v)]
    for n, path, rank in low if m.shares else low[:-1]:
        out.append(linear(f"{ATT}.{n}1", f"{mixer}/{path}/in", (d,), (rank,)))
        out.append(linear(f"{ATT}.{n}2", f"{mixer}/{path}/out", (rank,), (h, k)))
        if n != "g":
            out.append(_flat(f"{ATT}.{n}0", f"{mixer}/{path}/bias", d, h, k))
    return out
