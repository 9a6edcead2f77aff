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
    case,
    compiled,
    fill_row,
    floating,
    fresh,
    join,
    nothing,
    rows,
    run,
    start_at,
)


def cut(subject: Subject, order: tuple[int, ...] = LENGTHS, seed: int = 0) -> None:
    """1. Running [a; b] equals running a, then b from a's state: outputs, last state, and all gradients."""
    c = case(subject, seed)
    close(in_pieces(subject, c, order), run(subject, c.given, c.starts, c.back))


def decode(subject: Subject, seed: int = 0) -> None:
    """1, the finest cut: one `step` a token. So no token can see a later one."""
    c = case(subject, seed)
    c = Case(c.given, np.zeros_like(c.starts), c.back)
    close(in_pieces(subject, c, (1,) * WHOLE, step=True), run(subject, c.given, c.starts, c.back))


def in_pieces(subject: Subject, c: Case, lengths: tuple[int, ...], step: bool = False):
    """What `run` gives, from pieces: states are handed forward, their cotangents back."""
    places = [slice(end - n, end) for n, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)]
    given, ys, state = [], [], c.given["state"]
    for at in places:
        given.append({**c.given, "x": c.given["x"][:, at], "state": state})
        out, _ = run(subject, given[-1], c.starts[:, at], nothing(subject, at.stop - at.start), step=step)
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


def row_alone(subject: Subject, seed: int = 0) -> None:
    """3. Each row of a batch equals the row alone; the gradients of the weights are the sum over rows."""
    c, axes, t = case(subject, seed), subject.state_axes(), LENGTHS[1]
    given = {**c.given, "x": c.given["x"][:, :t]}
    starts = start_at(c.starts[:, :t], (1, t // 2))
    back = {"y": c.back["y"][:, :t], "state": c.back["state"]}
    out, grads = run(subject, given, starts, back)
    total = []
    for i in range(BATCH):
        at = slice(i, i + 1)
        one = {"params": given["params"], "x": given["x"][at], "state": rows(given["state"], axes, at)}
        one_back = {"y": back["y"][at], "state": rows(back["state"], axes, at)}
        one_out, one_grads = run(subject, one, starts[at], one_back)
        total.append(one_grads["params"])
        want = [rows(a, 0, at) for a in (out["y"], grads["x"])], [rows(a["state"], axes, at) for a in (out, grads)]
        close(([one_out["y"], one_grads["x"]], [one_out["state"], one_grads["state"]]), want)
    close(add(*total), grads["params"])


def starts_absent(subject: Subject, seed: int = 0) -> None:
    """2, at its simplest: no starts at all equal starts that are all False, and a fresh start equals `state=None`."""
    c, t = case(subject, seed), LENGTHS[0]
    x, params = c.given["x"][:, :t], c.given["params"]
    plain = compiled(lambda p, x: subject.model.apply(p, x)[0], params, x)(params, x)
    state = fresh(subject, params, floating(jax.tree.map(np.zeros_like, c.back["state"])))[0]
    none = np.zeros((BATCH, t), bool)
    close(run(subject, {"params": params, "x": x, "state": state}, none, nothing(subject, t))[0]["y"], plain)
