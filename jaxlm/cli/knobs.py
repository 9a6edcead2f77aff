"""Flags from a function's signature, by tyro: a config's knobs and the command's own options side by side."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import tyro


def parse(
    prog: str,
    description: str,
    knobs: Callable[..., Any],
    options: Callable[..., Any],
    args: Sequence[str],
    defaults: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values for `knobs`, values for `options`) from the command line; tyro explains wrong ones and exits with 2.

    defaults    take the place of the defaults that `knobs` itself gives
    """
    merged: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for function in (options, knobs):
        own = get_type_hints(function, include_extras=True)
        for name, p in inspect.signature(function).parameters.items():
            default = (defaults or {}).get(name, p.default) if function is knobs else p.default
            merged[name] = p.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=default)
            hints[name] = own[name]

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(list(merged.values()))  # type: ignore[attr-defined]
    collect.__annotations__ = hints
    parts = [(inspect.getdoc(f) or "").partition("Args:\n") for f in (options, knobs)]
    collect.__doc__ = "\n\n".join(about for about, _, _ in parts) + "\n\nArgs:\n" + "\n".join(a for _, _, a in parts)
    values = tyro.cli(collect, prog=prog, description=description, args=list(args))
    names = set(inspect.signature(knobs).parameters)
    return {k: v for k, v in values.items() if k in names}, {k: v for k, v in values.items() if k not in names}
