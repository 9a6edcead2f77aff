"""The seven laws over blocks, stacks and whole models; here nothing is special about any of them."""

import jax
from laws.subject import Subject
from laws.suite import Laws, subjects
from tolerance import close

from jaxlm.blocks import Block, Chain, Checkpointed, Stack
from jaxlm.layers.mlp import MLP, SwiGLU
from jaxlm.layers.norm import LayerNorm
from jaxlm.memory.memn2n_lm import MemN2NLM
from jaxlm.mixers import Attention, make
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models import LM, SequenceModel
from jaxlm.module import init

WIDTH, VOCAB = 16, 24


def block(name: str) -> Block:
    return Block(make(name, WIDTH), SwiGLU(WIDTH))


MIXED = (block("LinearAttention"), block("Attention"), Block(make("LEM", WIDTH), MLP(WIDTH), LayerNorm(WIDTH)))
PARALLEL = Block(Attention(WIDTH, position=None, bias=True), MLP(WIDTH), LayerNorm(WIDTH), residual="parallel")
MODELS = {
    "Checkpointed": Subject(Checkpointed(block("LRU"), 4)),
    "Stack remat": Subject(Stack(block("LSTM"), 2, "full")),
    "LM chain": Subject(
        LM(VOCAB, WIDTH, Chain((LearnedPositions(WIDTH, 2**15), Stack(PARALLEL, 2))), scale=1.0), VOCAB
    ),
    "LM hybrid": Subject(LM(VOCAB, WIDTH, Stack(MIXED[1:], 2, "dots"), tied=False), VOCAB),
    "MemN2NLM": Subject(MemN2NLM(VOCAB, WIDTH, hops=2, memory=8), VOCAB),
    "SequenceModel": Subject(SequenceModel(Stack(block("LEM"), 2), outputs=6, inputs=10, readout="every")),
}


@subjects(MODELS)
class TestModels(Laws):
    pass


def test_the_last_readout_is_the_last_of_every_readout():
    every = MODELS["SequenceModel"].model
    last = SequenceModel(every.body, every.outputs, every.inputs)
    params, x = init(every, jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 9, 10))
    (y, state), (ys, states) = last.apply(params, x), every.apply(params, x)
    close((y, state), (ys[:, -1], states))
