# %% [markdown]
# # Scaling: why losses are power laws
# Six small experiments on how loss falls with size, data, width and steps, each with the theory drawn over what is
# measured. Every one is also a command, `jaxlm reproduce NAME`, at the size that the claims are judged at.

# %%
# %pip install -q jaxlm

# %%
import argparse
import dataclasses
import difflib
import inspect
import tarfile

import jax
import matplotlib.pyplot as plt

from jaxlm.papers.record import plain
from jaxlm.papers.result import Lab, silent
from jaxlm.theory import (
    finetune_selection,
    learning_law,
    linear_representations,
    scaling_fit,
    solvable_scaling,
    superposition,
)

SMOKE = False  # True: tiny sizes, to see that everything runs


# %%
def show(module, tell=silent, **changes):
    """Run an experiment at a small size, print its claims and draw its figure."""
    settings = module.BUDGETS["smoke"] if SMOKE else dataclasses.replace(module.BUDGETS["cpu"], **changes)
    shown(module, module.run(settings, Lab(jax.random.key(0), tell=tell)))


def shown(module, result):
    """Print a result's claims and draw its figure."""
    for claim in result.claims:
        theirs = "" if claim.paper is None else f"   (theory {claim.paper:.3g})"
        print(f"{claim.ours:10.4g}   {claim.name}{theirs}")
    figure = plt.figure(layout="constrained")
    module.draw(figure, plain(result.series))
    plt.show()


# %% [markdown]
# ## 1. A solvable model of neural scaling laws
# Why is the test loss a power law in the smaller of parameters $N$ and samples $T$? And how large is it exactly?
#
# Latents $x \sim \mathcal N(0, \mathrm{diag}\,\lambda)$ with $\lambda_i = i^{-(1+\alpha)}$, labels $w^\top x$ of
# random $w$, features $u x$ of a random $u$, ridge regression on $T$ samples (Maloney, Roberts and Sully 2022). A
# scale $\kappa$ separates what is learned from what is not; with $\mathrm{df}(\kappa) = \sum_i
# \lambda_i/(\lambda_i+\kappa)$ it solves $\gamma = \kappa\,(N-\mathrm{df})(T-\mathrm{df})$ for the ridge $\gamma$.
# Without ridge
# $$\mathrm{df}(\Delta) = \min(N, T), \qquad L(N, T) = \frac{\Delta}{|1/N - 1/T|}
# \;\to\; c\,N^{-\alpha}, \quad c = \Big[\frac{\pi/(1+\alpha)}{\sin(\pi/(1+\alpha))}\Big]^{1+\alpha}.$$
# It is the same when $N$ and $T$ are swapped, diverges at $N = T$, and the best ridge takes that peak away.


# %%
class Live:
    """A figure that grows while an experiment runs: what was measured over what theory had said."""

    def __init__(self):
        try:
            from IPython.display import display  # pyright: ignore[reportMissingImports]
        except ImportError:
            display = None
        self.figure, axes = plt.subplots(figsize=(5, 3))
        self.said, self.seen = axes.loglog([], [], "k_", ms=14, label="predicted")[0], axes.loglog([], [], "C0o")[0]
        self.seen.set_label("measured")
        axes.set(xlabel="min(N, T)", ylabel="test loss", title="live")
        axes.legend()
        self.points, self.axes = [], axes
        self.handle = display(self.figure, display_id=True) if display else None

    def __call__(self, fraction, N, T, measured, predicted):
        if 0.5 < N / T < 2:
            return  # near the peak
        self.points.append((min(N, T), measured, predicted))
        x, seen, said = zip(*self.points, strict=True)
        self.seen.set_data(x, seen)
        self.said.set_data(x, said)
        self.axes.relim()
        self.axes.autoscale_view()
        if self.handle:
            self.handle.update(self.figure)


show(
    solvable_scaling,
    Live(),
    latents=400,
    sizes=(10, 20, 40),
    plenty=200,
    around=(20, 40, 60, 70, 90, 100, 160),
    draws=10,
    more=20,
)

# %% [markdown]
# **Try next.** `jaxlm.analysis.random_features.measure` takes any spectrum: let it fall by steps, and see where the
# loss stops. Find the ridge of least *measured* loss (`measure` takes many at once), and compare it with
# `best_ridge`.

# %% [markdown]
# ## 2. Superposition
# When is the loss proportional to one over the width, whatever the data? When all features share the space, not when
# the frequent ones have it for themselves.
#
# $n$ sparse features, active with probability $p_i = i^{-\alpha}$, through $\hat x = \mathrm{ReLU}(x W W^\top + b)$
# with $W \in \mathbb R^{n\times m}$, $m \ll n$ (Liu et al. 2025). Rows of unit length in random directions overlap by
# $$\mathbb E\,(\hat w_i \cdot \hat w_j)^2 = 1/m, \qquad\text{so that strong superposition has}\quad L \propto m^{-1},$$
# while weak superposition loses the features that it leaves out, $L \approx \frac43\sum_{i\,\text{left out}} p_i
# \propto m^{-(\alpha-1)}$. A decay of rows towards unit length makes the first, plain weight decay the second.

