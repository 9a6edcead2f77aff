"""A context acts on a block as a change of its MLP's weights, of rank one (Dherin et al. 2025).

Random blocks of several mixers, for every prefix of a context: without skip connection, with it (the bias that the MLP
gives changes, too), and token by token as gradient descent. Then a block trained to do linear regression in context.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.implicit_update import absorb, behind, descend, float64, rank_one
from jaxlm.blocks import Block
from jaxlm.layers.mlp import MLP
from jaxlm.mixers import make
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.dense import dense
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import Fit, fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Learning without training: the context as an update of weights"
QUESTION = "Is what a block does with a context the same as a rank-one change of its MLP's weights?"
ROWS = (40,)
NEEDS = ()
HEADLINE = "Attention, with skip: farthest output"


@dataclass(frozen=True)
class Settings:
    """The blocks.

    Args:
        mixer: Of the trained block.
        mixers: Of the random blocks.
        width: Of the residual stream.
        hidden: Of the MLP.
        context: Tokens of the longest context.
        inputs: Of the regression.
        batch: Sequences of a step.
        steps: Of Adam.
        rate: Its step size.
        seeds: Trained side by side.
        queries: Prompts that the trained blocks are asked.
    """

    mixer: str = "Attention"
    mixers: tuple[str, ...] = ("Attention", "GLA", "DeltaNet", "LEM", "SRWM", "LSTM")
    width: int = 32
    hidden: int = 64
    context: int = 16
    inputs: int = 2
    batch: int = 64
    steps: int = 1500
    rate: float = 3e-3
    seeds: int = 3
    queries: int = 32


BUDGETS = {
    "smoke": Settings("Attention", (), 4, 4, 4, 1, 4, 2, 1e-3, 2, 2),
    "cpu": Settings(),
    "gpu": Settings(width=128, hidden=512, context=64, batch=256, steps=5000, queries=256),
}


def block_of(mixer: str, s: Settings) -> Block:
    """A pre-norm block whose MLP has biases."""
    return Block(make(mixer, s.width), MLP(s.width, s.hidden))


@partial(jax.jit, static_argnums=0)
def exact(block: Block, params: Params, context: Array, query: Array) -> Tree:
    """Outputs of the query behind every prefix of the context, and without it by changed weights.   (n + 1, d) each

    block, patched     with skip: the prompt, the weights that absorbed it
    read               what the MLP reads of each
    plain, updated     the MLP without skip, the same
    descended          by gradient descent, a token a step, from the first token on
    step               |W_{i+1} - W_i|                                                         (n,)
    change             of the first map of the MLP, by the whole context                       (d, f)
    """
    sight, mlp = behind(block, params, context, query), params["mlp"]
    alone = jax.tree.map(lambda x: x[0], sight)

    def patched(together: Tree) -> Array:
        return block.apply(absorb(params, alone, together), query[None, None])[0][0, -1]

    def after(up: Array) -> Array:
        return block.mlp.apply({**mlp, "up": up}, alone.read)  # type: ignore[union-attr]

    change = jax.vmap(lambda read: rank_one(mlp["up"], alone.read, read))(sight.read)
    return {
        "block": sight.out,
        "read": sight.read,
        "patched": jax.vmap(patched)(sight),
        "plain": block.mlp.apply(mlp, sight.read),  # type: ignore[union-attr]
        "updated": jax.vmap(after)(mlp["up"][None] + change),
        "descended": jax.vmap(after)(descend(mlp["up"], alone.read, sight.read[1:])),
        "step": jnp.linalg.norm(jnp.diff(change, axis=0), axis=(1, 2)),
        "change": change[-1],
    }


@partial(jax.jit, static_argnums=(1, 2))
def prompts(key: Array, s: Settings, batch: int) -> tuple[Array, Array]:
    """Examples (x, w·x) of a regression each, then a query (x, 0).   (b, n + 1, inputs + 1), answers (b)"""
    of_x, of_w = jax.random.split(key)
    x = jax.random.normal(of_x, (batch, s.context + 1, s.inputs))
    y = jnp.einsum("btd,bd->bt", x, jax.random.normal(of_w, (batch, s.inputs)))
    return jnp.concatenate([x, y.at[:, -1].set(0.0)[..., None]], axis=-1), y[:, -1]


def train(s: Settings, lab: Lab) -> tuple[SequenceModel, Fit]:
    """One block that learns linear regression in context."""
    model = SequenceModel(block_of(s.mixer, s), 1, inputs=s.inputs + 1)

    def loss(params: Params, key: Array, step: Array) -> Array:
        x, y = prompts(key, s, s.batch)
        return jnp.mean((model.apply(params, x)[0][:, 0] - y) ** 2)

    keys, every = jax.random.split(lab.key, s.seeds), max(s.steps // 10, 1)
    return model, fit(keys, partial(init, model), loss, optax.adam(s.rate), steps=s.steps, every=every, tell=lab.tell)


@partial(jax.jit, static_argnums=0)
def asked(model: SequenceModel, params: Params, x: Array) -> Tree:
    """Predictions of one prompt by its prefixes, and by weights that absorbed them.   x (n + 1, inputs + 1)"""
    tokens = dense(x, params["input"], params["input_bias"])
    found = exact(model.body, params["body"], tokens[:-1], tokens[-1])  # type: ignore[arg-type]
    give = lambda y: dense(y, params["readout"], params["readout_bias"])[:, 0]  # noqa: E731
    return {"prompt": give(found["block"]), "weights": give(found["patched"]), "step": found["step"]}


def run(s: Settings, lab: Lab) -> Result:
    model, found = train(s, lab.part("train", 0.0, 0.6))
    claims = []
    with jax.enable_x64(True):
        for i, name in enumerate(s.mixers):
            key = jax.random.fold_in(lab.key, i)
            x = jax.random.normal(key, (s.context + 1, s.width), jnp.float64)
            claims += statements(name, exact(block_of(name, s), float64(init(block_of(name, s), key)), x[:-1], x[-1]))
            lab.tell(0.6 + 0.3 * (i + 1) / len(s.mixers), error=claims[-4].ours)
        x, y = float64(prompts(jax.random.fold_in(lab.key, 99), s, s.queries))
        ask = jax.vmap(jax.vmap(partial(asked, model), (None, 0)), (0, None))
        seen = jax.tree.map(np.asarray, ask(float64(found.params), x))
    lab.tell(1.0)
    steps, error = seen["step"].mean(axis=1), ((seen["prompt"] - np.asarray(y)[None, :, None]) ** 2).mean(axis=1)
    quarter = s.context // 4
    claims += [
        Claim("trained, prompt against weights: farthest prediction", farthest(seen, "prompt", "weights"), high=1e-10),
        Claim(
            "trained, steps of the last quarter of a prompt over the first, worst seed",
            (steps[:, -quarter:].mean(axis=1) / steps[:, :quarter].mean(axis=1)).max(),
            high=0.999,
        ),
        Claim("trained, squared error behind all examples, mean", error[:, -1].mean()),
        Claim("trained, squared error behind none, mean", error[:, 0].mean()),
    ]
    series = {"steps": steps, "error": error, "inputs": s.inputs}
    return Result(tuple(claims), series | {k: seen[k][0].ravel()[:500] for k in ("prompt", "weights")})


def farthest(found: Tree, a: str, b: str) -> float:
    return float(np.abs(np.asarray(found[a]) - np.asarray(found[b])).max())


def statements(name: str, found: Tree) -> list[Claim]:
    """The exact statements about a random block."""
    with_token, values = {**found, "plain": found["plain"][1:]}, np.linalg.svd(found["change"], compute_uv=False)
    return [
        Claim(f"{name}, with skip: farthest output", farthest(found, "block", "patched"), high=1e-10),
        Claim(f"{name}, without skip: farthest output", farthest(found, "plain", "updated"), high=1e-10),
        Claim(f"{name}, by gradient descent: farthest output", farthest(with_token, "plain", "descended"), high=1e-10),
        Claim(f"{name}: second singular value of the change, over the first", values[1] / values[0], high=1e-10),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4)
    a, b, c = figure.subplots(1, 3)
    both = np.array([series["prompt"], series["weights"]])
    a.plot([both.min(), both.max()], [both.min(), both.max()], "k", linewidth=1, label="the theorem")
    a.plot(*both, ".", label="predictions")
    a.set(xlabel="with the prompt", ylabel="alone, with changed weights", title="A prompt as a change of weights")
    steps = np.array(series["steps"])
    i = np.arange(1, steps.shape[1] + 1)
    for n, row in enumerate(steps):
        b.loglog(i, row, "o-", color=f"C{n}", label="seeds" if n == 0 else None)
    b.loglog(i, steps.mean(axis=0)[0] * 2 / (i + 1), "k--", label="an average over tokens, 1 / (i + 1)")
    b.set(xlabel="token i of the prompt", ylabel=r"$\|W_i - W_{i-1}\|$", title="Steps shrink")
    c.plot(np.arange(steps.shape[1] + 1), np.array(series["error"]).T, "o-")
    c.axhline(series["inputs"], color="k", linestyle="--", label="a guess of 0")
    c.set(xlabel="examples in the prompt", ylabel="squared error", title="What was learned")
    for axes in (a, b, c):
        axes.legend(frameon=False, fontsize="small")
