"""Modules as JSON values and back: nested frozen dataclasses, spelt out, by a closed table of classes.

Decoding looks class names up in the library's table and in what the caller adds, and runs no other code.
"""

import dataclasses
import difflib
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm import blocks, initializers, layers, mixers, models
from jaxlm.errors import ConfigError

__all__ = ["classes_in", "decode", "encode"]


def encode(module: Any) -> Any:
    """A module as a JSON value: {"class": name, field: value, ...}, dtypes as {"dtype": name}, tuples as lists.

    Raises ConfigError with the path of a field that holds anything else (an array, a function).
    """
    return _encode(module, ())


def decode(value: Any, classes: Iterable[type] = (), where: str = "model") -> Any:
    """The module that `encode` turned into this JSON value, equal to the original.

    classes  the user's own, besides the library's
    where    how an error calls the whole
    Raises ConfigError `where: path/to/field ...` for an unknown class, an unknown or missing key, a wrong type, or a
    value that the class refuses.
    """
    table = dict(_library())
    for cls in classes:
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise ConfigError(f"classes: {cls!r}: expected a Module, or another frozen dataclass")
        if table.setdefault(cls.__name__, cls) is not cls:
            raise ConfigError(f"classes: {cls.__name__}: expected another name, as the library has a class of this one")
    return _decode(value, table, (), where)


def classes_in(module: Any) -> set[type]:
    """The dataclasses that a module is made of."""
    parts = module if isinstance(module, tuple) else ()
    own: set[type] = set()
    if dataclasses.is_dataclass(module) and not isinstance(module, type):
        own, parts = {type(module)}, tuple(getattr(module, f) for f in _fields(type(module)))
    return own.union(*map(classes_in, parts))


def one_line(error: Exception) -> str:
    """An error's first line, or its name where it says nothing."""
    return f"{error}".splitlines()[0] if f"{error}" else type(error).__name__


def _library() -> dict[str, type]:
    """Every dataclass that the library itself defines for models, by name."""
    homes = [blocks, initializers]
    for package in (layers, mixers, models):
        names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
        homes += map(importlib.import_module, names)
    table: dict[str, type] = {}
    for home in homes:
        for cls in [c for c in vars(home).values() if isinstance(c, type) and c.__module__ == home.__name__]:
            if dataclasses.is_dataclass(cls) and table.setdefault(cls.__name__, cls) is not cls:
                raise ConfigError(f"{cls.__module__}.{cls.__name__}: expected one class of this name in the library")
    return table


def _fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def _encode(value: Any, path: tuple[str, ...]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple):
        return [_encode(v, (*path, str(i))) for i, v in enumerate(value)]
    if isinstance(value, (np.dtype, type)):
        return {"dtype": _dtype(value, path)}
    if dataclasses.is_dataclass(value):
        cls = type(value)
        return {"class": cls.__name__} | {f: _encode(getattr(value, f), (*path, f)) for f in _fields(cls)}
    kind = type(value).__name__
    place = "/".join(path) or "model"
    raise ConfigError(f"{place} holds a {kind}: expected a module, number, text, bool, None, dtype or tuple")


def _dtype(value: Any, path: tuple[str, ...]) -> str:
    try:
        dtype = jnp.dtype(value)
        if dtype.hasobject:  # what numpy takes any class for
            raise TypeError
        return dtype.name
    except TypeError:
        raise ConfigError(
            f"{'/'.join(path)} holds the class {value.__name__}: expected an instance, or a dtype"
        ) from None


def _decode(value: Any, table: dict[str, type], path: tuple[str, ...], where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return tuple(_decode(v, table, (*path, str(i)), where) for i, v in enumerate(value))
    if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if set(value) == {"dtype"}:
        try:
            return jnp.dtype(value["dtype"])
        except TypeError:
            raise _wrong(where, path, "dtype", value["dtype"], "the name of a dtype") from None
    return _build(value, table, path, where)


def _build(value: dict[str, Any], table: dict[str, type], path: tuple[str, ...], where: str) -> Any:
    """An instance of the class that `value` names."""
    label = value.get("class")
    if not isinstance(label, str) or label not in table:
        near = difflib.get_close_matches(f"{label}", table, 3, 0.5)
        meant = f" ({', '.join(near)}?)" if near else ""
        known = f"a class of the library{meant}, or one given in `classes`"
        raise _wrong(where, path, "class", label, known)
    cls = table[label]
    names = _fields(cls)
    for key in value:
        if key != "class" and key not in names:
            place, known = "/".join((*path, key)), ", ".join(names)
            raise ConfigError(f"{where}: {place}: unknown key, expected those of {label}: {known}")
    for key in names:
        if key not in value:
            raise ConfigError(f"{where}: {'/'.join((*path, key))}: missing, expected every field of {label}")
    parts = {key: _decode(value[key], table, (*path, key), where) for key in names}
    hints = _hints(cls)
    for key, part in parts.items():
        if not _fits(part, hints.get(key, Any)):
            raise _wrong(where, path, key, value[key], f"{getattr(hints[key], '__name__', hints[key])}")
    try:
        return cls(**parts)
    except Exception as error:  # whatever a class's own checks raise, the file is what is wrong
        raise ConfigError(f"{where}: {'/'.join(path) or label}: {one_line(error)}") from error


def _wrong(where: str, path: tuple[str, ...], key: str, value: Any, expected: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ConfigError(f"{where}: {'/'.join((*path, key))} = {shown}: expected {expected}")


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # names that only a type checker sees: the class's own checks remain
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Is the value of the annotated type? Annotations that cannot be looked into fit everything."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = args[:1] * len(value) if args[1:] == (...,) else args
        return len(wanted) == len(value) and all(map(_fits, value, wanted))
    if origin is typing.Literal:
        return value in args
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if not isinstance(hint, type) or origin is not None:
        return True
    try:
        return isinstance(value, hint)
    except TypeError:
        return True
