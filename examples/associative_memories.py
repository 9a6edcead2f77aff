# %% [markdown]
# # Associative memories
#
# One matrix can be a memory. Give every input $x$ a random vector $e_x$ and every answer $y$ a random vector
# $u_y$, and add up what is to be known:
#
# $$W = \sum_x q(x)\, u_{f(x)} e_x^\top, \qquad \hat f(x) = \arg\max_y\; u_y^\top W e_x .$$
#
# The random vectors are nearly orthogonal, so $W e_x \approx q(x)\,u_{f(x)}$ plus the interference of everything
# else. How many facts fit, which ones are forgotten, and what does training change? (Cabannes et al. 2024.) The
# second half is about Hopfield networks, the same idea with dynamics, and ends where attention begins. (Ramsauer
# et al. 2021.)

# %%
# %pip install -q jaxlm

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxlm
from jaxlm.data.zipf import Zipf
from jaxlm.memory import hopfield, outer

SMOKE = False  # True: tiny sizes, to see that everything runs

# %% [markdown]
# ## What a matrix forgets
#
# Facts come with Zipf frequencies, $p(x) \propto x^{-\alpha}$: a few are met all the time, most almost never. The
# weights $q$ decide who survives. Theory for the error, as the width $d$ grows: $q = p$ gives
# $d^{-(\alpha-1)/2\alpha}$, a very slow law; $q = p^\rho$ gives $d^{-(\alpha-1)/2\alpha\rho}$; storing only the
# $d/8$ most frequent facts, all alike, gives $d^{-(\alpha-1)}$, which no choice of $q$ can beat. Storing
# *everything* alike holds nothing until $d$ exceeds the number of facts.

# %%
facts = Zipf(inputs=200 if SMOKE else 1000, alpha=2.0, outputs=5)
widths = (20, 80) if SMOKE else (20, 40, 80, 160, 320, 640)
trials = 3 if SMOKE else 40
p, y = jnp.asarray(facts.p, jnp.float32), jnp.asarray(facts.y)
ways = {
    "q = 1": lambda d: outer.power(p, 0.0),
    "q = p": lambda d: outer.power(p, 1.0),
    "q = √p": lambda d: outer.power(p, 0.5),
    "the d/8 most frequent": lambda d: outer.threshold(p, d // 8),
}
theory = {"q = p": -0.25, "q = √p": -0.5, "the d/8 most frequent": -1.0}


@jax.jit
def errors(key, stored):
    """One draw of embeddings: the exact error of each way at each width."""
    a, b = jax.random.split(key)
    e, u = outer.embeddings(a, facts.inputs, widths[-1]), outer.embeddings(b, facts.outputs, widths[-1])

    def error(q, d):
        return outer.error(p, outer.recall(e[:, :d], u[:, :d], y, q), y)

    return jnp.stack([jax.vmap(partial(error, d=d))(q) for d, q in zip(widths, stored, strict=True)], axis=1)


stored = [jnp.stack([q(d) for q in ways.values()]) for d in widths]
mean = np.mean([errors(jax.random.key(seed), stored) for seed in range(trials)], axis=0)
for name, values in zip(ways, mean, strict=True):
    slope = np.polyfit(np.log(widths), np.log(values), 1)[0]
    print(f"{name:22} slope {slope:5.2f}   theory {theory.get(name, float('nan')):5.2f}")
    plt.loglog(widths, values, "o-", label=name)
plt.gca().set(xlabel="width d", ylabel="error")
plt.legend()
plt.show()

# %% [markdown]
# The paper's slopes at $\alpha = 2$: −0.25, −0.5 and −1. (`jaxlm reproduce memory-scaling` measures all of them,
# with the law in the amount of data beside them.)
#
# ## What training stores
#
# One large gradient step from $W = 0$ stores exactly $q = p$: the slow law. Many small batches do better, because
# a fact that is already known has no gradient left. With step $\gamma$, each visit of $x$ moves $q \leftarrow q +
# \gamma / (1 + e^q/(M-1))$: linear at first, then logarithmic, so that frequent facts stop crowding out the
# others. A large rate learns fast and disturbs what is there; a small one is slow; dropping it does both.

# %%
world, steps = Zipf(inputs=10, alpha=1.5, outputs=5), 60 if SMOKE else 1000
model = outer.OuterMemory(world.inputs, world.outputs, width=5)
examples, answers = world.draw(np.random.default_rng(0), steps)
weights, right = jnp.asarray(world.p, jnp.float32), jnp.asarray(world.y)


def train(key, rates):
    """SGD, one example at a time; the error of the whole world after each."""
    params = jaxlm.init(model, key)

    def step(memory, now):
        x, y, rate = now
        grads = jax.grad(model.loss)({**params, "memory": memory}, x[None], y[None], jnp.ones(1))
        memory = memory - rate * grads["memory"]
        guess = jnp.argmax(model.apply({**params, "memory": memory}, jnp.arange(world.inputs)), axis=-1)
        return memory, outer.error(weights, guess, right)

    return jax.lax.scan(step, jnp.zeros_like(params["memory"]), (examples, answers, rates))[1]


drop = np.where(np.arange(steps) < 100, 10.0, 0.3).astype(np.float32)
schedules = {"rate 10": np.full_like(drop, 10), "rate 0.1": np.full_like(drop, 0.1), "10, then 0.3": drop}
curve = jax.jit(jax.vmap(train, (0, None)))
keys = jax.random.split(jax.random.key(0), 4 if SMOKE else 100)
plt.figure()
for name, rates in schedules.items():
    plt.semilogx(np.arange(1, steps + 1), np.mean(curve(keys, jnp.asarray(rates)), axis=0), label=name)
plt.gca().set(xlabel="examples seen", ylabel="error")
plt.legend()
plt.show()

# %% [markdown]
# ## Memories with dynamics
#
# A Hopfield network stores patterns $\xi^\mu \in \{\pm1\}^n$ as minima of an energy and descends it from whatever
# it is given. The classical energy $-\frac12 s^\top W s$ holds $0.138\,n$ random patterns, fewer if they resemble
# each other, as letters do. Sharper energies, $-\sum_\mu F(\xi^\mu \cdot s)$ with $F(x) = x^a$ or $e^x$, hold
# $n^{a-1}$ or exponentially many. Below: letters with a quarter of the pixels flipped.

# %%
FONT = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
}
bits = np.array([[[int(b) for b in row] for row in letter.split()] for letter in FONT.values()])
bits = np.kron(np.pad(bits, [(0, 0), (1, 1), (1, 1)]), np.ones((1, 2, 2), int))  # each pixel four times
shape = bits.shape[1:]
letters = jnp.asarray(2.0 * bits.reshape(len(FONT), -1) - 1, jnp.float32)
flips = np.random.default_rng(0).random(letters.shape) < 0.25
given = jnp.where(flips, -letters, letters)

