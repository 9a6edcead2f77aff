# %% [markdown]
# # Learning in context: five controlled experiments
# What a model infers from the sequence that it is reading, measured where the best possible answer is known exactly.
# Each experiment is one module of `jaxlm.theory`; `jaxlm reproduce NAME` runs it in full.

# %%
# %pip install -q jaxlm

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxlm.analysis import boolean, switching
from jaxlm.analysis.context_counts import back_off
from jaxlm.papers import Lab, result
from jaxlm.tasks import InContextLanguages
from jaxlm.tasks.boolean import BooleanFunctions

SMOKE = False  # True: tiny sizes, to see that everything runs


def show(name, **changes):
    """Run an experiment with a few settings changed, print its claims, draw its figure."""
    if SMOKE and name not in ("icl-languages", "unfamiliar-examples"):
        return  # two stand for all: every experiment has a smoke test of its own
    module = result(name)
    settings = module.BUDGETS["smoke"] if SMOKE else module.Settings(**changes)
    found = module.run(settings, Lab(jax.random.key(0)))
    for claim in found.claims:
        print(f"{claim.name:75} {claim.ours:8.3g}")
    module.draw(plt.figure(figsize=(11, 4), layout="constrained"), found.series)
    plt.show()


# %% [markdown]
# ## 1. A coin that is exchanged
# Bits come from a coin with unknown bias, which is replaced at unknown times. Do models trained by log loss become the
# Bayes mixture over all times of replacement? (Genewein et al. 2023)
#
# A segment with $a$ zeros and $b$ ones has $P(1) = (b + \tfrac12)/(a + b + 1)$ next (KT). When a segment of $\ell$ bits
# ends with probability $1/(2\ell)$, the exact mixture (LIN) keeps one weight $W_s$ for every beginning $s$:
# $$W_t = \sum_{s<t} \frac{W_s}{2(t-s)}, \qquad W_s \leftarrow W_s \Big(1 - \frac{1}{2(t-s)}\Big),$$
# then each is multiplied by its own KT probability of the bit. *Redundancy* is what a predictor pays beyond one who
# knows every coin.

# %%
x = switching.draw(jax.random.key(1), "LIN", 2 if SMOKE else 256, 16 if SMOKE else 256)
mixtures = {"KT": switching.kt, "LIN": switching.lin}
for name, mixture in mixtures.items():
    paid = jax.jit(lambda bits, f=mixture: f(bits))(x.bits)
    print(name, "pays", float(jnp.mean(switching.truth(x)[:, -1] - paid[:, -1])), "nats more than who knows the coins")

# %%
show("switching-sources", sources=("LIN",), mixers=("GRU", "Attention"), seeds=1, steps=200, trials=200)

# %% [markdown]
# ## 2. Boolean functions
# Labelled points of an unknown conjunction are shown; what label has the next one? And does it help when the first
# points are chosen by a teacher? (Bhattamishra et al. 2023)
#
# With literals $S$, a lesson has $|S| + 2$ points: all of $S$ met and the other variables all $-1$, the same with all
# $+1$, then each literal alone broken. What both of the first two share is $S$. The Bayes learner sums over all
# $3^n - 1$ conjunctions $w$:
# $$P(y_t = 1) \propto \sum_w P(w) \prod_{i \le t} P(x_i \mid w) \prod_{i<t} [w(x_i) = y_i]\; w(x_t).$$

# %%
task = BooleanFunctions("conjunction", 4)
lesson = task.teach(task.draw(jax.random.key(2), 8))
print("the conjunction", np.asarray(lesson.w[0]), "is taught by\n", np.column_stack([lesson.x, lesson.y]).astype(int))
print("elimination says", boolean.elimination(np.asarray(lesson.x)[None], np.asarray(lesson.y)[None])[0])

# %%
show("boolean-functions", families=("conjunction", "DNF"), functions=100, steps=300, seeds=1)

# %% [markdown]
# ## 3. Symbols never met
# A rule such as "the two symbols are the same" holds for any symbols. How many must training show before a transformer
# applies it to others, and can two numbers per head make that cheaper? (Boix-Adsera et al. 2024)
#
# In a head, $W_Q W_K^\top + \sqrt{k}\, a I$ lets a token find its equals, $W_V W_O + b I$ copies what was found,
# whatever its embedding. A plain head has to learn the identity matrix from the symbols that it sees.

# %%
show("abstract-symbols", steps=300, seeds=1, copy_steps=150, looks=5)

# %% [markdown]
# ## 4. Languages from their strings
# A random automaton writes some strings. Can the next letter be told from the strings alone, and is counting in the
# context enough? (Akyürek et al. 2024)
#
# An n-gram head averages what followed the last $n$ tokens: $A_{ij} \propto [x_{i-r} = x_{j-1-r},\ 0 \le r < n]$,
# $j < i$. On one-hot vectors, $A h$ is the frequency of each next token in the context.

# %%
walk = InContextLanguages(4, 4, longest=6).draw(jax.random.key(3), 24)
tokens = np.asarray(walk.tokens)
print("strings   ", tokens)
print("after them", np.round(back_off(tokens, 2, 5, without=4)[-1], 2))

# %%
show("icl-languages", problems=20, steps=150, seeds=1)

# %% [markdown]
# ## 5. What was never learned
# A fine-tuned model is asked about something that it does not know. What does it say, and who decides that? (Kang et
# al. 2024)
#
# Among the fine-tuning examples, some are about unknown entities, with labels from a law $Q$. The output that loses
# least on these is $Q$, whatever the entity; so the less familiar an entity is, the smaller
# $\mathrm{KL}(Q \,\|\, p(\cdot \mid \text{entity}))$ should be, down to 0; and labels 'unknown' make the model abstain.

# %%
show("unfamiliar-examples", steps=600, group=500, seeds=1)

# %% [markdown]
# ## What to try next
# - Any mixer: `show("switching-sources", mixers=("LEM", "SRWM"))`, `show("boolean-functions", mixer="LSTM")`.
# - Another source: what does a model trained on LIN pay when the coin is exchanged every 20 bits?
# - More symbols: `alphabets=(8, 64)`; wider embeddings: `widths=(16, 128)`.
# - Heads of other orders: `show("icl-languages", orders=(1, 2, 3))`.
# - More answers, rarer entities: `show("unfamiliar-examples", answers=32, levels=8)`.
