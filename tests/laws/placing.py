"""Laws 4 and 5: where arrays live, and what type they have, is never a surprise."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tolerance import close

from jaxlm.blocks import Stack
from jaxlm.errors import ShapeError, UnknownAxis
from jaxlm.mixers.base import Mixer
from jaxlm.module import abstract, cast, init, map_specs
from jaxlm.relay import spread
from jaxlm.sharding import constrainer, mesh, resolve, shardings
from laws.subject import BATCH, LENGTHS, ROOM, Subject, case, run, run_placed, shapes, shortened

CUBE = "data=2,fsdp=2,tensor=2"
TIME = LENGTHS[1]


def placed(subject: Subject, seed: int = 0, text: str = CUBE) -> None:
    """4. On a mesh, with weights, state and batch placed by the rules, values and gradients are those of one device."""
    weights = jax.tree.leaves(shardings(subject.model, mesh(text)))
    assert any(not s.is_fully_replicated for s in weights) or "context" in text, "no weight is split: nothing is tested"
    close(on_mesh(subject, text, seed), on_one(subject, seed))


def on_one(subject: Subject, seed: int = 0, batch: int = BATCH, t: int = TIME):
    """({y, state}, gradients) on one device."""
    c = shortened(case(subject, seed, batch), t)
    return run(subject, c.given, c.starts, c.back)


def on_mesh(subject: Subject, text: str, seed: int = 0, batch: int = BATCH, t: int = TIME):
    """The same on a mesh, with weights, state and batch placed by the rules."""
    m, c = mesh(text), shortened(case(subject, seed, batch), t)
    given, starts, back = c.given, c.starts, c.back
    place = lambda a: jax.NamedSharding(m, resolve(("batch", "time", None)[: a.ndim], a.shape, m))  # noqa: E731
    state = shardings(subject.model.state(batch, ROOM), m)
    where = {"params": shardings(subject.model, m), "x": place(given["x"]), "state": state}
    args = jax.device_put((given, starts, back["y"]), (where, place(starts), place(back["y"])))
    split = dataclasses.replace(subject, model=spread(subject.model, m))
    return run_placed(split, args[0], args[1], {"y": args[2], "state": back["state"]}, constrainer(m))


def refuses(subject: Subject) -> None:
    """4. An unknown logical name, or a size that the mesh cannot split, raises; nothing is replicated in silence."""
    m, specs = mesh(CUBE), subject.model.params()
    strange = map_specs(lambda s: dataclasses.replace(s, axes=(*s.axes[:-1], "nowhere")[: len(s.axes)], ins=()), specs)
    raises(UnknownAxis, lambda: shardings(strange, m))
    odd = map_specs(lambda s: dataclasses.replace(s, shape=tuple(n | 1 for n in s.shape)), specs)
    raises(ShapeError, lambda: shardings(odd, m))
    constrain = constrainer(m)
    raises(UnknownAxis, lambda: constrain(jnp.zeros((8, 8)), ("batch", "nowhere")))
    raises(ShapeError, lambda: constrain(jnp.zeros((7, 8)), ("batch", None)))


def raises(error: type[Exception], f) -> None:
    try:
        f()
    except error:
        return
    raise AssertionError(f"expected {error.__name__}")


def types(subject: Subject) -> None:
    """5. `start`, `apply` and `step` keep the tree, shapes and dtypes that `state(batch, room)` declares, and y has
    x's dtype (a model of tokens: at least float32), whatever dtype the weights are computed in."""
    model, specs = subject.model, subject.model.state(BATCH, ROOM)
    want = shapes(specs)
    for spec in jax.tree.leaves(specs, is_leaf=lambda s: hasattr(s, "axes")):
        assert spec.shape[spec.axes.index("batch")] == BATCH, f"{spec}: the axis `batch` is not the batch"
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.eval_shape(lambda dtype=dtype: cast(model, init(model, jax.random.key(0)), dtype))
        x = subject.inputs(LENGTHS[0])
        x = x if subject.vocab else jax.ShapeDtypeStruct(x.shape, dtype)
        one = jax.ShapeDtypeStruct((x.shape[0], 1, *x.shape[2:]), x.dtype)
        same(jax.eval_shape(lambda p: model.start(p, BATCH, ROOM), params), want, f"start in {dtype.__name__}")
        for f, given, what in ((model.apply, x, "apply"), (subject.step, one, "step")):
            y, state = jax.eval_shape(f, params, given, want)
            same(state, want, f"{what} in {dtype.__name__}")
            expected = jnp.dtype(jnp.float32 if subject.vocab else dtype)
            assert y.dtype == expected, f"{what} in {dtype.__name__}: y is {y.dtype}"
            assert y.shape[:2] == given.shape[:2], f"{what}: y has shape {y.shape} for x {given.shape}"


def same(got, want, what: str) -> None:
    def text(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(k): f"{a.dtype}{a.shape}" for k, a in leaves}

    assert jax.tree.structure(got) == jax.tree.structure(want), f"{what}: state {text(got)}, declared {text(want)}"
    assert text(got) == text(want), f"{what}: state {text(got)}, declared {text(want)}"


def traces_once(subject: Subject) -> None:
    """5. A model is a value: two equal ones are one static argument, and are traced once."""
    model = subject.model
    twin = copy.deepcopy(model)
    assert twin == model and hash(twin) == hash(model) and twin is not model
    count = 0

    def f(model, params, x):
        nonlocal count
        count += 1
        return model.apply(params, x)

    jitted = jax.jit(f, static_argnums=0)
    x = subject.inputs(LENGTHS[0])
    for one in (model, twin):
        jitted.lower(one, abstract(one), x)
    assert count == 1, f"two equal models were traced {count} times"


def every_weight_learns(subject: Subject, seed: int = 0) -> None:
    """5. Every weight gets a gradient that is finite and not all zero; where `tie` speaks, in a Stack of two."""
    model = subject.model
    if isinstance(model, Mixer) and type(model).tie is not Mixer.tie:
        subject = Subject(Stack(model, 2))
    c = case(subject, seed)
    grads = run(subject, c.given, c.starts, c.back)[1]["params"]
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), f"{jax.tree_util.keystr(path)}: the gradient is not finite"
        assert (g != 0).any(), f"{jax.tree_util.keystr(path)}: the gradient is zero"