order = jax.random.permutation(jax.random.key(0), letters.shape[1])
rows = {"stored": letters, "given": given}
rows["classical"] = hopfield.settle(partial(hopfield.sweep, hopfield.hebb(letters)), given, jax.random.key(1))[0]
rows["dense, x³"] = hopfield.dense_sweep(letters, given, order, hopfield.Power(3))
rows["dense, eˣ"] = hopfield.dense_sweep(letters, given, order, hopfield.Exponential())
rows["modern"] = hopfield.modern_update(letters, given, beta=0.1)

figure, axes = plt.subplots(len(rows), len(FONT), figsize=(7, 8))
for line, (name, states) in zip(axes, rows.items(), strict=True):
    right_pixels = float(jnp.mean(jnp.sign(states) == letters))
    print(f"{name:10} {right_pixels:6.1%} of the pixels right")
    for ax, state in zip(line, states, strict=True):
        ax.imshow(np.reshape(state, shape), cmap="gray_r", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## ... and attention
#
# Let $F$ be the exponential and the state real. The descent becomes
#
# $$\xi \leftarrow X\,\mathrm{softmax}(\beta X^\top \xi),$$
#
# one step of which usually suffices: the error falls as $e^{-\beta\Delta}$ with the separation $\Delta$ of the
# patterns. With $\xi = W_Q r$, $X = W_K Y$, $\beta = 1/\sqrt{k}$ and values read at the end, this is an attention
# layer. Not "like" one: on the same weights the two give the same numbers.

# %%
width = 16
attention, layer = jaxlm.Attention(width, heads=2, position=None), hopfield.Hopfield(width, heads=2)
params = jaxlm.init(attention, jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (1, 12, width))
last = attention.apply(params, x)[0][:, -1]  # the last token sees all of them
looked_up = layer.apply(params, x[:, -1:], x)[:, 0]
print("largest difference between the two:", float(jnp.abs(last - looked_up).max()))

# %% [markdown]
# ## What to try next
#
# - Facts with $\alpha = 1.5$: every exponent above changes; which scheme suffers most?
# - `outer.learned(counts, step, m)` gives the weights that SGD reaches after those visits. Put it beside the
# threshold.
# - More letters, fewer pixels: where does $x^3$ break, where $e^x$?
# - `hopfield.Hopfield(width, steps=3, beta=4.0)`: attention that looks again before it answers.
# - `jaxlm reproduce memory-training` and `jaxlm reproduce hopfield-capacity` are the full tables.
