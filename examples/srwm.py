# %% [markdown]
# # A matrix that rewrites itself
#
# A network's weights are usually fixed once it is trained. The self-referential weight matrix (Irie et al. 2022) goes
# on changing them, by itself: one matrix $W$ reads the input and gives an output, and *also* the key, the query and
# the rates of its own next change,
#
# $$[y_n,\; q_n,\; k_n,\; \beta_n] = W_{n-1}\, \phi(x_n), \qquad
#   W_n = W_{n-1} + \sigma(\beta_n)\,\bigl(W_{n-1}\phi(q_n) - W_{n-1}\phi(k_n)\bigr)\,\phi(k_n)^\top .$$
#
# What $W$ holds under the key is replaced by what it holds under the query: a delta rule whose target comes from the
# matrix too. Gradient descent trains $W_0$ alone. Here it must learn to learn: five classes never seen before, one
# example of each beside its label, then a question.

# %%
# %pip install -q jaxlm

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxlm
from jaxlm import SRWM, Block
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.srwm import FakeSR
from jaxlm.models.episodes import synchronous
from jaxlm.models.few_shot import FewShot
from jaxlm.ops.losses import nats
from jaxlm.ops.self_reference import picard, sequential
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import trapezoid

SMOKE = False  # True: tiny sizes, to see that everything runs

# %% [markdown]
# ## Classes, and episodes of five of them
#
# A class is a random direction in 32 dimensions, an item of it that direction with noise. 1,000 classes are for
# training, 100 others for the test. An episode shows one item of each of 5 classes with a label drawn anew, so that no
# label belongs to a class for longer than the episode: there is nothing to learn by heart.

# %%
WAYS = 5
rng = np.random.default_rng(0)


def bank(classes, items=20, noise=0.35):
    """Items of random classes.   (classes, items, 32)"""
    return jnp.asarray(rng.normal(size=(classes, 1, 32)) + noise * rng.normal(size=(classes, items, 32)), jnp.float32)


train, test = bank(40 if SMOKE else 1000), bank(20 if SMOKE else 100)
draw = jax.jit(synchronous, static_argnums=(2, 3, 4))
episode = draw(jax.random.key(0), test, 1, WAYS, 1)
print("labels shown:", episode.slots[0], " (-1: none)      asked for:", episode.targets[0, -1])

# %% [markdown]
# ## The model, and a control that cannot change
#
# The control has the same $W^y$, but never writes to it. Both read $x$ as it is, with the norm on the skip path, as
# the authors' few-shot code does.

# %%
width, steps, batch = (8, 2, 2) if SMOKE else (64, 1500, 32)
real = SRWM(width, heads=2 if SMOKE else 4, input_map="identity", query_scale=1.0)


def few_shot(mixer):
    block = Block(mixer, MLP(width, 2 * width, "relu"), LayerNorm(width), residual="ln_skip")
    return FewShot(block, WAYS, features=32)


