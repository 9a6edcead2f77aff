# %% [markdown]
# # Dynamics of small networks
# Three experiments on gradient descent whose outcome can be told beforehand: the catapult of large steps, the early
# alignment of neurons, and a neuron that learns from labels an adversary spoils. Then two on maps applied again and
# again: an autoencoder that goes on, and a decoder whose layers have no norms between them.

# %%
# %pip install -q jaxlm

# %%
import argparse
import dataclasses
import inspect
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxlm.papers import Lab
from jaxlm.theory import attractors, catapult, neuron_alignment, relu_entropy, single_neuron

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
# ## The catapult
# A linear model diverges as soon as the step is longer than $2/\lambda$, $\lambda$ the top eigenvalue of its tangent
# kernel. A network does not: why? Its second-order Taylor model already shows it.
#
# For one point with output $g$, weights $u, v$ and step $\eta$, the quadratic model obeys
# $$g_{t+1} = g_t\,\Big(1 - \eta\lambda_t + \frac{\eta^2 g_t^2}{m}\|x\|^2 \Big), \qquad
# \lambda_{t+1} = \lambda_t - \frac{\eta g_t^2}{m}\|x\|^2\,(4 - \eta\lambda_t),$$
# so while $2 < \eta\lambda < 4$ the output grows, and $\lambda$ falls as soon as $g^2$ is of order $m$: until
# $\eta\lambda < 2$. (Zhu et al. 2022; Lewkowycz et al. 2020.)

# %%
show(catapult, seeds=4, steps=120, widths=(256, 4096))

# %% [markdown]
# Try a second point, so that the kernel is a matrix: does $\lambda_{\max}$ still end below $2/\eta$? Try `order=3`.
#
# ## Early alignment
# With initial weights of size $\varepsilon \to 0$ nothing seems to happen for a long time. In fact directions move long
# before sizes do: when, and to where?
#
# While $f \approx 0$, a neuron's direction follows $\sum_i y_i\, \mathbb 1[w \cdot x_i > 0]\, x_i$, projected on the
# sphere; where $\mu = \min_{ij} y_i y_j \cos(x_i, x_j) > 0$, this turns it to all points of its own sign within
# $t_1 \le 4 \ln n / (\sqrt\mu \max_i\|x_i\|)$. From then on the loss is that of a linear classifier, $O(1/t)$, and
# $W$ has a stable rank of at most 2. (Min et al. 2024.)

# %%
show(neuron_alignment, steps=10_000, every=250)

# %% [markdown]
# Try a larger `scale`: where does the bound break? Try `spread` so that some $y_i y_j \cos(x_i, x_j)$ is negative.
#
# ## A neuron and an adversary
# Squared loss through a ReLU is not convex, and a tenth of the labels lie. Is a convex surrogate good enough?
#
# $$L(w) = \mathbb E \int_0^{w \cdot x} (\sigma(t) - y)\,dt, \qquad
# \nabla L(w) = \mathbb E\,(\sigma(w\cdot x) - y)\,x .$$
# For Gaussian $x$, and an adversary that answers $3\,\sigma(-w^* \cdot x)$ on a share $\rho$, descent stays on the line
# of $w^*$: $\alpha \leftarrow \alpha - \eta\,(\alpha/2 - a)$ with $a = (1-\rho)/2 - 3\rho/2$; the drawn line is that.

# %%
show(single_neuron, points=4000)

# %% [markdown]
# Try another adversary: which one costs the most for its share $\rho$? Try `points=500` in 50 dimensions.

# %%
told = single_neuron.predicted(0.1, 0.5, 60)
print("ends at α =", np.round(told["alpha"][-1], 4), "; the best α is 0.9; errors", told["error"][-1], told["best"])

# %% [markdown]
# ## An autoencoder that goes on
# Encode, decode, encode again, and so on: where does it end? Do the pictures it was trained on attract all others?
#
# Encoder $E$ and decoder $D$ make a map of pictures, $x \mapsto D(E(x))$, and one of codes, $f(z) = E(D(z))$. At a
# fixed point their Jacobians are $J_D J_E$ and $J_E J_D$: the same eigenvalues, but for zeros. Near to it
# $$f^k(z + \delta) = z + J^k \delta + O(\delta^2),$$
# so it attracts where the spectral radius of $J$ is below 1. (Fumero et al. 2025.) Here on random pictures;
# `jaxlm reproduce attractors` does it on digits.

# %%
s = dataclasses.replace(attractors.BUDGETS["smoke" if SMOKE else "cpu"], seeds=1)
if not SMOKE:
    s = dataclasses.replace(s, sizes=(10, 20, 40, 80), steps=2000)
rng = np.random.default_rng(0)
pictures = rng.random((1, max(s.sizes), 49), np.float32)
params = jax.tree.map(np.asarray, attractors.train(s, pictures, Lab(jax.random.key(0))))
look = jax.jit(partial(attractors.look, s=s))
walks, shift = rng.random((s.walks, 49), np.float32), rng.normal(size=(s.exact, s.latent)).astype(np.float32)
for i, n in enumerate(s.sizes):
    one = jax.tree.map(lambda w, i=i: w[i], params)
    found = attractors.judged(jax.device_get(look(one, pictures[0], walks, shift)), pictures[0], n)
    print(n, "samples:", ", ".join(f"{k} {v:.2f}" for k, v in found.items()))

# %% [markdown]
# Try `noise=0`: the samples still stay, to a thousandth. Why does none attract? Try codes of 2 numbers and draw the
# field $f(z) - z$.
#
# ## Without norms
# Take the norms out of a decoder. Is GELU then still the better activation, and what do its heads look at?
#
# Without norms the inputs of a layer may be small, and begin so. A head whose scores over $n$ keys have variance $v$
# has entropy $\log n - v/2 + \dots$: nearly the maximum. And from nearby GELU is a line: with
# $u = s^2/(1+s^2)$, of its variance at inputs $N(0, s^2)$ the best line leaves the share
# $$1 - \frac{1/4}{1/4 + c(s)}, \qquad c(s) = \frac1{2\pi}\Big(\arcsin u + \frac{2u}{\sqrt{1+2s^2}} - u\Big),$$
# while ReLU, which has no scale, leaves 0.27 at every $s$. (Jha & Reagen 2024.)

# %%
s = relu_entropy.BUDGETS["smoke" if SMOKE else "cpu"]
if not SMOKE:
    s = dataclasses.replace(s, seeds=1, steps=150)
_, letters = np.unique(np.frombuffer(inspect.getsource(argparse).encode(), np.uint8), return_inverse=True)
size = np.geomspace(0.01, 10, 61)
for n, kind in enumerate(s.kinds):
    seen = relu_entropy.compare(s, kind, False, letters, Lab(jax.random.key(0)))
    plt.semilogx(size, relu_entropy.unlinear(kind, size), f"C{n}-", label=relu_entropy.KINDS[kind])
    for when, face in (("first", "none"), ("trained", f"C{n}")):
        plt.plot(seen[when]["size"][0], seen[when]["line"][0], f"C{n}o", mfc=face)
        print(kind, when, "entropy of its maximum, by layers:", seen[when]["share"][0].mean(-1).round(3))
    print(kind, "perplexity", np.exp(seen["trained"]["paid"]))
plt.xlabel("size s of the inputs (open: at first, filled: trained)")
plt.ylabel("share that a line leaves")
plt.legend()
plt.show()

# %% [markdown]
# Try `scale`, the length of an embedding on entry, at the root of the width: inputs of unit size. Try more `depth`.
