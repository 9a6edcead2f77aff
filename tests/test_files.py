"""A model and its weights survive two files bit for bit; anything else in the files is refused in one line."""

import json
import math
import os
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError
from jaxlm.files import decode, encode, load, save
from jaxlm.initializers import Constant, Initializer, Normal
from jaxlm.layers.mlp import MLP, SwiGLU
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.mixers import LEM, MIXERS
from jaxlm.mixers.base import Mixer
from jaxlm.models import LM, SequenceModel
from jaxlm.module import Module, Spec, cast, init


class Bare(Module):
    """Neither fields nor weights."""


class Fragile(Module):
    """Weights of no size at width 0."""

    width: int

    def params(self):
        return {"w": Spec((8 // self.width,), (None,), Constant(1))}


class Odd(Module):
    """A module of the user's, with every kind of field."""

    width: int
    shape: tuple[int, ...] = (2, 3)
    scale: float = 0.1
    limit: float = math.inf
    dtype: np.dtype = np.dtype("bfloat16")
    start: Initializer = Normal(0.02)
    note: str = 'ü / "quoted"'
    inner: Module | None = None

    def params(self):
        return {
            "w": Spec(self.shape, (None,) * len(self.shape), self.start, self.dtype.name),
            "n": Spec((), (), Constant(3), "int32"),
            "on": Spec((4,), (None,), Constant(1), "bool"),
            "none": Spec((0, 2), (None, None), Constant(0)),
        }


MODELS = {
    "lem": LM(11, 8, LEM(8, dt=0.3)),
    "hybrid": LM(
        11,
        8,
        Stack((Block(LEM(8), SwiGLU(8)), Block(LEM(8, dt=1 / 3), MLP(8, 12), LayerNorm(8), 0.25)), 4, "dots"),
        False,
    ),
    "nested": Stack(Stack(Block(LEM(8), norm=RMSNorm(8, 1e-5)), 2), 3),
    "readout": SequenceModel(LEM(8, inputs=3), 2, inputs=5, readout="every"),
    "weightless": Bare(),
    "odd": Odd(4, inner=Odd(1, shape=())),
}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(y, jax.Array) and x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_what_was_saved_is_loaded_bit_for_bit(name, tmp_path):
    model = MODELS[name]
    extra = (Bare, Odd)
    params = init(model, jax.random.key(3))
    save(tmp_path / "deep" / "er", model, params)
    got, weights = load(tmp_path / "deep" / "er", extra)
    assert got == model and hash(got) == hash(model) and type(got) is type(model)
    same(params, weights)
    half = cast(model, params, jnp.bfloat16)
    save(tmp_path / "deep" / "er", model, half)  # over what is there
    same(half, load(str(tmp_path / "deep" / "er"), extra)[1])
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["model.json", "params.safetensors"]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "deep" / "er").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_mixer_has_a_place_in_the_table(name):
    mixer = MIXERS[name](16)
    value = json.loads(json.dumps(encode(mixer), allow_nan=False))
    assert decode(value) == mixer and value == encode(mixer)


def test_special_numbers_survive(tmp_path):
    w = jnp.array([np.nan, -np.inf, -0.0, 1e-40, 3.0, 1.0], jnp.float32).reshape(2, 3)
    model = Odd(1, dtype=np.dtype("float32"))
    params = {**init(model, jax.random.key(0)), "w": w}
    save(tmp_path, model, params)
    same(params, load(tmp_path, [Odd])[1])
    turned = {**params, "w": np.asarray(w).T.copy().T}  # another memory layout of the same values
    save(tmp_path, model, turned)
    same(params, load(tmp_path, [Odd])[1])


def test_the_weights_are_plain_safetensors(tmp_path):
    model = MODELS["lem"]
    params = init(model, jax.random.key(0))
    save(tmp_path, model, params)
    tensors = load_file(tmp_path / "params.safetensors")
    assert "body/memory" in tensors
    np.testing.assert_array_equal(tensors["body/memory"], params["body"]["memory"])


def test_float64_is_never_cut_short(tmp_path, x64):
    model = MODELS["lem"]
    params = jax.tree.map(lambda w: w.astype(jnp.float64) / 3, init(model, jax.random.key(0)))
    save(tmp_path, model, params)
    same(params, load(tmp_path)[1])
    with jax.enable_x64(False), pytest.raises(ConfigError, match=r"is float64: expected jax_enable_x64 to be on"):
        load(tmp_path)


# What cannot be written


def test_save_refuses_what_it_could_not_read_again(tmp_path):
    model = MODELS["lem"]
    params = init(model, jax.random.key(0))

    class Holder(Module):
        value: object = None

    class Sharp(Module):
        pass

    Sharp.__name__ = "LEM"
    lost = {k: v for k, v in params.items() if k != "norm"}
    more = {**params, "extra": jnp.zeros(2)}
    flat = {**params, "embed": params["embed"][0]}
    whole = {**params, "embed": params["embed"].astype(jnp.int32)}
    for m, p, match in (
        (model, lost, r"^params: norm/gain: missing"),
        (model, more, r"^params: extra: unknown"),
        (model, flat, r"^params: embed has shape \(8,\), expected \(11, 8\)"),
        (model, whole, r"^params: embed is int32, expected float32"),
        (
            model,
            {**params, "embed": params["embed"].astype(jnp.float8_e4m3fn)},
            r"^params: embed is float8_e4m3fn, exp",
        ),
        (Holder(lambda: 0), {}, r"^value holds a function: expected"),
        (Holder((1, np.float32(1))), {}, r"^value/1 holds a float32: expected"),
        (Holder(Holder), {}, r"^value holds the class Holder: expected"),
        (Holder({"a": 1}), {}, r"^value holds a dict: expected"),
        (Holder(Sharp()), {}, r"^classes: LEM: expected another name"),
    ):
        with pytest.raises(ConfigError, match=match):
            save(tmp_path / "new", m, p)
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    model = MODELS["lem"]
    params = init(model, jax.random.key(0))
    save(tmp_path, model, params)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, model, jax.tree.map(jnp.zeros_like, params))
    monkeypatch.undo()
    same(params, load(tmp_path)[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "params.safetensors"]


# What cannot be read


@pytest.fixture
def saved(tmp_path):
    model = MODELS["hybrid"]
    save(tmp_path, model, init(model, jax.random.key(0)))
    return tmp_path


def refused(folder, match, classes=()):
    with pytest.raises(ConfigError, match=match) as error:
        load(folder, classes)
    assert "\n" not in str(error.value)
    assert "model.json" in str(error.value) or "params.safetensors" in str(error.value)


def edit(folder, change):
    file = folder / "model.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


BLOCK = ("body", "blocks", 0)


def at(about, path):
    value = about["model"]
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("path", "key", "value", "match"),
    [
        ((), "vocab", "many", r"model\.json: vocab = 'many': expected int"),
        ((), "vocab", 0, r"model\.json: LM: LM\.vocab = 0: expected a positive"),
        ((), "vocab", True, r"model\.json: vocab = True: expected int"),
        ((), "tied", 1, r"model\.json: tied = 1: expected bool"),
        ((), "class", "Lm", r"model\.json: class = 'Lm': expected a class of the library \(.*LM.*\?\), or one given"),
        ((), "class", None, r"model\.json: class = None: expected a class of"),
        ((), "width", 12, r"model\.json: LM: LM\.body = .*: expected a mixer of width 12"),
        ((), "tied", True, r"params\.safetensors: readout: unknown"),
        (("body",), "depth", 3, r"model\.json: body: Stack\.depth = 3: expected a multiple"),
        (
            ("body",),
            "depth",
            8,
            r"params\.safetensors: body/block0/mixer/bias has shape \(2, 4, 8\), expected \(4, 4, 8\)",
        ),
        (("body",), "blocks", [], r"model\.json: body: "),
        (("body",), "blocks", {}, r"model\.json: body/blocks/class = None: expected a class of"),
        (BLOCK, "mixer", 3, r"model\.json: body/blocks/0/mixer = 3: expected Mixer"),
        (BLOCK, "mixer", {"class": "RMSNorm", "width": 8, "eps": 1e-6}, r"model\.json: body/blocks/0/mixer = .*: exp"),
        (BLOCK, "mixer", {"class": "os.system"}, r"model\.json: body/blocks/0/mixer/class = 'os\.system': expected"),
        (BLOCK, "norms", None, r"model\.json: body/blocks/0/norms: unknown key, expected those of Block: mixer, mlp"),
        (
            BLOCK,
            "dropout",
            {"dtype": "float33"},
            r"model\.json: body/blocks/0/dropout/dtype = 'float33': expected the n",
        ),
        ((*BLOCK, "mixer"), "dt", 0.5, r"model\.json: altered, or not of the same save"),
        ((*BLOCK, "mixer"), "dt", {"float": "inf"}, r"model\.json: body/blocks/0/mixer: LEM\.dt = inf: expected"),
        ((*BLOCK, "mixer"), "inputs", 2.5, r"model\.json: body/blocks/0/mixer/inputs = 2\.5: expected int \| None"),
        ((*BLOCK, "mlp"), "activation", "gelo", r"model\.json: body/blocks/0/mlp: GatedMLP\.activation = 'gelo'"),
        ((*BLOCK, "mlp"), "hidden", -8, r"(model\.json|params\.safetensors): "),
    ],
)
def test_a_bad_model_is_refused_by_path(saved, path, key, value, match):
    edit(saved, lambda about: at(about, path).__setitem__(key, value))
    refused(saved, match)


def test_a_missing_key_is_refused_by_path(saved):
    edit(saved, lambda about: at(about, (*BLOCK, "mixer")).pop("dt"))
    refused(saved, r"model\.json: body/blocks/0/mixer/dt: missing, expected every field of LEM")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a.pop("model"), "expected format 1 with the keys format, model, weights"),
        (lambda a: a.update(format=2), "expected format 1"),
        (lambda a: a.update(more=2), "expected format 1"),
        (lambda a: a.update(model=[1]), "model: expected a module"),
        (lambda a: a.update(weights={"file": "/etc/passwd", "sha256": ""}), "weights = .*: expected the file"),
        (lambda a: a["weights"].update(sha256="0" * 64), r"params\.safetensors: altered"),
    ],
)
def test_a_bad_head_is_refused(saved, change, match):
    edit(saved, change)
    refused(saved, match)


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"null", b"{", b"\xff\xfe", b'{"format": NaN}', b'{"format": 1, "format": 1}', b"[" * 100_000],
    ids=["empty", "list", "null", "cut", "no text", "nan", "twice", "deep"],
)
def test_a_file_that_is_no_model_is_refused(saved, text):
    (saved / "model.json").write_bytes(text)
    refused(saved, r"model\.json: ")


