# %% [markdown]
# # Birth of a transformer
# How an induction head is learned, seen as associative memories (Bietti et al. 2023,
# [arXiv 2306.00802](https://arxiv.org/abs/2306.00802)). A two-layer transformer learns to continue `... a X ... a` with
# `X`; each of its three trained matrices is a sum of outer products, which can be written by hand, and read back.

# %%
# %pip install -q jaxlm

# %% [markdown]
# ## The task and the model
# A sequence is a Markov chain with bigrams $\pi_b$, but for five *trigger* tokens $q_k$: in each sequence, $q_k$ is
# always followed by an output $o_k$ drawn for that sequence alone. After a trigger was seen once, only the context can
# tell what follows it.
#
# With $x_t = w_E(z_t) + p_t$, each layer is one head of attention without norms,
# $$x_t \leftarrow x_t + W_O W_V \sum_{s \le t} \mathrm{softmax}_s\big(x_t^\top W_K x_s / \sqrt d\big)\, x_s,
# \qquad \text{logits} = W_U x_t .$$
# Embeddings, values and readout stay random. Trained are $W_K^1$, $W_K^2$, $W_O^2$, and the ideal ones are
# $$W_K^1 = \sum_t p_t p_{t-1}^\top, \quad W_K^2 = \sum_k w_E(q_k)\,\big(W_O^1 W_V^1 w_E(q_k)\big)^\top, \quad
# W_O^2 = \sum_k w_U(k)\,\big(W_V^2 w_E(k)\big)^\top :$$
# look back by one; look for the token that followed what I am; copy it.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxlm
from jaxlm.data.bigrams import random_bigrams
from jaxlm.memory.bigram_task import BigramTask
from jaxlm.memory.induction import InductionTransformer
from jaxlm.papers.birth import optimizer
from jaxlm.taps import capture
from jaxlm.train.fit import fit

SMOKE = False  # True: tiny sizes, to see that everything runs

# %%
vocab, width, length, batch, steps, every = (32, 128, 64, 64, 250, 10) if not SMOKE else (12, 32, 16, 8, 4, 2)
text = random_bigrams(seed=0, vocab=vocab, concentration=0.1)
pi_u, pi_b = jnp.float32(text.unigram), jnp.float32(text.follow)
task = BigramTask(length, triggers=5)
triggers = jnp.array(text.frequent(5))
model = InductionTransformer(vocab, width, length)

# %% [markdown]
# ## Written by hand
# No training at all: the three outer products are put into a wide model, and it solves the task. (Not quite always:
# the first token of a sequence can only look at itself, so that a trigger there seems to be followed by itself.)

# %%
wide = InductionTransformer(vocab, 4 * width, length)


@jax.jit
def by_hand(key):
    params = wide.ideal(jaxlm.init(wide, key), triggers)
    return wide.measure(params, task.draw(key, pi_u, pi_b, 64))


print({name: round(float(value), 3) for name, value in by_hand(jax.random.key(0)).items()})

# %% [markdown]
# ## Learned
# SGD with momentum from a random start. At every evaluation the matrices are asked what they hold: *recall* is the
# share of the ideal associations that are a matrix's strongest.


# %%
def loss(params, key, step):
    return model.loss(params, task.draw(key, pi_u, pi_b, batch))


def watch(params, key):
    return model.measure(params, task.draw(key, pi_u, pi_b, 64)) | model.recall(params, triggers)


def tell(fraction, accuracy, **_):
    if round(100 * fraction) % 20 == 0:
        print(f"{fraction:4.0%}   in-context accuracy {accuracy:.2f}")


found = fit(
    jax.random.split(jax.random.key(0), 1),
    lambda key: jaxlm.init(model, key),
    loss,
    optimizer(model, rate=0.1, momentum=0.9, decay=1e-4),
    steps=steps,
    every=every,
    watch=watch,
    tell=tell,
)
seen = {name: value[:, 0] for name, value in found.watched.items()}
params = jax.tree.map(lambda x: x[0], found.params)

# %% [markdown]
# ## The order of events

# %%
at = every * (1 + np.arange(len(seen["accuracy"])))
_, taps = jax.jit(capture(model.apply, ["attn.probs"]))(params, task.draw(jax.random.key(5), pi_u, pi_b, 1).inputs)
figure, (a, b, c) = plt.subplots(1, 3, figsize=(14, 4))
a.plot(at, seen["accuracy"], "k", label="in-context accuracy")
a.plot(at, seen["previous"], "C0--", label="layer 1 looks back by one")
a.plot(at, seen["copied"], "C1--", label="layer 2 looks at the output")
for name, label, style in (("out2", "$W_O^2$", "C1"), ("key2", "$W_K^2$", "C2"), ("key1", "$W_K^1$", "C0")):
    b.plot(at, seen[name], style, label=f"recall of {label}")
for axes, title in ((a, "What it does"), (b, "What its matrices hold")):
    axes.set(title=title, xlabel="iteration", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
c.imshow(np.asarray(taps["attn.probs"][0])[0], cmap="Blues", vmax=1)
c.set(title="Attention of layer 1: one back", xlabel="key", ylabel="query")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The paper's value beside ours
# The paper's order is $W_O^2$ and $W_K^2$ first, then $W_K^1$, which needs both. The run at the paper's size (65
# characters of tiny Shakespeare, 256 tokens) is `jaxlm reproduce birth`.

# %%
held = {name: seen[name] >= 0.5 for name in ("out2", "key2", "key1")}
first = {name: int(at[np.argmax(h)]) if h.any() else None for name, h in held.items()}
print("paper:  W_O^2, W_K^2 before W_K^1; in-context accuracy near 1")
print(f"ours:   recall 0.5 at iteration {first}; in-context accuracy {seen['accuracy'][-1]:.2f}")

# %% [markdown]
# ## What to try next
# - `optimizer(..., unfreeze=(0, 100, 200, 0))` trains $W_O^2$, then $W_K^2$, then $W_K^1$: the stages, one by one.
# - `BigramTask(length, 5, fixed=False)`: random triggers, so that $W_K^2$ must hold every token.
# - `outputs="bigram"`: outputs that the language makes likely anyway; the copying matrix is learned more slowly.
# - `InductionTransformer(..., feed=True)` and `model.loss(..., head_only=False)`: $W_F$ learns the language's bigrams
#   long before the context's.
