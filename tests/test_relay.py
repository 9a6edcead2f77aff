"""A sequence split along time over devices: the numbers, states and gradients of one device, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.placing import on_mesh, on_one
from laws.subject import Subject
from tiny import experiment
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.cost import count_flops
from jaxlm.errors import ShapeError
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import SRWM, Attention, make
from jaxlm.mixers.tokenwise import Tokenwise
from jaxlm.models import LM
from jaxlm.module import cast, init, is_spec
from jaxlm.plan.graph import graph_of
from jaxlm.plan.memory import peak
from jaxlm.plan.placing import place
from jaxlm.plan.traffic import between_devices
from jaxlm.relay import Gathered, Relay, idle, into_groups, out_of_groups, spread
from jaxlm.sharding import mesh as make_mesh
from jaxlm.train.loop import placed
from jaxlm.train.step import first_state, train_step

WIDTH, LENGTH = 16, 36  # stretches of 9


def test_a_split_sequence_gives_the_outputs_states_and_gradients_of_one_device():
    """From a random start, with starts of documents; every other mixer is in placing_table.py."""
    subject = Subject(Stack((Attention(WIDTH), SRWM(WIDTH)), 2))
    close(on_mesh(subject, "data=2,context=4", t=LENGTH), on_one(subject, t=LENGTH))


def updated(mesh: str):
    """Weights and losses after two updates by plain SGD of rate 1, so that the gradient is seen."""
    exp = experiment(dropout=0.0, optimizer="sgd", lr=1.0, mesh=mesh)
    hybrid = Stack((Block(make("LEM", WIDTH)), Block(Attention(WIDTH))), 2)
    exp = dataclasses.replace(exp, model=LM(256, WIDTH, hybrid))
    devices = make_mesh(mesh)
    state, update, rows, losses = first_state(exp, devices)[0](), train_step(exp, devices), exp.data.training(0), []
    for step in range(2):
        state, metrics = update(state, placed(exp, devices, rows, step, exp.batch))
        losses.append(metrics["loss"])
    return jax.device_get((state.params, jnp.stack(losses)))


def test_training_along_context_gives_the_losses_and_weights_of_one_device():
    want = updated("")
    close(updated("data=2,context=4"), want)
    close(updated("fsdp=2,tensor=2,context=2"), want)


def test_a_token_that_is_no_number_spoils_its_document_over_all_stretches_and_nothing_else():
    mixer, mesh, t = Attention(WIDTH), make_mesh("context=4"), 16
    x = jax.random.normal(jax.random.key(1), (2, t, WIDTH)).at[0, 1].set(jnp.nan)
    starts = jnp.zeros((2, t), bool).at[0, 13].set(True)
    y = jax.jit(lambda p, x: spread(mixer, mesh).apply(p, x, None, starts)[0])(init(mixer, jax.random.key(0)), x)
    np.testing.assert_array_equal(np.isnan(y).all(-1), np.pad(np.ones((1, 12), bool), ((0, 1), (1, 3))))


def test_gradients_in_bfloat16_are_summed_wide():
    """A sum over devices in bfloat16 would lose bits; XLA for CPU (jaxlib 0.10.2) even ends the process over one."""
    mixer = Attention(WIDTH)
    params = cast(mixer, init(mixer, jax.random.key(0)), jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (2, 16, WIDTH), jnp.bfloat16)

    def gradient(mixer):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(mixer.apply(p, x)[0].astype(jnp.float32))), (0, 1)))

    close(gradient(spread(mixer, make_mesh("context=4")))(params, x), gradient(mixer)(params, x), jnp.bfloat16)


def test_what_stands_around_which_mixer():
    mesh = make_mesh("context=2")
    mixers = make("LEM", WIDTH), Attention(WIDTH), Attention(WIDTH, window=4)
    model = LM(24, WIDTH, Stack(tuple(Block(m) for m in mixers), 3))
    relay, gathered, window = (b.mixer for b in spread(model, mesh).body.pattern)
    assert (type(relay), type(gathered), type(window)) == (Relay, Gathered, Relay)
    assert spread(model, mesh) == spread(model, make_mesh("context=2"))  # one static argument
    assert spread(model, mesh).params() == model.params()
    assert spread(model, make_mesh("data=8")) is model
    alone = Tokenwise(SwiGLU(WIDTH))
    assert spread(alone, mesh) is alone


def test_rows_in_groups_stay_where_they_are():
    tree = {"a": jnp.arange(12), "b": jnp.arange(24).reshape(2, 12)}
    axes = {"a": 0, "b": 1}
    groups = into_groups(tree, axes, 3)
    assert groups["a"][1].tolist() == [1, 4, 7, 10] and groups["b"].shape == (3, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, out_of_groups(groups, axes), tree)
    relay = Relay(make("LEM", WIDTH), make_mesh("data=2,context=4"))
    assert [relay.groups(rows) for rows in (2, 12, 64, 128)] == [1, 6, 16, 16]
    assert (idle(4, 1), idle(4, 16)) == (3 / 4, 3 / 19)


def test_a_length_that_the_devices_do_not_divide_raises():
    x = jax.ShapeDtypeStruct((4, 30, WIDTH), jnp.float32)
    for name in ("LEM", "Attention"):
        mixer = spread(make(name, WIDTH), make_mesh("context=4"))
        with pytest.raises(ShapeError, match=r"axis 'time' .* size 30, expected a multiple of 4 \(context=4\)"):
            jax.eval_shape(mixer.apply, jax.eval_shape(lambda m=mixer: init(m, jax.random.key(0))), x)
    state = jax.eval_shape(lambda: mixer.start({}, 4, 8))
    with pytest.raises(ShapeError, match="32 tokens, expected at most the 8 slots"):
        jax.eval_shape(
            mixer.apply,
            jax.eval_shape(lambda: init(mixer, jax.random.key(0))),
            jax.ShapeDtypeStruct((4, 32, WIDTH), jnp.float32),
            state,
        )


def test_a_plan_counts_every_device_of_a_relay_and_what_it_hands_on():
    """From the trace alone. 8 rows over data=2 go in 4 groups, so that 7 ticks do the work of 4."""
    rows, t = 8, 64
    kind, x = make("LEM", WIDTH), jax.ShapeDtypeStruct((rows, t, WIDTH), jnp.float32)
    sizes = {"data": 2, "context": 4}
    mixer = spread(kind, make_mesh("data=2,context=4"))
    params = jax.eval_shape(lambda: init(kind, jax.random.key(0)))
    alone, traced = (jax.make_jaxpr(lambda p, x, m=m: m.apply(p, x)[0])(params, x) for m in (kind, mixer))
    assert count_flops(traced.jaxpr) / count_flops(alone.jaxpr) == pytest.approx(7 / 4, rel=0.02)
    whole = [((),) * p.ndim for p in jax.tree.leaves(params)]
    split = (("data",), ("context",), ())
    one, many = (place(graph_of(j), sizes, [*whole, split], [split]) for j in (alone, traced))
    state = 4 * sum(s.size for s in jax.tree.leaves(kind.state(rows), is_leaf=is_spec))
    assert between_devices(many) == {"collective-permute": 7 * state // 4 // 2}  # a group's, of a device's own rows
    assert many.ways(many.graph.outs[0]) == 8 and peak(many) < peak(one)
