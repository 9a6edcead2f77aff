# %% [markdown]
# # Dynamics of small networks
# Three experiments on gradient descent whose outcome can be told beforehand: the catapult of large steps, the early
# alignment of neurons, and a neuron that learns from labels an adversary spoils.

# %%
# %pip install -q jaxlm

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxlm.papers import Lab
from jaxlm.theory import catapult, neuron_alignment, single_neuron

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
