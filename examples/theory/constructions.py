# %% [markdown]
# # Constructions
# What networks are, exactly: weights that are written and not learned, identities that hold to the last digit, and what
# they say about networks that were trained. Six experiments; each is also `jaxlm reproduce NAME`.

# %%
# %pip install -q jaxlm

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxlm
from jaxlm.analysis.detached import detached_jacobian
from jaxlm.analysis.implicit_update import float64
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM
from jaxlm.papers.record import plain
from jaxlm.papers.result import Lab
from jaxlm.theory import (
    continuous_time,
    implicit_update,
    ngram_transformer,
    short_programs,
    universal_attention,
)
from jaxlm.theory import (
    detached_jacobian as locally_linear,
)

SMOKE = False  # True: tiny sizes, to see that everything runs


def show(module, settings):
    """Run an experiment, print what it found, draw it."""
    result = module.run(settings, Lab(jax.random.key(0)))
    for claim in result.claims:
        print(f"{claim.ours:10.3g}   {claim.name}")
    figure = plt.figure(layout="constrained", figsize=(8, 4))
    module.draw(figure, plain(result.series))
    plt.show()


# %% [markdown]
# ## N-gram models as transformers
# Can a transformer hold every conditional of an n-gram model exactly, and what does softmax cost it? (Svete & Cotterell
# 2024)
#
# The residual stream holds the token as one-hot, its place $(t, t^2, 1)$, and a slot for each of the $n-1$ last tokens.
# A head with query $\beta\,(2(t-h), -1)$ and key $(j, j^2)$ has scores
# $$\beta\big(2(t-h)\,j - j^2\big) = \beta\big((t-h)^2 - (j-t+h)^2\big),$$
# largest at $j = t-h$ alone: hard attention copies that token, softmax leaks $2e^{-\beta}$ to its neighbours. For each
# history $H$ one hidden unit, $\mathrm{ReLU}\big(\sum_h [\text{token}_h = H_h] - (n-2)\big)$, writes
# $\log p(\cdot \mid H)$.

# %%
small = ngram_transformer.Settings(order=3, symbols=3, length=5, strings=100)
show(ngram_transformer, ngram_transformer.BUDGETS["smoke"] if SMOKE else small)

# %% [markdown]
# *What to try next:* `compile_ngrams(table, length)` of `jaxlm.analysis.ngram_compiler` takes any table, such as the
# conditionals of a Kneser-Ney model of characters; `layers=True` needs one head a layer.
#
# ## A context is a change of weights
# Is what a block does with a context the same as a rank-one change of its MLP's weights? (Dherin et al. 2025)
#
# The MLP reads $a$ of a token alone and $c$ of the same token after a context; its first map is $W$. Then
# $$\mathrm{MLP}_W(c) = \mathrm{MLP}_{W + \Delta W}(a), \qquad \Delta W = \frac{W (c - a)\, a^\top}{\|a\|^2},$$
# and with a skip connection the bias that the MLP gives changes by $c - a$ of the residual stream. Token by token this
# is gradient descent: $W_{i+1} = W_i - h\,\nabla_W \mathrm{tr}(\Delta_i^\top W)$ with $\Delta_i = W (c_i - c_{i+1})\,
# a^\top$ and $h = 1 / \|a\|^2$. It holds for whatever mixes along time.

# %%
mixer = "Attention"  # or GLA, DeltaNet, LEM, SRWM, LSTM, ...
settings = implicit_update.Settings(width=8 if SMOKE else 32, hidden=8 if SMOKE else 64)
block = implicit_update.block_of(mixer, settings)
with jax.enable_x64(True):
    tokens = jax.random.normal(jax.random.key(1), (4 if SMOKE else 33, settings.width), jnp.float64)
    weights = float64(jaxlm.init(block, jax.random.key(0)))
    found = jax.device_get(implicit_update.exact(block, weights, tokens[:-1], tokens[-1]))
print("with a prompt, and alone with changed weights:", np.abs(found["block"] - found["patched"]).max())
print("by gradient descent, a token a step:          ", np.abs(found["plain"][1:] - found["descended"]).max())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
ends = [found["block"].min(), found["block"].max()]
left.plot(ends, ends, "k", linewidth=1, label="the theorem")
left.plot(found["block"].ravel(), found["patched"].ravel(), ".", label="outputs")
left.set(xlabel="with a prompt", ylabel="alone, with changed weights")
i = np.arange(1, len(found["step"]) + 1)
right.loglog(i, found["step"], "o", label="measured")
right.loglog(i, 2 * found["step"][0] / (i + 1), "k--", label="an average over tokens")
right.set(xlabel="token of the prompt", ylabel="length of the step")
for axes in (left, right):
    axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *What to try next:* other mixers in the cell above: what do the steps of a recurrent cell look like? `jaxlm reproduce
# implicit-update` trains blocks to do linear regression in context, and patches those.
#
# ## Locally linear
# Is what a language model says at one input a linear map of its input embeddings? (Golden 2025)
#
# Hold at their values what weighs the stream: attention's probabilities $P$, the root mean squares, the gates
# $\mathrm{SiLU}(W_g x)$. What is left is linear, $P V$, $x / \mathrm{rms}$, $\mathrm{gate} \odot W_u x$, and without
# biases
# $$f(x) = \sum_t J_t\, x_t, \qquad J_t = \frac{\partial f}{\partial x_t} \text{ with these held,}$$
# at this input alone. The ordinary Jacobian does not do that.