# %%
show(superposition, alphas=(1.0, 2.0), seeds=1, steps=1500)

# %% [markdown]
# **Try next.** `DECAYS` between -1 and 1: where does one law turn into the other? The GPU budget has wider codes and
# flatter frequencies.

# %% [markdown]
# ## 3. Linear representations
# Does next-token prediction give every concept a direction of its own? Only as far as its loss needs one.
#
# Tokens are all settings $c \in \{0,1\}^m$ of binary concepts, contexts $x \in \{0,1,?\}^m$ leave some open, and $p(c
# \mid x) \propto \exp(f_x \cdot g_c)$ learns the exact distribution (Jiang et al. 2024). The linear code
# $$g_c = \sum_i \pm u_i, \qquad f_x = \sum_i s_i(x)\, u_i, \qquad u_i \cdot u_j = \delta_{ij}$$
# reaches the entropy as its margins $s_i$ of fixed concepts grow, and the loss above it falls as one over the steps.
# In $m$ dimensions no other code was found that does; in more there are codes whose differences
# $g_{c: i\to1} - g_{c: i\to0}$ are parallel only in part.

# %%
show(linear_representations, steps=5000, every=250, seeds=3, starts=4)

# %% [markdown]
# **Try next.** `width` from 4 to 16: how fast does the alignment fall? `scale=0.3`: do fewer starts find the linear
# code?

# %% [markdown]
# ## 4. The learning law
# How fast can gradient descent learn, if every step may weigh its examples at best? And what do they share then?
#
# $w_{t+1} = w_t - \eta \sum_n \gamma_{n,t} \nabla l_n(w_t)$ with $\gamma_t$ in the simplex, learned through the
# unrolled descent for the least $\sum_t L(w_t)$ (Gu et al. 2024), the length of a lossless compression. At the
# optimum
# $$\nabla L(w_t) \cdot \nabla l_n(w_t) = \text{const} \qquad \text{for all } n \text{ with } \gamma_{n,t} > 0 .$$
# The number in use, $1/\sum_n \gamma_n^2$, tells how much that says: of one example it is trivial. A price on low
# entropy keeps many, and they still contribute nearly the same.

# %%
show(learning_law, updates=150, seeds=1)

# %% [markdown]
# **Try next.** A larger `price`; `noise=1.0`, where some signs are wrong: which examples are never used?

# %% [markdown]
# ## 5. Scaling-law fits
# How well do the losses of some runs determine the law behind them? Well enough for the best size, hardly for $B$.
#
# $$L(N, D) = E + \frac{A}{N^a} + \frac{B}{D^b}, \qquad N^*(C) \propto C^{\,b/(a+b)}, \quad C = 6 N D,$$
# fitted by the Huber loss of $\log L$ (Hoffmann et al. 2022). For the solvable model at its best ridge, whose loss is
# no such sum, theory wants $N \propto T$, an exponent of one half.

# %%
show(scaling_fit, seeds=3)

# %% [markdown]
# **Try next.** Fewer `points`, all at one ratio of tokens to parameters: which numbers are lost first?

# %% [markdown]
# ## 6. Fine-tuning, and which model to choose
# What will a fine-tuned model cost with much data, told from its losses with little? And can the tangent kernel of the
# model before fine-tuning help?
#
# What a model knows keeps its loss flat while data are few; then it falls as a power (Zeng et al. 2025):
# $$L(D) = \frac{B}{F t + D^{\beta}} + E, \qquad F = \frac{\mathrm{mean}\;K_{xx}}{\mathrm{mean}\;K_{xy}},$$
# $K$ the tangent kernel of the losses of some windows: $F$ windows move the weights as much by what they share as by
# what each has for itself. $t$ is one number for all models, $t = 0$ a plain power law.
# Between the sizes that were fitted the two phases help; beyond them neither curve is to be trusted.

# %%
sources = {"argparse": inspect.getsource(argparse), "difflib": inspect.getsource(difflib)}
small = finetune_selection.BUDGETS["smoke" if SMOKE else "cpu"]
if not SMOKE:
    small = dataclasses.replace(small, sizes=(2, 4, 8, 16, 32, 64, 128, 256), steps=80, looks=8, kernel=16, seeds=1)
result = finetune_selection.study(small, sources, inspect.getsource(tarfile), Lab(jax.random.key(0)))
shown(finetune_selection, result)

# %% [markdown]
# **Try next.** The source of `zipfile` among the `sources`: does it come first, before fine-tuning and after? More
# `stages`: does $F$ grow with what a model knows?
