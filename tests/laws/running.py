"""Laws 1 to 3: where a sequence is cut, what is packed beside it, and which rows share its batch changes nothing."""

import jax
import numpy as np
from tolerance import close

from laws.subject import (
    BATCH,
    LENGTHS,
    WHOLE,
    Case,
    Subject,
    add,
    beside,
    case,
    compiled,
    fill_row,
    floating,
    fresh,
    join,
    nothing,
    part,
    put_row,
    rows,
    run,
    shortened,
    start_at,
)


def cut(subject: Subject, order: tuple[int, ...] = LENGTHS, seed: int = 0) -> None:
    """1. Running [a; b] equals running a, then b from a's state: outputs, last state, and all gradients."""
    c = case(subject, seed)
    close(in_pieces(subject, c, order), run(subject, c.given, c.starts, c.back))


def decode(subject: Subject, seed: int = 0) -> None:
    """1, the finest cut: one `step` a token. So no token can see a later one.

    And 3: half of the rows at a time, so that nothing depends on how many there are.
    """
    c, axes = case(subject, seed), subject.state_axes()
    c = Case(c.given, np.zeros_like(c.starts), c.back)
    halves = [part(c, axes, slice(at, at + BATCH // 2)) for at in (0, BATCH // 2)]
    outs, grads = zip(*(in_pieces(subject, half, (1,) * WHOLE, step=True) for half in halves), strict=True)
    weights = add(*(g["params"] for g in grads))
    got = joined(outs, "y", axes), {"params": weights, **joined(grads, "x", axes)}
    close(got, run(subject, c.given, c.starts, c.back))


def joined(halves, name: str, axes) -> dict:
    """Rows of y or x, and of the state, put together."""
    places = {name: 0, "state": axes}
    return {key: beside([half[key] for half in halves], at) for key, at in places.items()}


def in_pieces(subject: Subject, c: Case, lengths: tuple[int, ...], step: bool = False):
    """What `run` gives, from pieces: states are handed forward, their cotangents back."""
    places = [slice(end - n, end) for n, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)]
    given, ys, state = [], [], c.given["state"]
    for at in places:
        given.append({**c.given, "x": c.given["x"][:, at], "state": state})
        nil = nothing(subject, at.stop - at.start, len(c.starts))
        out, _ = run(subject, given[-1], c.starts[:, at], nil, step=step)
        ys.append(out["y"])
        state = out["state"]
    back, grads = c.back["state"], []
    for at, g in reversed(list(zip(places, given, strict=True))):
        grads.append(run(subject, g, c.starts[:, at], {"y": c.back["y"][:, at], "state": back}, step=step)[1])
        back = grads[-1]["state"]
    params, x = add(*(g["params"] for g in grads)), join(*(g["x"] for g in reversed(grads)))
    return {"y": join(*ys), "state": state}, {"params": params, "x": x, "state": back}


def packing(subject: Subject, order: tuple[int, ...] = LENGTHS, seed: int = 0) -> None:
    """2. Documents packed in a row, their first tokens marked, equal the documents run alone, gradients included."""
    c = case(subject, seed)
    places = [slice(end - n, end) for n, end in zip(order, np.cumsum(order).tolist(), strict=True)]
    starts = start_at(c.starts, (slice(None), [at.start for at in places[1:]]))
    packed = run(subject, c.given, starts, c.back)

    no_back = floating(jax.tree.map(np.zeros_like, c.back["state"]))
    ys, xs, params, outs = [], [], [], []
    for i, at in enumerate(places):
        state = fresh(subject, c.given["params"], no_back)[0] if i else c.given["state"]
        given = {**c.given, "x": c.given["x"][:, at], "state": state}
        back = {"y": c.back["y"][:, at], "state": c.back["state"] if at.stop == WHOLE else no_back}
        out, grads = run(subject, given, starts[:, at] & (np.arange(at.stop - at.start) > 0 if i else True), back)
        params.append(grads["params"])
        if i:  # the fresh state may be learned
            params.append(fresh(subject, c.given["params"], grads["state"])[1])
        ys.append(out["y"])
        xs.append(grads["x"])
        outs.append((out["state"], grads["state"]))
    alone = {"params": add(*params), "x": join(*xs), "state": outs[0][1]}
    close(({"y": join(*ys), "state": outs[-1][0]}, alone), packed)


def poison(subject: Subject, order=LENGTHS, seed: int = 0, token: int = 10, value: float = np.nan) -> None:
    """2, with a non-finite token in row 0 (token -1: a start state of them): its document gives NaN from there to its
    end; everything else, and every gradient of a loss over everything else, is as if the token were clean.

    Tokens of an embedding cannot be NaN: there is nothing to say about a model on tokens.
    """
    c, axes = case(subject, seed), subject.state_axes()
    starts = start_at(c.starts, (slice(None), np.cumsum(order)[:-1]))
    starts[0, 0] = False
    ends = [int(i) for i in np.flatnonzero(starts[0]) if i > token] + [WHOLE]
    spoiled = np.zeros((BATCH, WHOLE), bool)
    spoiled[0, max(token, 0) : ends[0]] = True
    lost = ends[0] == WHOLE  # the last state's row 0 is spoiled too
    given = dict(c.given)
    if token < 0:
        given["state"] = fill_row(given["state"], axes, 0, value)
    else:
        given["x"] = np.array(given["x"])
        given["x"][0, token] = value
    back = {"y": np.where(spoiled[:, :, None], 0, c.back["y"]), "state": c.back["state"]}
    if lost:
        back["state"] = fill_row(back["state"], axes, 0, 0.0)

    (got, got_grads), (want, want_grads) = run(subject, given, starts, back), run(subject, c.given, starts, back)
    assert np.isnan(np.asarray(got["y"], np.float32)[spoiled]).all(), "a spoiled token gave a number"
    hide = lambda out: {  # noqa: E731
        "y": np.where(spoiled[:, :, None], 0, out["y"]),
        "state": rows(out["state"], axes, slice(int(lost), None)),
    }
    assert all(bool(np.isfinite(g).all()) for g in jax.tree.leaves(got_grads)), "a spoiled token reached a gradient"
    close((hide(got), got_grads), (hide(want), want_grads))
    if lost:  # and the document goes on to be NaN in the next piece
        n = LENGTHS[0]
        more = {**c.given, "x": c.given["x"][:, :n], "state": got["state"]}
        y = np.asarray(run(subject, more, np.zeros((BATCH, n), bool), nothing(subject, n))[0]["y"], np.float32)
        assert np.isnan(y[0]).all(), "the state forgot that its document is spoiled"
        assert np.isfinite(y[1:]).all(), "a spoiled state reached another row"


def rows_apart(subject: Subject, seed: int = 0) -> None:
    """3. A row gives the same whatever the others hold; the gradients of the weights are the sum over rows."""
    axes, t = subject.state_axes(), LENGTHS[1]
    c, other = (shortened(case(subject, s), t) for s in (seed, seed + 1))
    out, grads = run(subject, c.given, c.starts, c.back)
    nil, total = jax.tree.map(np.zeros_like, c.back), []
    for i in range(BATCH):
        own = lambda mine, others, axes=0, i=i: put_row(others, mine, axes, i)  # noqa: E731
        x, state = own(c.given["x"], other.given["x"]), own(c.given["state"], other.given["state"], axes)
        back = {"y": own(c.back["y"], nil["y"]), "state": own(c.back["state"], nil["state"], axes)}
        starts = own(c.starts, other.starts)
        one_out, one_grads = run(subject, {"params": c.given["params"], "x": x, "state": state}, starts, back)
        total.append(one_grads["params"])
        row = lambda out, grads, at=slice(i, i + 1): (  # noqa: E731
            [rows(a, 0, at) for a in (out["y"], grads["x"])], [rows(a["state"], axes, at) for a in (out, grads)],
        )  # fmt: skip
        close(row(one_out, one_grads), row(out, grads))
    close(add(*total), grads["params"])


def starts_absent(subject: Subject, seed: int = 0) -> None:
    """2, at its simplest: no starts at all equal starts that are all False, and a fresh start equals `state=None`."""
    c, t = case(subject, seed), LENGTHS[0]
    x, params = c.given["x"][:, :t], c.given["params"]
    plain = compiled(lambda p, x: subject.model.apply(p, x)[0], params, x)(params, x)
    state = fresh(subject, params, floating(jax.tree.map(np.zeros_like, c.back["state"])))[0]
    none = np.zeros((BATCH, t), bool)
    close(run(subject, {"params": params, "x": x, "state": state}, none, nothing(subject, t))[0]["y"], plain)
