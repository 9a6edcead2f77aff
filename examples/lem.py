# %% [markdown]
# # Long Expressive Memory
#
# A neuron rests for a long while, then fires within an instant: two time scales in one signal. LEM (Rusch et al. 2022)
# learns a time scale for every unit and every moment, and its gradients neither explode nor vanish while it does so.
# Here it learns to foresee such a neuron, beside an LSTM with as many weights.

# %%
# %pip install -q jaxlm

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxlm
from jaxlm.data.fitzhugh_nagumo import fitzhugh_nagumo
from jaxlm.mixers.lem import LEM
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.sequence import SequenceModel
from jaxlm.train.fit import fit

SMOKE = False  # True: tiny sizes, to see that everything runs

# %% [markdown]
# ## The mathematics
#
# Two states $y, z$ move towards a drive, each by a share of the step $\Delta t$ that depends on state and input:
#
# $$\Delta_n = \Delta t\,\sigma(W_1 y_{n-1} + V_1 u_n + b_1), \qquad
#   \bar\Delta_n = \Delta t\,\sigma(W_2 y_{n-1} + V_2 u_n + b_2),$$
# $$z_n = (1 - \Delta_n)\, z_{n-1} + \Delta_n \tanh(W_z y_{n-1} + V_z u_n + b_z), \qquad
#   y_n = (1 - \bar\Delta_n)\, y_{n-1} + \bar\Delta_n \tanh(W_y z_n + V_y u_n + b_y).$$
#
# It is a step of an implicit-explicit Euler scheme for two coupled equations. Every state is a weighted mean, so it
# stays in $[-1, 1]$; and with $\eta$ the largest norm of the four matrices, one step stretches a gradient by at most
# $1 + \tfrac32\,\eta\,(1 + \eta\,\Delta t)\,\Delta t$.

# %%
points, steps, seeds = (16, 4, 2) if SMOKE else (400, 800, 3)
inputs, targets = fitzhugh_nagumo(160, seed=0, points=points)
plt.figure(figsize=(8, 2.5))
plt.plot(0.4 * np.arange(points), inputs[:3, :, 0].T)
plt.xlabel("time")
plt.ylabel("voltage")
plt.title("the FitzHugh-Nagumo neuron, from three beginnings")
plt.show()

# %% [markdown]
# ## Two models of one size, three seeds at once
#
# The task: the next voltage, at every point. `fit` trains all seeds of a model as one program.

# %%
train = jnp.asarray(inputs[:128]), jnp.asarray(targets[:128])
test = jnp.asarray(inputs[128:]), jnp.asarray(targets[128:])


def learn(body, rate=0.009):
    """Root mean squared test errors while each seed learns.   (seeds, chunks)"""
    model = SequenceModel(body, 1, readout="every")

    def error(params, x, y):
        return jnp.mean((model.apply(params, x)[0] - y) ** 2)

    def loss(params, key, step):
        rows = jax.random.randint(key, (32,), 0, 128)
        return error(params, train[0][rows], train[1][rows])

    found = fit(
        jax.random.split(jax.random.key(0), seeds),
        lambda key: jaxlm.init(model, key),
        loss,
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
        steps=steps,
        every=steps // 4 if SMOKE else 40,
        watch=lambda params, key: {"error": jnp.sqrt(error(params, *test))},
    )
    return model, found.params, found.watched["error"].T


bodies = {"LEM": LEM(16, inputs=1), "LSTM": LSTM(16, inputs=1)}
learned = {name: learn(body) for name, body in bodies.items()}
for name, (model, _, errors) in learned.items():
    print(f"{name}: {jaxlm.count(model):,} weights, test error {errors[:, -1].mean():.4f}, mean of {seeds} seeds")

# %% [markdown]
# ## Ours beside the paper's
#
# The paper reports 0.002 for LEM and 0.012 for an LSTM, after 1,600 steps on 1,000 points. Less training on fewer
# points leaves both above that; what stays is the distance between them. `jaxlm reproduce lem-fhn` is the whole thing.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for (name, (model, params, errors)), color in zip(learned.items(), ("tab:blue", "tab:orange"), strict=True):
    at = steps // errors.shape[1] * (1 + np.arange(errors.shape[1]))
    left.plot(at, errors.T, color=color)
    left.plot([], [], color=color, label=name)
    first = jax.tree.map(lambda p: p[0], params)
    guess = model.apply(first, test[0][:1])[0]
    right.plot(0.4 * np.arange(points), np.abs(guess - test[1][:1])[0, :, 0], color=color, lw=0.8, label=name)
left.axhline(0.0024, color="tab:blue", ls="--", lw=0.8, label="LEM, published")
left.axhline(0.012, color="tab:orange", ls="--", lw=0.8, label="LSTM, published")
left.set(yscale="log", xlabel="step", ylabel="test error (RMSE)")
right.set(yscale="log", xlabel="time", ylabel="error on one neuron")
left.legend()
right.legend()
plt.show()

# %% [markdown]
# ## What to try next
#
# - `LEM(16, inputs=1, dt=0.1)`: a smaller step remembers longer and moves more slowly. Which one suits this signal?
# - `readout="last"` and `jaxlm.data.adding`: the adding problem, where memory has to last for the whole sequence.
# - Any mixer of `jaxlm mixers` in place of the LSTM.