def test_missing_and_cut_files_are_refused(saved, tmp_path_factory):
    text, weights = saved / "model.json", saved / "params.safetensors"
    whole = text.read_bytes()
    for size in range(1, len(whole) - 2, 97):
        text.write_bytes(whole[:size])
        refused(saved, r"model\.json: truncated or altered")
    text.write_bytes(whole)
    data = weights.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    for size in (0, 5, 8, head // 2, head, head + 1, len(data) - 1):
        weights.write_bytes(data[:size])
        refused(saved, r"params\.safetensors: truncated or altered")
    weights.write_bytes(data + b"\0")
    refused(saved, r"params\.safetensors: truncated or altered")
    weights.unlink()
    refused(saved, r"params\.safetensors: No such file")
    weights.mkdir()
    refused(saved, r"params\.safetensors: Is a directory")
    refused(tmp_path_factory.mktemp("empty"), r"model\.json: No such file")


def test_any_flipped_bit_of_the_weights_is_noticed(saved):
    file = saved / "params.safetensors"
    data = file.read_bytes()
    for place in [*np.random.default_rng(0).integers(0, len(data), 60).tolist(), 0, 7, 8, 9, len(data) - 1]:
        bad = bytearray(data)
        bad[place] ^= 1
        file.write_bytes(bad)
        refused(saved, r"(params\.safetensors|model\.json): ")
    file.write_bytes(data)
    load(saved)


def test_other_weights_are_refused_by_path(saved):
    file = saved / "params.safetensors"
    tensors = load_file(file)
    embed = tensors["embed"]
    for change, match in (
        ({"embed": embed[:, :4].copy()}, r"embed has shape \(11, 4\), expected \(11, 8\)"),
        ({"embed": embed.astype(np.int32)}, r"embed is int32, expected float32"),
        ({"embed": embed.astype(ml_dtypes.float8_e4m3fn)}, r": "),
        ({"body/more": embed}, r"body/more: unknown"),
        ({"embed": None}, r"embed: missing"),
        ({"embed": embed + 1}, r"altered, or not of the same save"),
    ):
        save_file({k: v for k, v in {**tensors, **change}.items() if v is not None}, file)
        refused(saved, match)


def test_halves_of_two_saves_are_refused(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    model = MODELS["hybrid"]
    save(other, model, init(model, jax.random.key(1)))
    (other / "params.safetensors").replace(saved / "params.safetensors")
    refused(saved, r"params\.safetensors: altered, or not of the same save")


def test_classes_of_the_user_are_asked_for(tmp_path):
    model = MODELS["odd"]
    save(tmp_path, model, init(model, jax.random.key(0)))
    refused(tmp_path, r"model\.json: class = 'Odd': expected a class of")
    assert load(tmp_path, [Odd])[0] == model

    class LEM(Mixer):
        width: int

    with pytest.raises(ConfigError, match=r"classes: LEM: expected another name"):
        load(tmp_path, [Odd, LEM])
    with pytest.raises(ConfigError, match=r"classes: 3: expected a Module"):
        load(tmp_path, [3])
    save(tmp_path, Fragile(4), init(Fragile(4), jax.random.key(0)))
    edit(tmp_path, lambda about: about["model"].update(width=0))
    refused(tmp_path, r"model\.json: Fragile cannot declare its weights: ", [Fragile])
