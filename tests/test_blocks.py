"""What transformers are put together of: parallel residuals, learned positions, chains, norms, the scale of entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import apply, float64, packed, weights

from jaxlm.blocks import Block, Chain, Checkpointed, Stack
from jaxlm.codec import decode, encode
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.layers.position import ALiBi, Sets
from jaxlm.layers.rope import LongRope, Rope
from jaxlm.mixers import GRU, LRU, Attention, SinkAttention
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models import LM, NGramLM
from jaxlm.module import abstract, init, rebuild

D = 8
PARALLEL = Block(GRU(D), MLP(D), LayerNorm(D), residual="parallel")


def test_a_parallel_block_adds_both_branches_of_the_same_x():
    params, (x, _) = weights(PARALLEL), packed(PARALLEL)
    norm, mlp = LayerNorm(D), MLP(D)
    mixed, _ = apply(GRU(D), params["mixer"], norm.apply(params["norm"], x))
    want = x + mixed + mlp.apply(params["mlp"], norm.apply(params["mlp_norm"], x))
    close(apply(PARALLEL, params, x)[0], want)
    silent = {**params, "mlp": jax.tree.map(jnp.zeros_like, params["mlp"])}
    alone = {n: params[n] for n in ("norm", "mixer")}
    close(apply(PARALLEL, silent, x)[0], apply(Block(GRU(D), None, LayerNorm(D)), alone, x)[0])
    with pytest.raises(ConfigError, match="residual = 'both'"):
        Block(GRU(D), residual="both")


def test_learned_positions_are_added_by_the_place_in_the_document():
    mixer = LearnedPositions(D, 5)
    params, (x, starts) = weights(mixer), packed(mixer)  # the second row starts anew at 3
    table, want = float64(params)["table"], float64(x)
    places = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]])
    want = np.where((places < 5)[..., None], want + table[np.minimum(places, 4)], np.nan)
    y, state = mixer.apply(params, x, None, starts)
    close(y, want)
    assert state["length"].tolist() == [7, 4]
    y, state = mixer.apply(params, x[:, :3])
    close(mixer.apply(params, x[:, 3:5], state)[0], x[:, 3:5] + params["table"][None, 3:])
    with pytest.raises(ShapeError, match="7 tokens, expected at most length = 5"):
        mixer.apply(params, x)
    with pytest.raises(ConfigError, match="length = 0"):
        LearnedPositions(D, 0)


def test_a_chain_is_its_parts_in_turn():
    chain = Chain((LearnedPositions(D, 16), GRU(D)))
    params, (x, starts) = weights(chain), packed(chain)
    h, first = chain.parts[0].apply(params["part0"], x, None, starts)
    y, second = apply(GRU(D), params["part1"], h, None, starts)
    close(chain.apply(params, x, None, starts), (y, {"part0": first, "part1": second}))
    assert (chain.reads, chain.width, chain.growth) == (D, D, "linear")
    assert Chain((GRU(D), Attention(D))).growth == "quadratic"
    for bad in ((), (GRU(D), GRU(D + 1)), (MLP(D),)):
        with pytest.raises(ConfigError, match=r"Chain\.parts"):
            Chain(bad)


def test_checkpoints_change_memory_and_nothing_else():
    inner = LRU(D)
    params, (x, starts) = weights(inner), packed(inner)

    def loss(mixer, params, x):
        y, state = mixer.apply(params, x, None, starts)
        return jnp.sum(y**2) + jnp.sum(state["h"] ** 2), (y, state)

    run = jax.jit(jax.value_and_grad(loss, argnums=(1, 2), has_aux=True), static_argnums=0)
    close(run(Checkpointed(inner, 3), params, x), run(inner, params, x))  # two stretches and a rest

    def temporary(mixer):
        grad = jax.jit(jax.grad(lambda p, x: jnp.sum(mixer.apply(p, x)[0] ** 2), argnums=(0, 1)))
        x = jax.ShapeDtypeStruct((1, 1024, D), jnp.float32)
        stats = grad.lower(abstract(mixer), x).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    assert temporary(Checkpointed(inner)) < temporary(inner) / 3
    with pytest.raises(ConfigError, match="every = 0"):
        Checkpointed(inner, 0)
    with pytest.raises(ConfigError, match="expected one whose cost is linear"):
        Checkpointed(Attention(D))


def test_norms_forget_what_they_should():
    x = packed(GRU(D))[0]
    rms, layer = RMSNorm(D, 0.0), LayerNorm(D)
    p, q = weights(rms), weights(layer)
    close(rms.apply(p, 7.0 * x), rms.apply(p, x))
    close(layer.apply(q, x + 3.0), layer.apply(q, x))
    wide = float64(x)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    close(layer.apply(q, x), want * np.asarray(q["gain"]) + np.asarray(q["bias"]))


def test_the_scale_of_entry_is_that_of_the_embedding():
    plain, scaled = LM(24, 16, GRU(16), tied=False, scale=1.0), LM(24, 16, GRU(16), tied=False)
    params, tokens = init(plain, jax.random.key(0)), jnp.arange(6)[None]
    louder = {**params, "embed": 4.0 * params["embed"]}
    close(plain.apply(louder, tokens)[0], scaled.apply(params, tokens)[0])


def test_every_part_can_be_written_down_and_read_again():
    rope = Rope(500.0, 0.5, LongRope((1.0, 1.0), (2.0, 3.0), 64), interleaved=True)
    blocks = (Block(Attention(16, position=rope)), Block(SinkAttention(16), MLP(16), residual="parallel"))
    other = Stack(Block(Attention(16, position=ALiBi(), sets=Sets(2, (3, 1)))))
    for model in (NGramLM(24, 16, Stack(blocks, 4), scale=1.0), LM(24, 16, Chain((LearnedPositions(16), other)))):
        assert decode(encode(model)) == model


def test_rebuild_changes_parts_from_the_inside_out():
    model = LM(24, 16, Stack((Block(Attention(16)), Block(GRU(16))), 2))
    changed = rebuild(model, lambda m: Attention(16, window=4) if type(m) is Attention else m)
    assert changed == LM(24, 16, Stack((Block(Attention(16, window=4)), Block(GRU(16))), 2))
    assert rebuild(model, lambda m: m) == model
