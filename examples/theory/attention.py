# %% [markdown]
# # What attention finds, loses, and looks away from
# Four experiments: which topics a layer learns from masked words, what a decoder's last token still knows of a long
# past, why so much attention goes to the first token, and what attention gives an MLP to read. Each is a module of
# `jaxlm.theory`.

# %%
# %pip install -q jaxlm

# %%
import argparse
import dataclasses
import inspect

import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxlm.analysis.topics import block_optimum, optimum
from jaxlm.data.topics import Masking, Topics
from jaxlm.papers import Lab
from jaxlm.theory import attention_regions, first_token_sinks, glasses, topic_structure

SMOKE = False  # True: tiny sizes, to see that everything runs


def show(module, **changes):
    """Run an experiment, print its claims beside their bands, draw its figure."""
    settings = module.BUDGETS["smoke"] if SMOKE else dataclasses.replace(module.BUDGETS["cpu"], **changes)
    result = module.run(settings, Lab(jax.random.key(0)))
    for c in result.claims:
        print(f"{c.name:75} {c.ours:10.4g}   [{c.low:g}, {c.high:g}]")
    module.draw(plt.figure(layout="constrained"), result.series)
    plt.show()


# %% [markdown]
# ## Topics
# Documents take their words from a few topics, some words are masked, and one layer of attention has to guess them.
# What do its embeddings, and its attention, know of topics in the end?
#
# Under uniform attention a layer reads the shares $m$ of words and answers $Wm$. Of all places $q$ show their word, $r$
# a random one, $k$ a mask. For long documents of $T$ topics with $v$ words each, the best $W$ has entries $a$ within a
# topic, $b$ between topics, $c$ for the mask:
# $$a - b = \frac{1}{q v}, \qquad (q + r)\,b + \frac{r}{q v T} + k\,c = 0 .$$
# Documents of $n$ words have $W_n = \mathbb E[y m^\top]\,\mathbb E[m m^\top]^{-1}$, and embeddings $E$ that are read
# out by themselves can reach it: $E^\top E = W_n$. With $W$ in place it pays to look at the topic of the word that is
# asked for. (Li, Li and Risteski 2023.)

# %%
topics, masking = Topics(), Masking()
print("a, b, c:", np.round(block_optimum(topics, masking), 4))
print("own word, own topic, another topic, from 128 words:", np.round(optimum(topics, masking, 128)[0, [0, 1, 99]], 4))

# %%
show(topic_structure, seeds=2, steps=300, documents=4000)

# %% [markdown]
# Try `taken=1` in `Topics`: what is left for $b$? Try short documents, or a `Masking` that keeps no word: does
# attention still look at its own topic?
#
# ## Glasses
# A row of $n$ equal tokens and one of $n + 1$, then a last token. Can a decoder's last representation tell them apart?
#
# Averages of the past forget numbers: two rows of $n$ and $n + 1$ ones before a zero have means that differ by
# $$\frac{n + 1}{n + 2} - \frac{n}{n + 1} = \frac{1}{(n + 1)(n + 2)},$$
# and a first token that changes is one of $n + 1$ terms. A number format of $p$ bits cannot tell the means apart from
# about $n = 2^{p/2}$ on, whatever reads them. (Barbero et al. 2024.)

# %%
show(glasses, seeds=1, lengths=(8, 16, 32, 64, 128), steps=500)

# %% [markdown]
# Try a third token after every fourth one in `glasses.repeats`: the paper's cure. Try `ALiBi` as the position.
#
# ## The first token
# Trained decoders give much of their attention to a first token that says nothing. Is it a brake, without which tokens
# would be mixed until they are all the same?
#
# Let every token look at a first one of value 0 with weight $s$ and evenly at its past with $1 - s$. After $L$ layers
# the part of others in token $i$ is a sum over paths,
# $$\sum_{k=1}^{L} \binom{L}{k} (1 - s)^k
# \Big(1 - \tfrac1i\, h_{k-1}\big(1, \tfrac12, \dots, \tfrac1i\big) - i^{-k}\Big),$$
# $h$ the complete homogeneous symmetric polynomials. It grows with the context, and $s$ holds it down.
# (Barbero et al. 2025.)

# %%
s = np.linspace(0, 1, 41)
some = (0.0, 0.5, 0.8, 0.95)
for tokens in (32, 64, 128):
    plt.semilogy(s[:-1], first_token_sinks.influence(tokens, 6, s)[:-1], label=f"{tokens} tokens")
for sink in some:
    layers = first_token_sinks.mixing(64, 6, sink)
    plt.plot(sink, (layers.sum() - np.trace(layers)) / 63, "ko")
plt.xlabel("weight s on the first token")
plt.ylabel("influence of others")
plt.legend()
plt.show()

# %% [markdown]
# A small decoder reads a Python source, letter by letter, in documents of 32 and of 128 letters behind a begin token.
# How much attention does that token get, and how far does a changed letter spread with it and without it?

# %%
settings = dataclasses.replace(first_token_sinks.BUDGETS["smoke" if SMOKE else "cpu"], seeds=1)
if not SMOKE:
    settings = dataclasses.replace(settings, steps=600)
_, letters = np.unique(np.frombuffer(inspect.getsource(argparse).encode(), np.uint8), return_inverse=True)
seen = first_token_sinks.train(settings, letters, Lab(jax.random.key(0)))
for i, context in enumerate(settings.contexts):
    print(f"documents of {context}: mean weight on the begin token {seen['weight'][-1, i].mean():.3f}")
    print("    a change spreads, by layers, with it", seen["kept"][-1, i, 0], "and without", seen["dropped"][-1, i, 0])

# %% [markdown]
# Try more `steps` and more `layers`: when does the first sink appear, and in which layer? Try `look` with a begin token
# that training never saw first.
#
# ## Regions
# An MLP of ReLU units is affine on pieces of its input. Do more heads and a longer context give one and the same MLP
# more of them, and a better fit?
#
# A head's output is a convex combination of its $t$ values of size $k$, and heads add up: what comes out lies in the
# Minkowski sum of $h$ hulls, and $f$ units cut it into
# $$\text{regions} \le \sum_{j \le m} \binom fj, \qquad m = \min\big(d,\; h \min(t - 1, k)\big) .$$
# When the last token goes round a circle, softmax lays the output along a loop. A unit with Gaussian weights and biases
# of spread $\sigma$ cuts it $\ell / \pi$ times in the mean, $\ell$ the length of $(z, \sigma)$ seen from $0$ (Cauchy
# and Crofton). (Cosentino and Shekkizhar 2024.)

# %%
show(attention_regions, seeds=1, sharp=(4.0,), few_tokens=(2, 3), tokens=(2, 8), grid=1024, points=128, steps=300)

# %% [markdown]
# Try `sharp=(1.0,)`: softmax averages, and loops hardly grow. Try `frequency=2` and `frequency=32`: which sines need
# more heads?
