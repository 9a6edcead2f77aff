"""Tensors of a file and the weights that they hold: their names, their shapes, and the way there and back.

`Linear` of those files is (out, in) and y = x W^T; here a map is (in, out), split into heads. All of it is transposing
and reshaping, so that going there and back is exact.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.errors import ConfigError

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor, or one a layer where the name holds {i}.

    name    in the file
    paths   of the weights that it holds, 'body/block0/norm/gain'
    shape   in the file
    read    (tensor) -> weights, one a path;  of one layer
    write   (weights) -> tensor
    """

    name: str
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[np.ndarray], Arrays]
    write: Callable[..., np.ndarray]

    def names(self, layers: int) -> list[str]:
        return [self.name.format(i=i) for i in range(layers)] if self.per_layer else [self.name]

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.name


def plain(name: str, path: str, *shape: int) -> Tensor:
    """A tensor that is the weight."""
    return Tensor(name, (path,), shape, lambda w: (w,), lambda w: w)


def linear(name: str, path: str, ins: tuple[int, ...], outs: tuple[int, ...], turned: bool = True) -> Tensor:
    """A map (*ins, *outs), in the file (out, in); not `turned`: (in, out), as GPT-2 has it."""
    n, m = math.prod(ins), math.prod(outs)
    if turned:
        return Tensor(name, (path,), (m, n), lambda w: (w.T.reshape(*ins, *outs),), lambda w: w.reshape(n, m).T)
    return Tensor(name, (path,), (n, m), lambda w: (w.reshape(*ins, *outs),), lambda w: w.reshape(n, m))


def bias(name: str, path: str, *outs: int) -> Tensor:
    """A bias (*outs), in the file flat."""
    return Tensor(name, (path,), (math.prod(outs),), lambda w: (w.reshape(outs),), lambda w: w.reshape(-1))


def taps(name: str, path: str, n: int, m: int) -> list[Tensor]:
    """name.weight and name.bias of a convolution of each channel alone: path (n, m), in the file (m, 1, n)."""
    own = lambda w: (w[:, 0].T,)  # noqa: E731
    return [
        Tensor(f"{name}.weight", (path,), (m, 1, n), own, lambda w: w.T[:, None]),
        bias(f"{name}.bias", f"{path}_bias", m),
    ]


def affine(name: str, path: str, ins: int, outs: int, turned: bool = True, biased: bool = True) -> list[Tensor]:
    """name.weight and name.bias of a map path (ins, outs) and path_bias (outs)."""
    one = linear(f"{name}.weight", path, (ins,), (outs,), turned)
    return [one, *([bias(f"{name}.bias", f"{path}_bias", outs)] if biased else [])]


def layer_norm(name: str, path: str, d: int) -> list[Tensor]:
    return [plain(f"{name}.weight", f"{path}/gain", d), plain(f"{name}.bias", f"{path}/bias", d)]


def to_weights(entries: Iterable[Tensor], layers: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{path: weight} of {name: tensor}; those of layers are stacked. All names are there, of their shapes."""
    out: dict[str, np.ndarray] = {}
    for e in entries:
        names = e.names(layers)
        dtypes = {tensors[n].dtype.name for n in names}
        if len(dtypes) > 1:
            raise ConfigError(f"{e.name}: of {' and '.join(sorted(dtypes))} in different layers, expected one dtype")
        parts = zip(*(e.read(tensors[n]) for n in names), strict=True)  # each path's, layer by layer
        for path, values in zip(e.paths, parts, strict=True):
            out[path] = np.stack(values) if e.per_layer else values[0]
    return out


def to_tensors(entries: Iterable[Tensor], layers: int, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{name: tensor} of {path: weight}."""
    out: dict[str, np.ndarray] = {}
    for e in entries:
        values = [np.asarray(weights[p]) for p in e.paths]
        for i, name in enumerate(e.names(layers)):
            own = [v[i] for v in values] if e.per_layer else values
            out[name] = np.ascontiguousarray(e.write(*own))
    return out
