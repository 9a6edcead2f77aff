"""A softmax language model as a gated recurrent one, with every weight it has and no other (Liger, Lan et al. 2025)."""

import dataclasses
from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.liger import Liger
from jaxlm.models.lm import LM
from jaxlm.module import rebuild


def linearise(model: LM, window: int = 64, tau: float = 16.0, mix: float = 0.5) -> LM:
    """The model with `Liger` in place of each `Attention`: its weights serve as they are.

    window, tau, mix   of Liger

        student = linearise(model)
        tuned = LoRA(student).merge(params, adapters)

    Raises ConfigError for a model without Attention, or one with a window, or sets, of its own.
    """
    found = 0

    def change(part: Any) -> Any:
        nonlocal found
        if type(part) is not Attention:
            return part
        if part.window is not None:
            raise ConfigError(f"Attention.window = {part.window}: expected None, attention to all of the past")
        found += 1
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return Liger(**{**fields, "window": window}, tau=tau, mix=mix)

    student = rebuild(model, change)
    if not found:
        raise ConfigError(f"model = {type(model).__name__}: expected a model with Attention")
    return student
