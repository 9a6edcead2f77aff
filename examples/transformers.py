# %% [markdown]
# # Transformers and their memory
#
# Attention remembers everything it has read, word by word, and looks it up by content:
#
# $$y_i = \sum_{j \le i} \mathrm{softmax}_j\big(q_i^\top R(i - j)\, k_j / \sqrt d\big)\, v_j .$$
#
# $R(p)$ turns pair $m$ of a head by the angle $p f_m$, $f_m = b^{-2m/d}$, so that a score depends on the distance
# alone (rotary positions). Two things follow. The memory grows with the text; and distances that were never seen in
# training are angles that were never seen. This notebook loads pretrained weights, bends the angles, cuts the memory,
# and builds one kind of head by hand.

# %%
# %pip install -q jaxlm

# %%
import dataclasses
import os
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxlm
from jaxlm import LM, Attention, Block, Sampling, SinkAttention, Stack, SwiGLU
from jaxlm.bridges import huggingface
from jaxlm.data import DataFolder, tokenizer_in
from jaxlm.layers.rope import NTK, Interpolation, Llama3, YaRN
from jaxlm.mixers.sinks import LambdaAttention
from jaxlm.models import NGramLM
from jaxlm.models.sets import set_prompt
from jaxlm.module import rebuild
from jaxlm.train.fit import fit

SMOKE = False  # True: tiny sizes, to see that everything runs

# %% [markdown]
# ## Angles beyond the trained length
#
# A text $s$ times as long as those of training has slow pairs at angles that never occurred. Pressing all places
# together ($f/s$, *linear*) blurs neighbours. *NTK* leaves the fastest pair alone and divides the slowest by $s$;
# *Llama 3* and *YaRN* keep the pairs that turn often within the trained length $L$, divide those that hardly turn, and
# interpolate between them. Here $s = 8$, $L = 8192$, $b = 500\,000$, as in Llama 3.1.

