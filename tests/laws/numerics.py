"""Laws 6 and 7: the numbers are right, stay finite, and cost what is declared."""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from tolerance import TOLERANCE, close

from jaxlm.cost import flops
from jaxlm.module import abstract, cast, init, is_spec
from laws.subject import LENGTHS, Subject, case, compiled, is_float, run

LONG = 8192


def differences(subject: Subject, seed: int = 0) -> None:
    """6. The gradient along a random direction, in float64, is the difference quotient of fourth order.

    Weights, x and start state are float64: states declared float32 widen with them (`wide` never narrows), and the last
    state must come back as float64. No starts here, for a fresh state has its declared dtype; law 2 covers resets.
    Where a kink (of a ReLU, of a maximum) lies between its points the quotient says nothing of the gradient. The values
    tell: half the step then gives another quotient. Only then is another example taken, three in all.
    """
    for example in range(seed, seed + 3):
        slope, quotient, finer = along(subject, example)
        if abs(quotient - finer) <= TOLERANCE["float64"] * abs(quotient):
            break
    close(slope, quotient, "float64")


def along(subject: Subject, seed: int) -> tuple[np.float64, np.float64, np.float64]:
    """The gradient along a random direction, and the difference quotients with a step and with half of it."""
    c, t = case(subject, seed), LENGTHS[1]
    widen = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64) if is_float(a) else np.asarray(a), tree)  # noqa: E731
    given, back = widen({**c.given, "x": c.given["x"][:, :t]}), widen({**c.back, "y": c.back["y"][:, :t]})
    draw = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(given)
    way = [draw.standard_normal(a.shape) if a.dtype == np.float64 else None for a in leaves]
    norm = math.sqrt(sum(float(np.sum(w**2)) for w in way if w is not None))

    with jax.enable_x64(True):

        def value(h: float) -> float:
            moved = [a if w is None else a + h / norm * w for a, w in zip(leaves, way, strict=True)]
            out, _ = run(subject, jax.tree.unflatten(tree, moved), None, back)
            wrong = [a.dtype for a in jax.tree.leaves(out) if is_float(a) and jnp.finfo(a.dtype).bits < 64]
            assert not wrong, f"float64 came back as {wrong}"
            return inner(back, out)

        slope = inner(run(subject, given, None, back)[1], jax.tree.unflatten(tree, way)) / norm
        h = 3e-4  # above, h^4 is seen in deep stacks; below, rounding
        half, one, two = (value(n * h) - value(-n * h) for n in (0.5, 1, 2))
        return np.float64(slope), np.float64((8 * one - two) / (12 * h)), np.float64((8 * half - one) / (6 * h))


def inner(a, b) -> float:
    """Sum of products over the leaves that `a` has."""
    both = jax.tree.map(lambda x, y: 0.0 if x is None else float(np.vdot(x, y)), a, b, is_leaf=lambda x: x is None)
    return sum(jax.tree.leaves(both))


def low_precision(subject: Subject, seed: int = 0) -> None:
    """6. With weights and x in bfloat16, outputs stay within the table's distance of those of the same numbers in
    float32, but for one token in a hundred. What is judged is the arithmetic, not what a model makes of the rounding of
    what it is given; and where a memory answers with next to nothing, the norm behind it divides rounding by that.
    """
    c, t = case(subject, seed), LENGTHS[1]
    x, params = c.given["x"][:, :t], c.given["params"]
    low = cast(subject.model, params, jnp.bfloat16), x.astype(jnp.bfloat16) if is_float(x) else x
    apply = lambda p, x, s: subject.model.apply(p, x, s)[0]  # noqa: E731
    y = compiled(apply, low[0], low[1], c.given["state"])(*low, c.given["state"])
    same = jax.tree.map(lambda a, b: np.asarray(a).astype(b.dtype), low, (params, x))
    full = {**c.given, "params": same[0], "x": same[1]}
    want = run(subject, full, c.starts[:, :t] & False, {**c.back, "y": c.back["y"][:, :t]})[0]["y"]
    gaps = np.max(np.abs(np.asarray(y, np.float32) - want), axis=-1).ravel() / np.max(np.abs(want))
    gap = np.sort(gaps)[-1 - gaps.size // 100]  # nan is sorted last
    assert np.isfinite(gaps).all() and gap <= TOLERANCE["bfloat16"], f"bfloat16 is {gap:.2e} of the size off"


@lru_cache(maxsize=4)
def forward(subject: Subject, t: int):
    """The compiled forward pass of one row of t tokens from a fresh start."""
    x = subject.inputs(t, 1)
    return compiled(subject.model.apply, abstract(subject.model), x)


def stays_finite(subject: Subject) -> None:
    """6. 8,192 tokens from the initial weights: every output and the last state are finite."""
    params, x = init(subject.model, jax.random.key(0)), subject.drawn(np.random.default_rng(1), LONG, 1)
    for path, a in jax.tree_util.tree_leaves_with_path(forward(subject, LONG)(params, x)):
        assert np.isfinite(np.asarray(a)).all(), f"{jax.tree_util.keystr(path)} is not finite after {LONG} tokens"


def cost(subject: Subject) -> None:
    """7. Twice the tokens cost twice the operations where growth is 'linear', clearly more where it is 'quadratic'; the
    state of a linear one has a fixed size; the temporary memory of the forward pass grows no faster than the length."""
    model, growth = subject.model, subject.model.growth

    def operations(t: int) -> int:
        x = subject.inputs(t, 1)
        return flops(model.apply, abstract(model), x)

    ratio = operations(4 * LONG) / operations(2 * LONG)
    assert growth in ("linear", "quadratic"), f"growth is {growth!r}"
    assert (ratio < 2.1) if growth == "linear" else (ratio > 3), f"declared {growth}, but 2T costs {ratio:.2f} times T"

    sizes = [sum(s.size for s in jax.tree.leaves(model.state(1, room), is_leaf=is_spec)) for room in (LONG, 2 * LONG)]
    assert growth == "quadratic" or sizes[0] == sizes[1], f"declared linear, but the state grows with its room: {sizes}"

    half, whole = (forward(subject, t).memory_analysis().temp_size_in_bytes for t in (LONG // 2, LONG))
    # Nearer to linear (2) than to quadratic (4): what buffers XLA can share differs a little from length to length.
    limit = 2 * math.sqrt(2) * half + 2**16
    assert whole <= limit, f"temporary memory {half} bytes at {LONG // 2} tokens, {whole} at {LONG}"
