"""How gradients write associative memories: the lemmas, and an induction head in three gradient steps."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxlm.memory.bigram_task import Episodes
from jaxlm.memory.induction import InductionTransformer, mean_where
from jaxlm.ops.losses import nats
from jaxlm.typing import Array, Params

STEPS = ("out2", "key2", "key1")


def memory_gradient(unembed: Array, x: Array, guess: Array, targets: Array) -> Array:
    """∇_W of the mean cross-entropy of logits W_U W x, as a sum over outputs (Bietti et al. 2023, lemma 1).

    Σ_k p(y=k) w_U(k) (μ̂_k - μ_k)ᵀ,   μ_k = E[x | y = k],   μ̂_k = E[p̂(k|x) x] / p(y=k)

    unembed    (n, d)     W_U
    x          (b, d)
    guess      (b, n)     p̂(. | x)
    targets    (b,)       y
    ->         (d, d)
    """
    true = jax.nn.one_hot(targets, unembed.shape[0], dtype=x.dtype)
    return unembed.T @ ((guess - true).T @ x) / x.shape[0]


def first_step(embed: Array, unembed: Array, joint: Array, rate: float) -> Array:
    """W after one step from 0 on the population loss of y given z: an outer-product memory (section 4.2).

    η Σ_z p(z) Σ_k (p(k|z) - 1/n) w_U(k) w_E(z)ᵀ

    embed      (m, d)     w_E
    unembed    (n, d)     W_U
    joint      (m, n)     p(z, k)
    rate       η
    ->         (d, d)
    """
    n = unembed.shape[0]
    return rate * unembed.T @ (joint - jnp.sum(joint, axis=1, keepdims=True) / n).T @ embed


def last_loss(model: InductionTransformer, params: Params, episodes: Episodes) -> Array:
    """Cross-entropy in nats of the output at the last input, which is set to the first trigger.

    Sequences where it had not occurred before do not count, nor those where it occurs right before: its output would
    be forced there.
    """
    q, o = episodes.triggers[:, 0], episodes.outputs[:, 0]
    inputs = jnp.concatenate([episodes.inputs[:, :-1], q[:, None]], axis=1)
    known = jnp.any(inputs[:, :-1] == q[:, None], axis=1) & (inputs[:, -2] != q)
    return mean_where(nats(model.apply(params, inputs)[:, -1], o), known)


def three_steps(
    params: Params,
    loss: Callable[[Params, Array], Array],
    key: Array,
    rates: tuple[float, float, float],
    batches: int,
) -> Iterator[tuple[str, Params]]:
    """(name, weights) after one gradient step on each of W_O^2, W_K^2, W_K^1, in this order, all from 0 (theorem 3).

    loss       (params, key) -> (), of a batch drawn by key
    rates      step sizes
    batches    over which the gradient is averaged, in place of the population
    """

    def gradient(name: str, params: Params, key: Array) -> Array:
        def add(total: Array, key: Array) -> tuple[Array, None]:
            return total + jax.grad(lambda w: loss({**params, name: w}, key))(params[name]), None

        total, _ = jax.lax.scan(add, jnp.zeros_like(params[name]), jax.random.split(key, batches))
        return total / batches

    step = jax.jit(gradient, static_argnums=0)
    params = {**params, **{name: jnp.zeros_like(params[name]) for name in STEPS}}
    for i, (name, rate) in enumerate(zip(STEPS, rates, strict=True)):
        params = {**params, name: params[name] - rate * step(name, params, jax.random.fold_in(key, i))}
        yield name, params
