"""RWKV language models: the laws, the channel mix in numpy, and real weights with their recorded logits."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import placing, running
from laws.subject import Subject
from tolerance import close
from twin import agree, sigmoid

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.rwkv import load
from jaxlm.codec import decode, encode
from jaxlm.errors import ConfigError
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.channel_mix import ChannelMix
from jaxlm.mixers.rwkv5 import RWKV5
from jaxlm.mixers.rwkv7 import RWKV7
from jaxlm.models.rwkv import RWKV7Body, rwkv
from jaxlm.module import count, init

SMALL = RWKV7(16, ranks=(4, 4, 4, 4))


# Few hidden units: a difference quotient of fourth order wants smoothness, and the slope of a squared ReLU has a kink;
# of 32 units some cross it within the step, which shows as 1e-8 (7e-12 with a softplus, less where the step shrinks).
HALVES = (Block(RWKV5(16), norm=LayerNorm(16)), Block(ChannelMix(16, 8, receptance=True), norm=LayerNorm(16)))
MODELS = {"RWKV-5": rwkv(24, Stack(HALVES, 4)), "RWKV-7": rwkv(24, RWKV7Body(SMALL, ChannelMix(16, 32), depth=3))}


def test_values_that_go_from_layer_to_layer_keep_the_laws_of_sequences():
    """RWKV-7's own; mixers and halves of blocks, all that RWKV-5 is made of, are under all the laws.

    One token at a time, it gives its recorded logits, below.
    """
    subject = Subject(MODELS["RWKV-7"], 24)
    running.cut(subject)
    running.packing(subject)
    running.rows_apart(subject)
    placing.placed(subject)
    placing.types(subject)
    placing.every_weight_learns(subject)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_values_that_can_be_written_down(name):
    assert decode(encode(MODELS[name])) == MODELS[name]


class Row:
    """max(u_k W_k, 0)² W_v, times σ(u_r W_r) where there is one."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        self.state = {"past": np.zeros(self.p["key"].shape[0])}

    def token(self, x):
        p, past = self.p, self.state["past"]
        u = {n: (1 - mu) * x + mu * past for n, mu in p["mix"].items()}
        y = np.square(np.maximum(u["key"] @ p["key"], 0)) @ p["value"]
        self.state = {"past": x}
        return y * sigmoid(u["receptance"] @ p["receptance"]) if "receptance" in p else y


@pytest.mark.parametrize("mixer", [ChannelMix(16, 24), ChannelMix(16, 24, receptance=True)], ids=str)
def test_channel_mix_equals_its_formula(mixer):
    agree(mixer, Row)


def test_the_first_layer_gives_its_values_to_the_others():
    """One layer of the body, by hand."""
    body = RWKV7Body(SMALL, depth=2)
    params = jax.tree.map(lambda p: p + 0.1, init(body, jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (1, 5, 16))
    norm, out = lambda p, x: body.norm.apply(p, x), x
    h, _, values = SMALL.mix(params["first"]["mixer"], norm(params["first"]["norm"], x))
    out = body.block.apply(params["first"]["channel"], x + h)[0]
    second = jax.tree.map(lambda p: p[0], params["rest"])
    h, _, other = body.later.mix(second["mixer"], norm(second["norm"], out), first=values)
    close(body.apply(params, x)[0], body.block.apply(second["channel"], out + h)[0])
    assert float(jnp.abs(other - values).max()) > 0.01
    alone = RWKV7Body(SMALL, depth=1)
    assert "rest" not in alone.params()
    with pytest.raises(ConfigError, match="mixer"):
        RWKV7Body(body.later)
    with pytest.raises(ConfigError, match="depth = 0"):
        RWKV7Body(SMALL, depth=0)


FILES = {"4v0-660K": 661_504, "5v2-730K": 731_904, "7v0-834K": 829_888}  # and how many weights


def files_of(data_folder, name):
    """The model and the logits that were recorded after three bytes."""
    folder = f"models/tiny-rwkv-{name}"
    if not data_folder.has(folder):
        pytest.skip(f"no {folder}")
    return [data_folder.file(f"{folder}/{n}.bin") for n in (f"tiny-rwkv-{name}-FP32", f"expected-logits-{name}")]


@pytest.mark.parametrize("name", FILES)
def test_real_weights_give_their_recorded_logits(data_folder, name):
    file, logits = files_of(data_folder, name)
    want = np.frombuffer(logits.read_bytes(), "<f4")
    model, params = load(file)
    assert count(model) == FILES[name]
    apply = jax.jit(model.apply)
    tokens = jnp.asarray([list(b'"in')])
    got, _ = apply(params, tokens, model.start(params, 1))
    assert np.abs(got[0, -1] - want).max() < 1e-4  # logits of size 1 to 10
    _, state = apply(params, tokens[:, :1], model.start(params, 1))
    for t in (1, 2):
        got, state = apply(params, tokens[:, t : t + 1], state)
    assert np.abs(got[0, -1] - want).max() < 1e-4


def record(name, array):
    head = struct.pack("<3i", array.ndim, len(name), 0) + struct.pack(f"<{array.ndim}i", *array.shape[::-1])
    return head + name.encode() + array.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-2], "truncated or altered"),
        (lambda raw: b"\0" + raw[1:], "expected 0x67676d66"),
        (lambda raw: raw + record("blocks.0.att.new", np.zeros(3)), "blocks.0.att.new: unknown"),
        (lambda raw: raw + record("ln_out.bias", np.zeros(3)), r"ln_out.bias has shape \(3,\), expected \(64,\)"),
        (lambda raw: raw.replace(b"ln_out.bias", b"lm_out.bias"), "ln_out.bias: missing"),
        (lambda raw: raw.replace(b"blocks.1.att.v1", b"blocks.1.att.z1"), "blocks.1.att.v1: missing"),
    ],
    ids=["short", "magic", "unknown", "shape", "renamed", "rank"],
)
def test_what_is_wrong_with_a_file_is_said(data_folder, tmp_path, change, words):
    file = tmp_path / "model.bin"
    file.write_bytes(change(files_of(data_folder, "7v0-834K")[0].read_bytes()))
    with pytest.raises(ConfigError, match=words) as error:
        load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
