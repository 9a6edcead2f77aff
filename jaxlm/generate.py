"""Prefill, sampling and scoring.

    tokens, session = generate(model, params, prompt, 100, key, Sampling(temperature=0.8))
    more, session = generate(model, params, None, 50, key, Sampling(temperature=0.8), state=session)    goes on
    four = fork(model, session, 4)                                                                     and branches

A Session has read everything that was prompted and generated, and holds the logits of the next token: n tokens and then
m from the returned session are the n + m tokens of one call with the same key. A row depends on its own key and prompt
alone: not on its neighbours, not on its padding.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.models.lm import LM
from jaxlm.ops.losses import WIDE_NUMBERS, nats
from jaxlm.ops.sample import Sampling, sample
from jaxlm.session import Session, axes_of, batch_of, fork, left_pad, mark, room, row_keys, rows, where_rows
from jaxlm.typing import Array, Params, State

__all__ = ["Sampling", "Session", "fork", "generate", "left_pad", "prefill", "room", "row_keys", "rows", "score"]


def generate(
    model: LM,
    params: Params,
    prompt: Any,
    tokens: int,
    key: Array | None = None,
    sampling: Sampling = Sampling(),
    state: Session | State = None,
    starts: Any = None,
    stop: int | Sequence[int] | None = None,
) -> tuple[Array, Session]:
    """Read a prompt, then write tokens.

    prompt   (b, t) int; None goes on from a Session
    tokens   how many to write, n
    key      one key, from which `row_keys` makes one per row, or keys (b,); not needed at temperature 0
    state    None: a fresh start with room for exactly prompt and tokens; a Session; or a state of the model (how much
             of its room is used is then not known: it counts as unused)
    starts   (b, t) bool, see `left_pad`; a start forgets what came before it, given state included
    stop     token or tokens after which a row ends; the row is then filled with the (first) stop token
    ->       tokens (b, n) int32;  a Session, in which a stopped row stands right after its stop token
    Raises ConfigError before anything runs if prompt and tokens exceed the room, and afterwards if logits became NaN.
    """
    if not isinstance(tokens, (int, np.integer)) or isinstance(tokens, bool) or tokens < 0:
        raise ConfigError(f"tokens = {tokens!r}: expected a whole number, 0 or more")
    stops = _stops(model, stop)
    if prompt is None:
        if not isinstance(state, Session):
            raise ConfigError(
                f"prompt = None: expected a prompt (b, t), as state is {type(state).__name__}, no Session"
            )
        session = state
        _check_room(model, session, 0, tokens)
    else:
        session = prefill(model, params, prompt, state, starts, int(tokens), sampling.repetition != 1)
    if sampling.repetition != 1 and session.seen is None:
        raise ConfigError(
            f"Sampling.repetition = {sampling.repetition}: expected a Session that kept the seen tokens: "
            "one of a call with a penalty, or of prefill(..., seen=True)"
        )
    keys = None if sampling.greedy else row_keys(key, len(session.logits))
    written, session = _write(model, params, session, keys, sampling, int(tokens), stops)
    spoiled = np.flatnonzero(np.asarray(jnp.any(jnp.isnan(session.logits), axis=-1)))
    if spoiled.size:
        raise ConfigError(
            f"logits of row {spoiled[0]} are NaN: expected finite weights and a state with room for all its tokens"
        )
    return written, session


def prefill(
    model: LM,
    params: Params,
    prompt: Any,
    state: Session | State = None,
    starts: Any = None,
    tokens: int = 0,
    seen: bool = False,
) -> Session:
    """Read a prompt.

    prompt   (b, t) int, t >= 1
    state, starts    as in `generate`
    tokens   how many will follow: the room to leave after the prompt
    seen     keep which tokens were read, for a repetition penalty
    """
    prompt = _prompt(model, prompt)
    b, t = prompt.shape
    if starts is not None:
        starts = jnp.asarray(starts)
        if starts.shape != (b, t) or starts.dtype != jnp.bool_:
            raise ShapeError(f"starts has shape {starts.shape} of {starts.dtype}, expected {(b, t)} of bool")
    before = state if isinstance(state, Session) else None
    state = state if before is None else before.state
    if state is not None:
        _check_room(model, before or state, t, tokens, b)
    if seen and before is not None and before.seen is None:
        raise ConfigError("state.seen = None: expected a Session that kept the seen tokens, to go on with a penalty")
    # With a state in hand the room must not matter to the compiler: the same prompt shape compiles once.
    logits, state = _read(model, params, prompt, state, starts, t + tokens if state is None else 0)
    none = jnp.zeros((b,), jnp.int32)
    known = None if before is None else before.seen
    return Session(
        state=state,
        logits=logits,
        drawn=none if before is None else before.drawn,
        used=t + (none if before is None else before.used),
        done=jnp.zeros((b,), bool),
        seen=mark(known, prompt, starts, logits.shape[-1]) if seen or known is not None else None,
    )


def score(model: LM, params: Params, tokens: Any, starts: Any = None) -> Array:
    """Nats of every token given those before it in its document.

    tokens   (b, t) int
    starts   (b, t) bool, first tokens of documents; what comes before a row's first start is padding
    ->       (b, t) at least float32; 0 where nothing is predicted: first tokens of rows and documents, and padding
    """
    tokens = _prompt(model, tokens)
    b, t = tokens.shape
    if starts is not None:
        starts = jnp.asarray(starts)
        if starts.shape != (b, t) or starts.dtype != jnp.bool_:
            raise ShapeError(f"starts has shape {starts.shape} of {starts.dtype}, expected {(b, t)} of bool")
    return _score(model, params, tokens, starts, max(1, WIDE_NUMBERS // (b * model.vocab)))


@partial(jax.jit, static_argnames=("model", "total"))
def _read(
    model: LM, params: Params, prompt: Array, state: State, starts: Array | None, total: int
) -> tuple[Array, State]:
    """(logits of the next token, state). The last token goes by itself: no other token's logits are ever computed."""
    if state is None:
        state = model.start(params, prompt.shape[0], total)
    if prompt.shape[1] > 1:
        _, state = model.apply(params, prompt[:, :-1], state, None if starts is None else starts[:, :-1])
    logits, state = model.apply(params, prompt[:, -1:], state, None if starts is None else starts[:, -1:])
    return logits[:, 0], state


