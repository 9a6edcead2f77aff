# %% [markdown]
# # Recurrences: what a state holds
# Three small experiments on what recurrent networks keep of their inputs, each with the theory drawn over what is
# measured. Every one is also a command, `jaxlm reproduce NAME`, at the size that the claims are judged at.

# %%
# %pip install -q jaxlm

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt

from jaxlm.papers.record import plain
from jaxlm.papers.result import Lab
from jaxlm.theory import onion, ssm_languages, window_universality

SMOKE = False  # True: tiny sizes, to see that everything runs


# %%
def show(module, **changes):
    """Run an experiment at a small size, print its claims and draw its figure."""
    settings = module.BUDGETS["smoke"] if SMOKE else dataclasses.replace(module.BUDGETS["cpu"], **changes)
    result = module.run(settings, Lab(jax.random.key(0)))
    for claim in result.claims:
        theirs = "" if claim.paper is None else f"   (expected {claim.paper:.3g})"
        print(f"{claim.ours:10.4g}   {claim.name}{theirs}")
    figure = plt.figure(layout="constrained")
    module.draw(figure, plain(result.series))
    plt.show()


# %% [markdown]
# ## 1. A linear memory and an MLP
# What must a linear recurrence keep of its inputs? All of the window; what is nonlinear is left to the MLP that reads
# the state.
#
# A diagonal recurrence $h_t = \lambda h_{t-1} + \gamma b\, x_t$ with $n$ complex eigenvalues has after $L$ inputs
# $$h = V x, \qquad V_{ij} = \gamma_i b_i \lambda_i^{L-1-j},$$
# a Vandermonde matrix: its $2n$ real numbers determine the window once $2n \ge L$, and of a white input a linear map
# leaves exactly the share $1 - 2n/L$ before (Orvieto et al. 2023). For $y = a\cdot x + x^\top B x - \mathrm{tr} B$ with
# white Gaussian $x$ a linear readout stalls at $2|B|^2$. An MLP of $f$ hidden units sees $x$ in at most $f$
# directions $P$, and no function of $Px$ has an error below
# $$|a|^2 + 2|B|^2 - |Pa|^2 - 2|PBP|^2 \;\ge\; 2 \sum_{r > f} \mu_r^2, \qquad \mu = \text{eigenvalues of } B
# \text{ by size}.$$

# %%
show(window_universality, steps=1000, trials=20_000)

# %% [markdown]
# **Try next.** `angle=0.05`, the phases that LRUs start with: how many states does float32 then need? `decay=0.0`, a
# form whose directions all count the same: where do the errors of the MLPs go?

# %% [markdown]
# ## 2. Onions
# Does a small recurrent network keep the places of a sequence apart by direction? There is no room for that; it does
# by size.
#
# In the planted onion $h = \sum_j \beta^j e_{x_j}$ every place uses the same directions. It is read from the outside:
# the largest coordinate is $x_1$, subtract its layer, go on. For $\beta \le \frac12$ that is exact, since
# $$\sum_{k>j} \beta^k < \beta^j,$$
# while the best linear map to any place guesses $x_1$. A trained GRU is told apart by edits of its state that are to
# replace one token: one layer, $h - s_j e_v + s_j e_{v'}$ with $s_j = g\gamma^j + \beta j + b$, against the swap of a
# subspace that belongs to the place (Csordás et al. 2024).

# %%
show(onion, seeds=1, steps=(3000,), edits=1000)

# %% [markdown]
# **Try next.** `widths=(96,)`, `steps=(2000,)`: do linear swaps work where there is room? The GPU budget goes on to
# 384.

# %% [markdown]
# ## 3. Languages of gated recurrences
# Which languages do linear recurrences recognise at any length? Those with gates in $[0, 1]$ can hold and replace, but
# not alternate.
#
# On ones alone such a layer is at $h_t = c\,(1 - a^t)$, so that what $n$ channels say is the sign of
# $$w_0 + \sum_{i=1}^n w_i a_i^t,$$
# which changes at most $n$ times (Descartes), while parity alternates: of $T$ prefixes at most $(T+n+1)/2$ are right.
# A delta rule with rates up to 2 has the transition $1 - \beta = -1$, and $s \leftarrow 2v - s$ is parity for ever
# (Sarrof et al. 2024; Grazzi et al. 2024). Both constructions are weights of the library's own mixers.

# %%
show(ssm_languages, flipflop=(), parity=(), negative=("DeltaNet to -1",), steps=300, seeds=1)

# %% [markdown]
# **Try next.** Train others: `parity=("MinGRU", "GLA")`. Is a nonlinear cell, `negative=("LSTM",)`, better still?
