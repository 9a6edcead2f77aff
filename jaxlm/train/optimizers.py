"""optax optimizers that need to know which axes of a weight are contracted: read from its Spec, never guessed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxlm.module import Module, Spec, decay_mask, map_specs
from jaxlm.typing import Array, Tree


def matrix_view(module: Module) -> Tree:
    """Per weight: its contracted and its other axes, as Muon's view of it as a matrix; None where Adam serves better.

    Embeddings, readouts, gains, gates and whatever contracts nothing go to Adam; `layers` are matrices side by side.
    """

    def leaf(spec: Spec) -> Any:
        rank = len(spec.shape) - ("layers" in spec.axes)
        if not spec.ins or spec.keep or rank < 2 or "vocab" in spec.axes:
            return None
        ins = tuple(spec.axes.index(a) for a in spec.ins)
        outs = tuple(i for i, a in enumerate(spec.axes) if i not in ins and a != "layers")
        return contrib.MuonDimensionNumbers(reduction_axis=ins, output_axis=outs)

    return map_specs(leaf, module.params())


def muon(
    module: Module, rate: optax.ScalarOrSchedule, adam_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon on matrices, AdamW on the rest (Jordan et al. 2024).

    rate         of matrices: their updates have singular values near 1, so about 0.02
    adam_rate    of the rest
    """
    return contrib.muon(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=decay_mask(module),
        adam_learning_rate=adam_rate,
        adam_b2=0.99,
        muon_weight_dimension_numbers=matrix_view(module),
    )


def clipped(optimizer: optax.GradientTransformation, norm: float = 1.0) -> optax.GradientTransformation:
    """The gradient scaled down to a global norm first."""
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)


def trapezoid(rate: float, steps: int, warmup: int = 40, cooldown: float = 0.5) -> optax.Schedule:
    """Linear warm-up, constant, linear decay to zero over the last share `cooldown` of the steps."""
    warmup = max(1, min(warmup, steps // 10))
    hold = max(warmup, steps - round(cooldown * steps))
    pieces = [
        optax.linear_schedule(0.0, rate, warmup),
        optax.constant_schedule(rate),
        optax.linear_schedule(rate, 0.0, max(1, steps - hold)),
    ]
    return optax.join_schedules(pieces, [warmup, hold])


def cosine(rate: float, steps: int, warmup: int = 2000, last: float = 0.1) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to the share `last` of the rate."""
    warmup = max(1, min(warmup, steps // 10))
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), last * rate)


def adamw(module: Module, rate: optax.ScalarOrSchedule, weight_decay: float = 0.1) -> optax.GradientTransformation:
    """AdamW as large language models use it: b2 0.95, decay on matrices only, the gradient clipped at norm 1."""
    return clipped(optax.adamw(rate, b2=0.95, weight_decay=weight_decay, mask=decay_mask(module)))


def row_decay(strength: float) -> optax.GradientTransformation:
    """Decay of the rows of matrices, to be scaled by the rate: to zero, or, if strength < 0, towards unit length.

    Other weights keep their update. Liu et al. 2025, "Superposition yields robust neural scaling".
    """

    def leaf(update: Array, w: Array) -> Array:
        if w.ndim != 2:
            return update
        aim = 0 if strength >= 0 else w / jnp.linalg.norm(w, axis=1, keepdims=True)
        return update + abs(strength) * (w - aim)

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        return jax.tree.map(leaf, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
