"""One update of the weights, and one pass of evaluation, as pure functions to be jitted."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm import taps
from jaxlm.errors import ConfigError
from jaxlm.mixers.base import batch_axes
from jaxlm.models.lm import LM
from jaxlm.module import cast, init
from jaxlm.relay import spread
from jaxlm.sharding import constrainer, identity, resolve, shardings
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


class Sums(NamedTuple):
    """What a batch, or a part of one, gives.

    nats, weight   sums over its tokens
    memory         after it; None where it is not carried
    aux            auxiliary losses by name, each the mean over the places in the model that have it
    """

    nats: Any
    weight: Any
    memory: Any
    aux: dict[str, Any]


def summed_loss(
    model: LM, dtype: str, constrain: Callable[..., Array], carries: bool, aux: Sequence[tuple[str, float]] = ()
) -> Callable[..., tuple[Array, Sums]]:
    """f(params, batch, memory, key, share=1) -> (what is minimised, Sums); the model runs in `dtype`.

    aux     named activations () of the model, each with its weight in the loss of a token
    share   of a batch's sum of weights that this part stands for: what is minimised is nats + share Σ weight aux
    """
    names = [name for name, _ in aux]

    def f(params: Params, batch: Batch, memory: Tree, key: Array | None, share: Array | float = 1.0):
        def loss(params: Params, batch: Batch, memory: Tree):
            given = batch["tokens"], batch["targets"], batch["weights"]
            return model.loss(params, *given, memory, batch["starts"], key, constrain)

        low, seen = cast(model, params, dtype), {}
        if names:
            ((nats, weight), memory), seen = taps.capture(loss, names)(low, batch, memory)
        else:
            (nats, weight), memory = loss(low, batch, memory)
        means = {name: jnp.mean(jnp.concatenate([x.reshape(-1) for x in sites])) for name, sites in seen.items()}
        objective = sum((share * factor * means[name] for name, factor in aux), nats)
        return objective, Sums(nats, weight, memory if carries else None, means)

    return f


def check_aux(exp: Experiment, target: TrainState, batch: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raise for an auxiliary loss that the model does not have."""
    if not exp.aux:
        return
    loss = summed_loss(exp.model, exp.dtype, identity, carries=False)
    found = taps.names(lambda *given: loss(*given, None)[0], target.params, batch, target.memory)
    known = [name for name, sites in found.items() if name.startswith("aux.") and not any(s.inside for s in sites)]
    for name, _ in exp.aux:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none: this model has no auxiliary loss"
            raise ConfigError(f"Experiment.aux = {name!r}: unknown; expected {expected}")


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


def in_parts(
    value_and_grad: Callable[..., Any], parts: int, memory_axes: Tree, aux: Sequence[str]
) -> Callable[..., Any]:
    """The same function, one part of the batch after the other: without dropout the update does not depend on `parts`.

    Auxiliary losses are means over the parts: of one that is no mean over tokens, each part has its own.
    """

    def whole(params: Params, batch: Batch, memory: Tree, key: Array, share: Array | float):
        pieces = split_rows(batch, jax.tree.map(lambda _: 0, batch), parts)
        memories = None if memory is None else split_rows(memory, memory_axes, parts)

        def one(total, piece):
            batch, memory, i = piece
            (_, own), grads = value_and_grad(params, batch, memory, jax.random.fold_in(key, i), share / parts)
            return jax.tree.map(jnp.add, total, (own.nats, own.weight, own.aux, grads)), own.memory

        zero = jnp.zeros((), jnp.float32)
        total = (zero, zero, dict.fromkeys(aux, zero), jax.tree.map(jnp.zeros_like, params))
        (nats, weight, means, grads), memories = jax.lax.scan(one, total, (pieces, memories, jnp.arange(parts)))
        memory = None if memory is None else join_rows(memories, memory_axes)
        return (nats, Sums(nats, weight, memory, {name: x / parts for name, x in means.items()})), grads

    return whole


def train_step(exp: Experiment, mesh: Mesh) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """update(state, batch) -> (state, what happened); a bad batch changes nothing but counts (guard.py).

    loss       nats a token
    weight     tokens that counted
    norm       of the gradient
    skipped    updates so far; row: of them, those in a row up to this one
    aux.*      those of the experiment, without their weights
    """
    model, parts = exp.model, exp.accumulate
    carries = exp.data.layout == "lanes"
    target = first_state(exp, mesh)[1]
    check_aux(exp, target, abstract_batch(exp, mesh))
    constrain = constrainer(mesh, exp.rules)
    objective = summed_loss(spread(model, mesh, exp.rules), exp.dtype, constrain, carries, exp.aux)
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if parts > 1:
        memory_axes = batch_axes(model.state(exp.batch)) if carries else None
        value_and_grad = in_parts(value_and_grad, parts, memory_axes, [name for name, _ in exp.aux])

    def update(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(exp.seed), state.step)
        share = jnp.sum(batch["weights"]) if exp.aux else 1.0
        (_, sums), grads = value_and_grad(state.params, batch, state.memory, key, share)
        scale = 1 / jnp.maximum(sums.weight, 1)
        loss, grads = sums.nats * scale, jax.tree.map(lambda g: g * scale, grads)
        # optax computes bias corrections in mixed dtypes: only its own arithmetic runs under standard promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = exp.optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
        good, guard = judged(state.guard, state.step, loss, norm, exp.spike)
        before = state.params, state.optimizer, state.memory
        params, optimizer, memory = chosen(good, (params, optimizer, sums.memory), before)
        metrics = {"loss": loss, "weight": sums.weight, "norm": norm, "skipped": guard.skipped, "row": guard.row}
        return TrainState(state.step + 1, params, optimizer, memory, guard), metrics | sums.aux

    # Left to XLA, a state could come back placed otherwise: the next step would compile again, and a run that goes on
    # from a checkpoint would be another program than the quiet one.
    places = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def evaluation_step(exp: Experiment, mesh: Mesh) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """evaluate(params, batch) -> (sum of nats, sum of weights)."""
    f = summed_loss(spread(exp.model, mesh, exp.rules), exp.dtype, constrainer(mesh, exp.rules), carries=False)

    def evaluate(params: Params, batch: Batch):
        _, sums = f(params, batch, None, None)
        return sums.nats, sums.weight

    return jax.jit(evaluate)
