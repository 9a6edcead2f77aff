"""Words by their characters: the CNN in numpy, the laws of the language model, its sampled loss, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import placing, running
from laws.subject import Subject
from tolerance import close

from jaxlm.blocks import Stack
from jaxlm.codec import decode, encode
from jaxlm.data.errors import DataError
from jaxlm.data.spelling import BEGIN, END, spell
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.generate import generate, score
from jaxlm.layers.char_cnn import CharCNN
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.char_lm import CharLM
from jaxlm.module import count, init
from jaxlm.ops.sampled import LogUniform, sampled_nats
from jaxlm.train.fit import fit

CNN = CharCNN(8, letter=4, filters=((1, 2), (3, 4)), highways=2)
WORDS = tuple(first + last for first in ("", "sing", "walk", "öl") for last in ("a", "s", "ing", "ed", "er", "ers"))
BODY = Stack(LSTM(8, cells=12), 2)  # with projection, as the paper's
FULL = CharLM(WORDS, BODY, CNN, letters=10)
MODEL = CharLM(WORDS, BODY, CNN, CharCNN(8, letter=4, filters=((2, 4),), highways=1), 4, 6, letters=10)


def test_words_are_spelt_in_bytes():
    assert spell(["ab", "", "ö"], 5).tolist() == [
        [BEGIN, 98, 99, END, 0],
        [BEGIN, END, 0, 0, 0],
        [BEGIN, 0xC3 + 1, 0xB6 + 1, END, 0],
    ]
    assert spell(["singing"], 5).tolist() == [[BEGIN, ord("s") + 1, ord("i") + 1, ord("n") + 1, END]]
    with pytest.raises(DataError, match="room = 2"):
        spell(["a"], 2)


def formula(cnn, p, word):
    """The layer's equations for one word, place by place; behind the word nothing is looked at."""
    p = jax.tree.map(np.float64, p)
    letters = [c for c in word if c > 0]
    u = np.concatenate([p["letters"][letters], np.zeros((9, cnn.letter))])
    m = []
    for size, many in cnn.filters:
        answers = [np.zeros(many)]
        for i in range(len(letters)):
            answers.append(u[i : i + size].ravel() @ p[f"conv{size}"]["kernel"] + p[f"conv{size}"]["bias"])
        m.append(np.max(answers, axis=0))
    m = np.concatenate(m)
    for i in range(cnn.highways):
        h = p[f"highway{i}"]
        g = 1 / (1 + np.exp(-(m @ h["gate"] + h["gate_bias"])))
        m = g * np.maximum(m @ h["map"] + h["map_bias"], 0) + (1 - g) * m
    return m @ p["project"] + p["project_bias"]


def weights(module, seed=0):
    rng = np.random.default_rng(seed)
    params = init(module, jax.random.key(seed))
    return jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def cnn():
    return weights(CNN), jax.jit(CNN.apply)


def test_cnn_is_its_equations(cnn):
    params, apply = cnn
    chars = np.random.default_rng(0).integers(1, 259, (3, 5, 7)).astype(np.int32)
    chars[np.arange(7)[None, None] >= np.arange(15).reshape(3, 5, 1) % 8] = 0  # lengths 0 to 7
    want = np.array([formula(CNN, params, word) for word in chars.reshape(-1, 7)]).reshape(3, 5, 8)
    close(apply(params, chars), np.float32(want))
    with pytest.raises(ShapeError, match="chars"):
        CNN.apply(params, jnp.zeros((3, 7)))


def test_characters_that_are_none_change_nothing(cnn):
    params, apply = cnn
    short, long = spell(WORDS, 9), spell(WORDS, 14)
    want = apply(params, short)
    close(apply(params, long), want)
    other = {**params, "letters": params["letters"].at[0].set(9.0)}
    assert np.array_equal(apply(other, short), want)
    different = np.unique(np.round(want, 4), axis=0)
    assert len(different) > len(WORDS) / 2  # and characters that are there do


def test_counts():
    """Kernels and biases, characters, highways with two square maps each, the projection."""
    assert count(CNN) == (4 * 2 + 2) + (12 * 4 + 4) + 259 * 4 + 2 * 2 * (6 * 6 + 6) + (6 * 8 + 8)
    assert count(FULL) - count(CNN) - count(BODY) == len(WORDS) * 8
    assert count(MODEL) - count(CNN) - count(MODEL.softmax) - count(BODY) == len(WORDS) * 4 + 4 * 8


def test_it_is_cut_packed_and_placed():
    """Its body is under all the laws; what reads and writes words looks at one token at a time."""
    subject = Subject(MODEL, len(WORDS))
    running.cut(subject)
    running.packing(subject)
    placing.placed(subject)
    placing.types(subject)


@pytest.fixture(scope="module")
def model():
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, len(WORDS), (2, 9)), jnp.int32)
    return weights(MODEL), tokens