def learn(model):
    """Train on episodes; the weights, and the accuracy on unseen classes as training goes."""

    def answer(params, key, items, count):
        e = synchronous(key, items, count, WAYS, shots=1)
        return model.apply(params, e.images, e.slots)[0][:, -1], e.targets[:, -1]

    def loss(params, key, step):
        return jnp.mean(nats(*answer(params, key, train, batch)))

    def watch(params, key):
        logits, targets = answer(params, key, test, 4 if SMOKE else 500)
        return {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == targets, dtype=jnp.float32)}

    first = jaxlm.init(model, jax.random.key(1))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(trapezoid(3e-3, steps), 0.9, 0.995))
    keys, every = jax.random.split(jax.random.key(2), 1), max(steps // 30, 1)
    found = fit(keys, lambda key: first, loss, tx, steps=steps, every=every, watch=watch)
    return jax.tree.map(lambda p: p[0], found.params), found.watched["accuracy"][:, 0]


model = few_shot(real)
params, curve = learn(model)
_, control = learn(few_shot(FakeSR(real)))
print(f"unseen classes, 5-way 1-shot: SRWM {curve[-1]:.0%}, fixed weights {control[-1]:.0%}, chance 20%")

# %% [markdown]
# The control stays at chance, for nothing of what it has seen is left when the question comes. The gap asked for is
# 20 points; the paper's own few-shot numbers are for images (`jaxlm reproduce few-shot` shows Omniglot).
#
# ## Watching it write
#
# After every token the state is the shift $W_n - W_0$. How large is it? And if the question came *now*, which classes
# would be answered rightly?

# %%
trials = 2 if SMOKE else 200
e = draw(jax.random.key(3), test, trials, WAYS, 1)
x, labels = e.images[:, :WAYS], e.slots[:, :WAYS]  # without the question


@jax.jit
def watch_writing(params, x, labels):
    """After each token: the size of the shift's blocks; and, asked by each item shown, is its label the answer?"""

    def token(state, now):
        item, label = now
        _, state = model.apply(params, item[:, None], label[:, None], state)

        def asked(item):
            return model.apply(params, item[:, None], jnp.full((trials, 1), -1), state)[0][:, 0]

        right = jnp.argmax(jax.vmap(asked, 1, 1)(x), axis=-1) == labels
        sizes = {name: jnp.sqrt(jnp.mean(jnp.square(s))) for name, s in state.items()}
        return state, (sizes, jnp.mean(right, axis=0, dtype=jnp.float32))

    return jax.lax.scan(token, model.body.start(params["body"], trials), (x.swapaxes(0, 1), labels.T))[1]


sizes, right = watch_writing(params, x, labels)

# %%
figure, (left, middle, last) = plt.subplots(1, 3, figsize=(14, 4))
at = max(steps // 30, 1) * np.arange(1, len(curve) + 1)
left.plot(at, curve, label="SRWM")
left.plot(at, control, label="fixed weights")
left.axhline(0.2, color="gray", linestyle=":", label="chance")
left.set(xlabel="steps of training", ylabel="accuracy, unseen classes", ylim=(0, 1))
left.legend()
for name, size in sizes.items():
    middle.plot(range(1, WAYS + 1), size, marker="o", label=f"$W^{{{name}}}$".replace("beta", "\\beta"))
middle.set(xlabel="examples seen", ylabel="rms of the shift of its block", title="it rewrites itself")
middle.legend()
picture = last.imshow(right.T, vmin=0, vmax=1, cmap="viridis")
last.set(xlabel="examples seen", ylabel="asked for the class of example", title="answered rightly")
last.set_xticks(range(WAYS), range(1, WAYS + 1))
last.set_yticks(range(WAYS), range(1, WAYS + 1))
figure.colorbar(picture)
plt.show()

# %% [markdown]
# A class is known from the moment its example has gone by (the diagonal), and stays known while others are written
# beside it. Above the diagonal there is no knowing, only guessing.
#
# ## Two exact ways to run it
#
# The recurrence is not linear, so no scan in parallel is known. But given all keys, queries and rates it *is* linear,
# and one triangular system solves it. So guess them, solve, read them anew, repeat: after $s$ of these Picard sweeps
# the first $s + 1$ outputs are exact, and the others are near long before.

# %%
h, k = real.parts, width // real.parts
T = 8 if SMOKE else 32
learned = jax.random.normal(jax.random.key(4), (h, k, 3 * k + 4)) / np.sqrt(k)
x = jax.random.normal(jax.random.key(5), (4, T, h, k))
shift = jnp.zeros((4, *learned.shape))
exact, _ = jax.jit(sequential)(x, learned, shift)
swept = jax.jit(picard, static_argnames=("sweeps", "chunk"))
sweeps = (1,) if SMOKE else (1, 2, 3, 4, 6, 8)
errors = [np.abs(swept(x, learned, shift, sweeps=s, chunk=T)[0] - exact).max() for s in sweeps]
figure, axes = plt.subplots(figsize=(5, 3.5))
axes.semilogy(sweeps, errors, marker="o")
axes.set(xlabel=f"sweeps over {T} tokens", ylabel="largest error of an output", title="Picard sweeps")
plt.show()

# %% [markdown]
# ## What next
#
# - More shots, or `delayed` episodes, where a label comes one step late: `jaxlm reproduce few-shot` does both.
# - `input_map="softmax"`, the paper's own map; `rates=1`, its basic variant; two blocks in a `Stack`.
# - `SRWM(..., sweeps=8)` in a model: is it faster on your device?