# %%
width, depth = (8, 1) if SMOKE else (48, 3)
model = LM(20, width, Stack(Block(Attention(width), SwiGLU(width)), depth))
with jax.enable_x64(True):
    weights = float64(jaxlm.init(model, jax.random.key(0)))
    x = locally_linear.embedded(model, weights, jnp.arange(4 if SMOKE else 12))
    apart = jax.jit(lambda x: detached_jacobian(lambda x: locally_linear.last(model, weights, x), x))(x)
    apart, x = jax.device_get((apart, x))
parts = np.einsum("ntd,td->tn", apart.jacobian, x)
print("farthest of the sum of J x from the output:", np.abs(parts.sum(axis=0) - apart.value).max())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
ends = [float(apart.value.min()), float(apart.value.max())]
left.plot(ends, ends, "k", linewidth=1, label=r"$f(x) = \sum_t J_t x_t$")
left.plot(apart.value, parts.sum(axis=0), "o", label="coordinates of the output")
left.set(xlabel="output", ylabel="sum of the tokens' parts")
left.legend(frameon=False)
right.imshow(parts, aspect="auto", cmap="RdBu")
right.set(xlabel="coordinate of the output", ylabel="token", title="Whose part it is")
plt.show()

# %% [markdown]
# *What to try next:* `hold(f)` of `jaxlm.analysis.detached` serves any model: GLA, RetNet, Mamba-2, DeltaNet. `jaxlm
# reproduce detached-jacobian` trains a small model of characters and decodes the singular vectors of its maps.
#
# ## Continuous time
# What does a transformer say when a token lasts for half its time, or for three times as long? (Marro et al. 2025)
#
# A token of duration $\delta_j$ at place $p_j = \delta_1 + \dots + \delta_j$ has the weight
# $$\alpha_{ij} = \frac{\delta_j \exp(q_i^\top R(p_j - p_i)\, k_j)}
# {\sum_l \delta_l \exp(q_i^\top R(p_l - p_i)\, k_l)},$$
# so that a duration of $k$ is exactly $k$ copies at one place, and durations of 1 are the ordinary model. A model that
# counts $n$ among $N$ letters, and that never saw a part of one, is asked about letters that last for a share $s$. An
# average over time can tell $N s n / (s n + N - n)$: does it say that?

# %%
shrink = continuous_time.Settings(steps=800, seeds=1, shares=46)
show(continuous_time, continuous_time.BUDGETS["smoke"] if SMOKE else shrink)

# %% [markdown]
# *What to try next:* `jaxlm.analysis.durations.run` is differentiable by durations and places: which token would the
# model rather have longer?
#
# ## One layer approximates
# How near does one layer of attention, with an MLP that grows, come to a continuous map of four tokens?
#
# Four heads gather $x_1, \dots, x_4$ at the last place, by the scores of the first experiment. The MLP then gives
# $\sum_{i \le f} c_i\, \mathrm{ReLU}(w_i^\top x + b_i)$ with random $w_i, b_i$; only $c$ is solved for. The largest
# error over the cube falls with the width $f$ (the rate of the best units: $f^{-7/8}$).

# %%
wider = universal_attention.Settings(widths=(16, 32, 64, 128, 256, 512), points=3000, random=1599)
show(universal_attention, universal_attention.BUDGETS["smoke"] if SMOKE else wider)

# %% [markdown]
# *What to try next:* change `universal_attention.target` to a map with a kink, or to one of the sorted numbers.
#
# ## Short programs
# Does the shortest description that fits the samples generalise where a wide trained network does not? (Chatterjee &
# Sudijono 2024)
#
# A program over natural numbers, whose only step is $x := \max(\sum_i c_i y_i + c, 0)$, is a ReLU network, layer by
# layer. And of a description of $B$ bits that agrees with $n$ samples the error is, with probability $1 - \delta$,
# $$\text{error} \le \frac{B \ln 2 + \ln(1/\delta)}{n}.$$

# %%
fewer = short_programs.Settings(inputs=7, sizes=(4, 8, 16, 32), draws=50, hidden=256, steps=500)
show(short_programs, short_programs.BUDGETS["smoke"] if SMOKE else fewer)

# %% [markdown]
# *What to try next:* write a program of your own, `compile_program(program, names)` of `jaxlm.analysis.programs`: the
# greatest common divisor takes two loops.
