"""What a context does to a block, as a change of rank one in the weights of its MLP (Dherin et al. 2025)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.blocks import Block
from jaxlm.errors import ConfigError
from jaxlm.taps import capture
from jaxlm.typing import Array, Params, State


class Sight(NamedTuple):
    """The last token of each row inside a block.   (b, d) each

    stream   of residuals, behind the mixer
    read     what the MLP reads: the norm of it
    out      of the block
    """

    stream: Array
    read: Array
    out: Array


def look(block: Block, params: Params, x: Array, state: State = None) -> Sight:
    """What the last token of each row is inside a block.   x (b, t, d)"""
    (y, _), seen = capture(lambda x: block.apply(params, x, state), ["resid", "mlp.in"])(x)
    return Sight(seen["resid"][0][:, -1], seen["mlp.in"][0][:, -1], y[:, -1])


def behind(block: Block, params: Params, context: Array, query: Array) -> Sight:
    """A query behind none, one, two, ... tokens of a context: the state goes on with the tokens, the query looks at it.

    context, query   (n, d), (d)
    ->               (n + 1, d) each
    """
    widen = lambda a: a.astype(query.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    start = jax.tree.map(widen, block.start(params, 1, len(context) + 1))

    def step(state: State, token: Array) -> tuple[State, Sight]:
        sight = look(block, params, query[None, None], state)
        return block.apply(params, token[None, None], state)[1], jax.tree.map(lambda a: a[0], sight)

    return jax.lax.scan(step, start, jnp.concatenate([context, query[None]]))[1]


def rank_one(w: Array, alone: Array, together: Array) -> Array:
    """The change of w with which it says of `alone` what it says of `together`: a (c - a)ᵀ w / |a|².

    w                a map         (d, f)
    alone, together  a and c       (d)
    ->               rank 1        (d, f)
    Dherin et al. 2025, theorem 2.2.
    """
    return alone[:, None] * ((together - alone) @ w)[None] / jnp.sum(alone**2)


def absorb(params: Params, alone: Sight, together: Sight) -> Params:
    """The weights with which a block says of a token alone what it says of it after a context.

    params            of a block x + Mixer, x + MLP, its MLP with biases
    alone, together   the token without and with the context, single rows     (d)
    The maps that the MLP reads with change by rank one, the bias that it gives by the change of the stream.
    Raises ConfigError where there is no such bias. Dherin et al. 2025, theorem B.2.
    """
    mlp = params.get("mlp", {})
    if "down_bias" not in mlp:
        raise ConfigError(f"params['mlp'] = {sorted(mlp)}: expected an MLP with biases")
    change = {n: mlp[n] + rank_one(mlp[n], alone.read, together.read) for n in ("up", "gate") if n in mlp}
    change["down_bias"] = mlp["down_bias"] + together.stream - alone.stream
    return {**params, "mlp": {**mlp, **change}}


def descend(w: Array, alone: Array, reads: Array) -> Array:
    """The weights after each token of a context, by gradient descent on one linear loss a token.

    W_{i+1} = W_i - h ∇_W tr(Δ_iᵀ W),   Δ_i = a (c_i - c_{i+1})ᵀ W_0,   h = 1 / |a|²,   c_0 = a

    w        W_0                                       (d, f)
    alone    a, what the MLP reads without context     (d)
    reads    c_1, c_2, ...                             (n, d)
    ->       W_1, W_2, ...                             (n, d, f)
    Dherin et al. 2025, proposition 3.1.
    """
    before = jnp.concatenate([alone[None], reads[:-1]])

    def step(now: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        delta = alone[:, None] * ((pair[0] - pair[1]) @ w)[None]
        now = now - jax.grad(lambda m: jnp.sum(delta * m))(now) / jnp.sum(alone**2)
        return now, now

    return jax.lax.scan(step, w, (before, reads))[1]


def float64(tree: Any) -> Any:
    """Weights in float64, where that is enabled."""
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)
