"""One update of the weights, and one pass of evaluation, as pure functions to be jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.mixers.base import batch_axes
from jaxlm.models.lm import LM
from jaxlm.module import cast, init
from jaxlm.relay import spread
from jaxlm.sharding import constrainer, resolve, shardings
from jaxlm.train.experiment import Experiment
from jaxlm.train.guard import Guard, chosen, first_guard, judged
from jaxlm.typing import Array, Params, Tree

Batch = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a run carries from update to update.

    step     updates so far, made or skipped
    memory   the model's own state, where the data's rows go on from batch to batch; None otherwise
    guard    counts of skipped updates, and the means that spikes are told by
    """

    step: Any
    params: Any
    optimizer: Any
    memory: Any
    guard: Guard


def first_state(exp: Experiment, mesh: Mesh) -> tuple[Callable[[], TrainState], TrainState]:
    """(a function that makes the first state already placed, its shapes with their shardings)."""
    model = exp.model

    def first() -> TrainState:
        params = init(model, jax.random.key(exp.seed))
        memory = model.start(params, exp.batch) if exp.data.layout == "lanes" else None
        return TrainState(jnp.zeros((), jnp.int32), params, exp.optimizer.init(params), memory, first_guard())

    shapes = jax.eval_shape(first)
    everywhere = NamedSharding(mesh, PartitionSpec())
    weights = shardings(model, mesh, exp.rules)
    optimizer = like_weights(shapes.optimizer, shapes.params, weights, everywhere)
    memory = None if shapes.memory is None else shardings(model.state(exp.batch), mesh, exp.rules)
    placed = TrainState(everywhere, weights, optimizer, memory, jax.tree.map(lambda _: everywhere, shapes.guard))
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
    return jax.jit(first, out_shardings=placed), target


def like_weights(optimizer: Tree, params: Params, weights: Tree, otherwise: NamedSharding) -> Tree:
    """Shardings of an optimizer's state: a moment lies as its weight, known by the end of its path and its shape."""
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    places = {path: (x.shape, s) for (path, x), s in zip(named, jax.tree.leaves(weights), strict=True)}

    def leaf(path: tuple, x: Array) -> NamedSharding:
        for i in range(len(path)):
            shape, place = places.get(path[i:], (None, otherwise))
            if shape == x.shape:
                return place
        return otherwise

    return jax.tree_util.tree_map_with_path(leaf, optimizer)


def batch_sharding(exp: Experiment, mesh: Mesh, shape: tuple[int, int]) -> NamedSharding:
    """Rows over the mesh; raises where the mesh cannot split them."""
    return NamedSharding(mesh, resolve(("batch", "time"), shape, mesh, exp.rules))


def abstract_batch(exp: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch with their shardings; raises where the mesh cannot split a part of it."""
    rows, length = exp.batch, exp.data.length
    where = batch_sharding(exp, mesh, (rows // exp.accumulate, length))
    kinds = {"tokens": jnp.int32, "starts": jnp.bool_, "targets": jnp.int32, "weights": jnp.float32}
    return {name: jax.ShapeDtypeStruct((rows, length), kind, sharding=where) for name, kind in kinds.items()}


def summed_loss(model: LM, dtype: str, constrain: Callable[..., Array], carries: bool) -> Callable[..., Any]:
    """f(params, batch, memory, key) -> (sum of nats, (sum of weights, memory or None)); the model runs in `dtype`."""

    def f(params: Params, batch: Batch, memory: Tree, key: Array | None):
        low = cast(model, params, dtype)
        (nats, weight), memory = model.loss(
            low, batch["tokens"], batch["targets"], batch["weights"], memory, batch["starts"], key, constrain
        )
        return nats, (weight, memory if carries else None)

    return f


def split_rows(tree: Tree, axes: Tree, parts: int) -> Tree:
    """Cut the batch axis of each leaf in `parts` and bring the parts to the front."""

    def leaf(x: Array, axis: int) -> Array:
        x = x.reshape(*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    return jax.tree.map(leaf, tree, axes)


def join_rows(tree: Tree, axes: Tree) -> Tree:
    """Undo split_rows."""

    def leaf(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(leaf, tree, axes)


def train_step(exp: Experiment, mesh: Mesh) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """update(state, batch) -> (state, what happened); a bad batch changes nothing but counts (guard.py).

    loss       nats a token
    weight     tokens that counted
    norm       of the gradient
    skipped    updates so far; row: of them, those in a row up to this one
    """
    model, parts = exp.model, exp.accumulate
    carries = exp.data.layout == "lanes"
    objective = summed_loss(spread(model, mesh, exp.rules), exp.dtype, constrainer(mesh, exp.rules), carries)
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    memory_axes = batch_axes(model.state(exp.batch)) if carries else None

    def in_parts(params: Params, batch: Batch, memory: Tree, key: Array):
        """Sums over the parts: without dropout the update does not depend on their number."""
        pieces = split_rows(batch, jax.tree.map(lambda _: 0, batch), parts)
        memories = None if memory is None else split_rows(memory, memory_axes, parts)

        def one(total, piece):
            batch, memory, i = piece
            (nats, (weight, memory)), grads = value_and_grad(params, batch, memory, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, (nats, weight, grads)), memory

        zero = jnp.zeros((), jnp.float32)
        total = (zero, zero, jax.tree.map(jnp.zeros_like, params))
        (nats, weight, grads), memories = jax.lax.scan(one, total, (pieces, memories, jnp.arange(parts)))
        return (nats, (weight, None if memory is None else join_rows(memories, memory_axes))), grads

    def update(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(exp.seed), state.step)
        whole = value_and_grad if parts == 1 else in_parts
        (nats, (weight, memory)), grads = whole(state.params, batch, state.memory, key)
        scale = 1 / jnp.maximum(weight, 1)
        loss, grads = nats * scale, jax.tree.map(lambda g: g * scale, grads)
        # optax computes bias corrections in mixed dtypes: only its own arithmetic runs under standard promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = exp.optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
        good, guard = judged(state.guard, state.step, loss, norm, exp.spike)
        before = state.params, state.optimizer, state.memory
        params, optimizer, memory = chosen(good, (params, optimizer, memory), before)
        metrics = {"loss": loss, "weight": weight, "norm": norm, "skipped": guard.skipped, "row": guard.row}
        return TrainState(state.step + 1, params, optimizer, memory, guard), metrics

    # Left to XLA, a state could come back placed otherwise: the next step would compile again, and a run that goes on
    # from a checkpoint would be another program than the quiet one.
    places = jax.tree.map(lambda x: x.sharding, first_state(exp, mesh)[1])
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def evaluation_step(exp: Experiment, mesh: Mesh) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """evaluate(params, batch) -> (sum of nats, sum of weights)."""
    f = summed_loss(spread(exp.model, mesh, exp.rules), exp.dtype, constrainer(mesh, exp.rules), carries=False)

    def evaluate(params: Params, batch: Batch):
        nats, (weight, _) = f(params, batch, None, None)
        return nats, weight

    return jax.jit(evaluate)