@partial(jax.jit, static_argnames=("model", "sampling", "tokens", "stops"))
def _write(
    model: LM,
    params: Params,
    session: Session,
    keys: Array | None,
    sampling: Sampling,
    tokens: int,
    stops: tuple[int, ...],
) -> tuple[Array, Session]:
    """tokens (b, n), session."""
    axes = axes_of(model, session)

    def one(before: Session) -> tuple[Session, Array]:
        own = None if keys is None else jax.vmap(jax.random.fold_in)(keys, before.drawn)
        token = sample(own, before.logits, sampling, before.seen)
        if stops:
            token = jnp.where(before.done, stops[0], token)
        logits, state = model.apply(params, token[:, None], before.state)
        seen = None if before.seen is None else mark(before.seen, token[:, None], None, logits.shape[-1])
        after = Session(state, logits[:, 0], before.drawn + 1, before.used + 1, before.done, seen)
        if stops:
            hit = jnp.any(jnp.stack([token == s for s in stops]), axis=0)
            after = dataclasses.replace(after, done=before.done | hit)
            after = jax.tree.map(partial(where_rows, before.done), before, after, axes)
        return after, token

    if not stops:
        session, out = jax.lax.scan(lambda s, _: one(s), session, None, length=tokens)
        return out.T, session

    def more(carry) -> Array:
        i, session, _ = carry
        return (i < tokens) & ~jnp.all(session.done)

    def go(carry):
        i, session, out = carry
        session, token = one(session)
        return i + 1, session, out.at[i].set(token)

    out = jnp.full((tokens, session.logits.shape[0]), stops[0], jnp.int32)
    _, session, out = jax.lax.while_loop(more, go, (jnp.zeros((), jnp.int32), session, out))
    return out.T, session


@partial(jax.jit, static_argnames=("model", "piece"))
def _score(model: LM, params: Params, tokens: Array, starts: Array | None, piece: int) -> Array:
    """`score`, holding the logits of `piece` tokens of each row at once: the model is cut between pieces."""
    b, n = tokens.shape[0], tokens.shape[1] - 1
    xs = (tokens[:, :-1], tokens[:, 1:], None if starts is None else starts[:, :-1])
    state = model.start(params, b, n) if n > piece else None

    def run(state: State, x: tuple[Array, Array, Array | None]) -> tuple[State, Array]:
        logits, state = model.apply(params, x[0], state, x[2])
        return state, nats(logits, x[1])

    cut, pieces = (n // piece * piece if n > piece else 0), []
    if cut:
        head = jax.tree.map(lambda x: jnp.moveaxis(x[:, :cut].reshape(b, -1, piece), 1, 0), xs)
        state, out = jax.lax.scan(run, state, head)
        pieces.append(jnp.moveaxis(out, 0, 1).reshape(b, cut))
    if cut < n:
        pieces.append(run(state, jax.tree.map(lambda x: x[:, cut:], xs))[1])
    first = jnp.zeros((b, 1), pieces[0].dtype if pieces else jnp.float32)
    out = jnp.concatenate([first, *pieces], axis=1)
    if starts is None:
        return out
    begun = jax.lax.cummax(starts.astype(jnp.int32), axis=1) > 0
    inside = begun | ~jnp.any(starts, axis=1, keepdims=True)
    return jnp.where(inside & ~starts, out, jnp.zeros((), out.dtype))


def _prompt(model: LM, prompt: Any) -> Array:
    """(b, t) int32, after a look at its shape and values."""
    values = np.asarray(prompt)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "iu":
        raise ShapeError(
            f"tokens have shape {values.shape} of {values.dtype}, expected (b, t) of integers, at least one"
        )
    for worst in (int(values.min()), int(values.max())):
        if not 0 <= worst < model.vocab:
            raise ConfigError(f"token {worst}: expected 0 to {model.vocab - 1}, the vocabulary of the model")
    return jnp.asarray(values, jnp.int32)


def _stops(model: LM, stop: int | Sequence[int] | None) -> tuple[int, ...]:
    stops = () if stop is None else tuple(stop) if isinstance(stop, Sequence) else (stop,)
    for token in stops:
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool) or not 0 <= token < model.vocab:
            raise ConfigError(f"stop = {token!r}: expected a token, 0 to {model.vocab - 1}")
    return tuple(map(int, stops))


def _check_room(model: LM, state: Session | State, prompt: int, tokens: int, batch: int | None = None) -> None:
    """Raise unless `prompt` + `tokens` more tokens fit, in each of `batch` rows."""
    rows_held = batch_of(state, axes_of(model, state))
    if batch is not None and jax.tree.leaves(state) and rows_held != batch:
        raise ShapeError(f"state has {rows_held} rows, expected {batch}, as the prompt has")
    session = isinstance(state, Session)
    total = room(model, state.state if session else state)
    used = int(jnp.max(state.used)) if session else 0
    if total is not None and used + prompt + tokens > total:
        raise ConfigError(
            f"room = {total}: {used} tokens are used, expected room for {prompt} of prompt and {tokens} new ones"
        )