# %%
base, k, s, length = 500_000.0, 128, 8.0, 8192
scalings = {
    "linear": Interpolation(s),
    "NTK": NTK(s),
    "Llama 3": Llama3(s, low=1.0, high=4.0, length=length),
    "YaRN": YaRN(s, length),
}
plain = base ** (-2 * np.arange(k // 2) / k)
plt.figure()
for name, scaling in scalings.items():
    plt.semilogx(2 * np.pi / plain, scaling.rates(base, k, length) / plain, label=name)
plt.axvline(length, color="0.7", ls="--", label="trained length")
plt.gca().set(xlabel="wavelength of the pair (tokens)", ylabel="rate, as a share of the old one")
plt.legend()
plt.show()

# %% [markdown]
# ## Weights come and go
#
# A model of the Llama family is `LM(Stack(Block(Attention, SwiGLU)))`. It is written as a Hugging Face folder and read
# back, to the bit; GPT-2 and GPT-NeoX (Pythia) go the same way. `huggingface.load("path/to/gpt2")` is all it takes
# for downloaded weights.

# %%
width = 32
model = LM(64, width, Stack(Block(Attention(width, kv_heads=1), SwiGLU(width)), 2), tied=False, scale=1.0)
params = jaxlm.init(model, jax.random.key(0))
with tempfile.TemporaryDirectory() as folder:
    huggingface.save(folder, model, params, {"max_position_embeddings": 512})
    print((Path(folder) / "config.json").read_text())
    again, back = huggingface.load(folder)
same = jax.tree.map(lambda a, b: bool((a == b).all()), params, back)
print("every weight the same, to the bit:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## A pretrained model tells a story, and goes on telling
#
# stories260K (A. Karpathy) has 260,032 weights, has learned from texts of at most 512 tokens, and is read from the data
# directory (`JAXLM_DATA`) if it is there. We let it write eight stories and then read them as one text of 2,048 tokens.
# Beyond 512, full attention meets unknown distances: from 0.94 nats a token it rises to 1.84. With a window of 252 the
# same weights go on for ever, with a memory of fixed size, at 0.82 to 0.93. Large models also need the first tokens, on
# which their softmax has learned to rest: four *sinks* (StreamingLLM), or the first tokens at a limited distance
# (LM-Infinite). This small one does not care, and costs the same with them.

# %%
data = DataFolder(Path(os.environ.get("JAXLM_DATA", "data")))
if data.has("models/stories260K") and not SMOKE:
    place = data.file("models/stories260K")
    loaded: Any = huggingface.load(place)
    teller, weights = loaded
    tokenizer = tokenizer_in(place)
    begin = jnp.full((8, 1), tokenizer.bos, jnp.int32)
    pieces, _ = jaxlm.generate(teller, weights, begin, 255, jax.random.key(1), Sampling(temperature=0.7))
    print(tokenizer.decode(np.asarray(pieces[0])))
    text = jnp.concatenate([begin, pieces], axis=1).reshape(1, -1)
    old = teller.body.blocks.mixer
    fields: dict[str, Any] = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)} | {"window": 252}
    ways = {
        "everything": old,
        "window": Attention(**fields),
        "window and 4 sinks": SinkAttention(**fields, sinks=4),
        "window and 4 at a limited distance": LambdaAttention(**fields, sinks=4),
    }
    plt.figure()
    for name, mixer in ways.items():
        reader = rebuild(teller, lambda m, mixer=mixer: mixer if isinstance(m, Attention) else m)
        nats = jax.jit(lambda p, x, m=reader: -jax.nn.log_softmax(m.apply(p, x)[0][0, :-1]))(weights, text)
        nats = np.asarray(nats)[np.arange(text.shape[1] - 1), np.asarray(text[0, 1:])]
        size = max(1, len(nats) // 16)
        blocks = nats[: len(nats) // size * size].reshape(-1, size).mean(axis=1)
        plt.plot(size * (np.arange(len(blocks)) + 0.5), blocks, label=name)
        print(f"{name}: {nats.mean():.3f} nats a token, {nats[len(nats) // 2 :].mean():.3f} in the second half")
    plt.axvline(512, color="0.7", ls="--")
    plt.gca().set(xlabel="token", ylabel="nats a token")
    plt.legend()
    plt.show()
else:
    print("No stories: put config.json, model.safetensors and tok512.bin into models/stories260K below JAXLM_DATA.")

# %% [markdown]
# ## Heads that copy, by hand
#
# Much of what attention learns in context is one thing: find what followed when this token came last time. An *n-gram
# head* has it built in: $A_{ij} \propto [x_{i-r} = x_{j-1-r},\ r < n]$, two learned maps around it, and no attention
# weights at all. Akyürek et al. (2024) measure up to 6.7 % lower perplexity of a 340M model with them. Below, each text
# has a random dictionary of its own: the next token is a function of the last one, nine times of ten. An attention
# block has to find out how to look things up; one with a 1-gram head in front knows.

# %%
kinds, t, steps = 16, 16 if SMOKE else 96, 4 if SMOKE else 300
small = Block(Attention(width), SwiGLU(width))
models: dict[str, LM] = {"1-gram head, 1 block": NGramLM(kinds, width, small, orders=(1,))}
if not SMOKE:
    models["2 blocks of attention"] = LM(kinds, width, Stack(small, 2))


def texts(key, rows=32):
    a, b, c, d = jax.random.split(key, 4)
    follows = jax.vmap(lambda k: jax.random.permutation(k, kinds))(jax.random.split(a, rows))
    noise, lucky = jax.random.randint(b, (t, rows), 0, kinds), jax.random.bernoulli(c, 0.9, (t, rows))

    def step(token, now):
        token = jnp.where(now[1], follows[jnp.arange(rows), token], now[0])
        return token, token

    return jax.lax.scan(step, jax.random.randint(d, (rows,), 0, kinds), (noise, lucky))[1].T


def nats_of(model, params, tokens):
    logp = jax.nn.log_softmax(model.apply(params, tokens[:, :-1])[0])
    return -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=2)[:, :, 0]


plt.figure()
for name, copier in models.items():
    trained = fit(
        jax.random.split(jax.random.key(0), 1),
        lambda key, m=copier: jaxlm.init(m, key),
        lambda params, key, step, m=copier: nats_of(m, params, texts(key)).mean(),
        optax.adam(3e-3),
        steps=steps,
        every=steps,
        watch=lambda params, key, m=copier: {"nats": nats_of(m, params, texts(key, 256)).mean(axis=0)},
    )
    nats = trained.watched["nats"][-1, 0]
    print(f"{name}: {nats[-t // 4 :].mean():.2f} nats a token at the end of the text")
    plt.plot(1 + np.arange(t - 1), nats, label=name)
best = -(0.9 + 0.1 / kinds) * np.log(0.9 + 0.1 / kinds) - 0.1 * (kinds - 1) / kinds * np.log(0.1 / kinds)
plt.axhline(best, color="0.7", ls="--", label="dictionary known")
plt.gca().set(xlabel="token", ylabel="nats a token")
plt.legend()
plt.show()

# %% [markdown]
# ## A prompt without an order
#
# The answer to a multiple-choice question should not depend on the order of the options. *Set-based prompting*
# gives each option the same places and hides it from the others: with the same weights, the logits become the same
# for every order, exactly.

# %%
loud = jax.tree.map(lambda w: 2 * w, params)
question, options, rest = [3, 1, 4], [[15, 9], [2, 6], [5, 35]], [8, 9, 7]
run = jax.jit(lambda m, params, tokens: m.apply(params, tokens)[0][:, -1], static_argnums=0)
orders = (options, options[::-1])
asked = [set_prompt(model, question, order, rest) for order in orders]
one, two = (np.asarray(run(reader, loud, tokens)) for reader, tokens in asked)
print("as a set, greatest difference of a logit:", np.abs(one - two).max())
plainly = [np.array([[*question, *chain(*order), *rest]], np.int32) for order in orders]
one, two = (np.asarray(run(model, loud, tokens)) for tokens in plainly)
print("as a text, greatest difference of a logit:", np.abs(one - two).max())

# %% [markdown]
# ## What to try next
#
# - `huggingface.load` on GPT-2 or Pythia, then `jaxlm sample --pretrained FOLDER --prompt "..."`.
# - `rebuild` a loaded Llama with `Rope(base, scaling=YaRN(4.0, 512))` and read the long text again.
# - `orders=(1, 2, 3)`, or texts whose next token depends on the last two.