def test_logits_are_products_of_the_body_with_the_words_own_rows(model):
    params, tokens = model
    x = np.array([formula(CNN, params["cnn"], c) for c in spell(WORDS, 10)], np.float32)[np.asarray(tokens)]
    h = jax.jit(BODY.apply)(params["body"], jnp.asarray(x))[0]
    rows = np.array([formula(MODEL.softmax, params["softmax"], c) for c in spell(WORDS, 10)])
    rows = rows + np.float64(params["own"]) @ np.float64(params["lift"])
    got, state = jax.jit(MODEL.apply)(params, tokens)
    close(got, np.float32(np.float64(h) @ rows.T))
    spelt = jnp.asarray(spell(WORDS, 16))[tokens]  # the same words by their characters, with more room
    close(jax.jit(MODEL.apply)(params, spelt), (got, state))


def test_words_outside_the_vocabulary_are_read(model):
    params, _ = model
    known, unknown = (jnp.asarray(spell(w, 10))[None] for w in (["walked", "sings"], ["walker", "wings"]))
    assert known.shape == (1, 2, 10)
    a, b = (jax.jit(MODEL.apply)(params, x)[0] for x in (known, unknown))
    assert np.isfinite(b).all() and np.abs(a - b).max() > 1e-3


def test_the_sampled_loss_is_used_with_a_key_alone(model):
    params, tokens = model
    before, targets, key = tokens[:, :-1], tokens[:, 1:], jax.random.key(3)
    weights = jnp.ones((2, 8)).at[0, 3].set(0.0)
    whole = CharLM(**{**vars_of(MODEL), "samples": len(WORDS)})

    @jax.jit
    def both(params):
        """Ours, and from the hidden stream and the whole readout."""
        cases = ((MODEL, None), (MODEL, key), (whole, key))
        ours = [m.loss(params, before, targets, weights, key=k)[0] for m, k in cases]
        x, rows = MODEL.hidden(params, before)[0], MODEL.readout(params).T
        full = optax.softmax_cross_entropy_with_integer_labels(x @ rows.T, targets)
        few = sampled_nats(x, lambda i: rows[i], targets, LogUniform(len(WORDS), 6), jax.random.split(key)[1])
        return ours, [(jnp.sum(nats * weights), jnp.sum(weights)) for nats in (full, few, full)]

    ours, want = both(params)
    close(ours, want)
    assert float(ours[0][1]) == 15 and abs(float(ours[0][0] - ours[1][0])) > 0.1


def vars_of(module):
    return {f: getattr(module, f) for f in module.__dataclass_fields__}


def test_it_is_a_language_model_like_the_others(model):
    params, tokens = model
    assert decode(encode(MODEL)) == MODEL
    written, session = generate(MODEL, params, tokens, 4, jax.random.key(0))
    more, _ = generate(MODEL, params, None, 2, jax.random.key(0), state=session)
    assert written.shape == (2, 4) and more.shape == (2, 2) and int(written.max()) < len(WORDS)
    assert score(MODEL, params, tokens).shape == tokens.shape


def test_it_learns_from_samples():
    """The next word is known: its stem is the word's, its ending the one after. Learned from a third of the classes."""
    cnn = CharCNN(16, letter=8, filters=((2, 16), (3, 16)), highways=1)
    model = CharLM(WORDS, LSTM(16), cnn, cnn, 4, samples=8, letters=10)
    follow = (np.arange(len(WORDS)) // 6) * 6 + (np.arange(len(WORDS)) + 1) % 6

    def batch(key, n):
        first = jax.random.randint(key, (n,), 0, len(WORDS))
        rows = [first]
        for _ in range(8):
            rows.append(jnp.asarray(follow)[rows[-1]])
        rows = jnp.stack(rows, axis=1)
        return rows[:, :-1], rows[:, 1:], jnp.ones((n, 8))

    def loss(params, key, step):
        data, own = jax.random.split(key)
        (nats, n), _ = model.loss(params, *batch(data, 8), key=own)
        return nats / n

    def watch(params, key):
        (nats, n), _ = model.loss(params, *batch(key, 32))
        return {"full": nats / n}

    # eight sampled classes make a loud gradient: a quicker rate wanders, and where it ends is a matter of rounding
    keys = jax.random.split(jax.random.key(0), 3)
    found = fit(keys, lambda key: init(model, key), loss, optax.adam(5e-3), steps=300, every=300, watch=watch)
    assert found.watched["full"][-1].max() < 0.3 < np.log(len(WORDS)), found.watched


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: CharCNN(0), "width"),
        (lambda: CharCNN(4, filters=()), "filters"),
        (lambda: CharCNN(4, filters=((2, 3), (2, 4))), "filters"),
        (lambda: CharCNN(4, highways=-1), "highways"),
        (lambda: CharLM((), LSTM(8), CNN), "words"),
        (lambda: CharLM(WORDS, LSTM(6), CNN), "cnn"),
        (lambda: CharLM(WORDS, LSTM(8), CharCNN(8, chars=100)), "cnn"),
        (lambda: CharLM(WORDS, LSTM(6, inputs=8), CNN, CNN), "softmax"),
        (lambda: CharLM(WORDS, LSTM(8), CNN, correction=3), "correction"),
        (lambda: CharLM(WORDS, LSTM(8), CNN, samples=25), "samples"),
        (lambda: CharLM(WORDS, LSTM(8), CNN, letters=2), "letters"),
    ],
)
def test_bad_fields_are_named(make, field):
    with pytest.raises(ConfigError, match=rf"\.{field} = "):
        make()
