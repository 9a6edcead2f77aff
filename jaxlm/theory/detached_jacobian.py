"""Language models are locally linear maps (Golden 2025): the detached Jacobian of a small one, taken apart.

A bias-free model of characters (rotary attention, RMSNorm, SwiGLU), at random weights and trained on tiny Shakespeare.
Gates, attention weights and norms are held at their values; what the last position gives is then a sum of one matrix
for each input embedding. Directions are singular vectors of all these matrices side by side.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.detached import detached_jacobian
from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped
from jaxlm.typing import Array, Params, Tree

TITLE = "Large language models are locally linear mappings"
QUESTION = "Is what a language model says at one input a linear map of its input embeddings, and of which rank?"
ROWS = (41,)
NEEDS = (SHAKESPEARE,)
HEADLINE = "trained: farthest of J x from the output, relative"
FEW = 5  # directions that are to hold most of the output


@dataclass(frozen=True)
class Settings:
    """The model and what it is asked.

    Args:
        width: Of the residual stream.
        depth: Blocks.
        length: Tokens of a training row.
        batch: Rows of a step.
        steps: Of Adam.
        rate: Its step size.
        seeds: Models, each with weights of its own.
        prompt: Tokens of a prompt.
        prompts: Of the text, for each model.
        single: Also in float32.
    """

    width: int = 48
    depth: int = 3
    length: int = 48
    batch: int = 16
    steps: int = 400
    rate: float = 3e-3
    seeds: int = 3
    prompt: int = 12
    prompts: int = 16
    single: bool = True


BUDGETS = {
    "smoke": Settings(8, 1, 4, 2, 1, 1e-3, 1, 3, 1, False),
    "cpu": Settings(),
    "gpu": Settings(width=256, depth=6, length=256, batch=64, steps=5000, prompts=64),
}


def last(model: LM, params: Params, x: Array) -> Array:
    """What the readout reads at the last position, of input embeddings.   x (t, d) -> (d,)"""
    y, _ = model.mix(params, x[None], jnp.zeros((1, x.shape[0]), jnp.int32), None, None, None)
    return model.normalise.apply(params["norm"], y)[0, -1]


def embedded(model: LM, params: Params, tokens: Array) -> Array:
    """(t,) -> (t, d)"""
    return params["embed"][tokens] * jnp.asarray(model.width**0.5, params["embed"].dtype)


@partial(jax.jit, static_argnums=0)
def measure(model: LM, params: Params, tokens: Array, key: Array) -> Tree:
    """One prompt taken apart.   tokens (t,)

    error, ordinary   |f(x) - J x| / |f(x)| of the detached Jacobian and of the ordinary one      ()
    moved             |f(x + e) - J (x + e)| / |f(x + e)|, e of size 1 % of x                     ()
    values            singular values of J, all tokens side by side                               (d,)
    energy            share of |f(x)|² in the first directions                                    (d,)
    stable            stable rank of the last token's matrix                                      ()
    decoded           the prediction is among the first three tokens of one of the FEW            () bool
    """
    x, f = embedded(model, params, tokens), partial(last, model, params)
    y, jacobian, rest = detached_jacobian(f, x)
    size = jnp.linalg.norm
    near = x * (1 + 0.01 * jax.random.normal(key, x.shape, x.dtype))
    there = f(near)
    u, s, v = jnp.linalg.svd(jacobian.reshape(len(y), -1), full_matrices=False)
    parts = s * (v @ x.ravel())
    own = jnp.linalg.svd(jacobian[:, -1], compute_uv=False)
    readout = model.readout(params)
    tops = jax.lax.top_k((u[:, :FEW] * jnp.sign(parts[:FEW])[None]).T @ readout, 3)[1]
    return {
        "error": size(rest) / size(y),
        "ordinary": size(y - jax.jvp(f, (x,), (x,))[1]) / size(y),
        "moved": size(there - jnp.tensordot(jacobian, near, 2)) / size(there),
        "values": s,
        "energy": jnp.cumsum(parts**2) / jnp.sum(y**2),
        "stable": jnp.sum(own**2) / own[0] ** 2,
        "decoded": (tops == jnp.argmax(y @ readout).astype(tops.dtype)).any(),
    }


def train(s: Settings, text: Array, vocab: int, lab: Lab) -> tuple[LM, Params, Params]:
    """Some models at random weights and trained, leaves (seeds, ...)."""
    model = LM(vocab, s.width, Stack(Block(Attention(s.width), SwiGLU(s.width)), s.depth))

    def loss(params: Params, key: Array, step: Array) -> Array:
        first = jax.random.randint(key, (s.batch, 1), 0, len(text) - s.length)
        rows = text[first + jnp.arange(s.length + 1)[None]]
        (nats, count), _ = model.loss(params, rows[:, :-1], rows[:, 1:], jnp.ones((s.batch, s.length)))
        return nats / count

    keys, tx = jax.random.split(lab.key, s.seeds), clipped(optax.adam(s.rate))
    found = fit(keys, partial(init, model), loss, tx, steps=s.steps, every=max(s.steps // 10, 1), tell=lab.tell)
    return model, jax.vmap(partial(init, model))(keys), found.params


def run(s: Settings, lab: Lab) -> Result:
    letters, ids = np.unique(np.array([lab.data.text(SHAKESPEARE)]).view(np.uint32), return_inverse=True)
    text = jnp.asarray(ids, jnp.int32)
    model, random, trained = train(s, text, len(letters), lab.part("train", 0.0, 0.7))
    key = jax.random.fold_in(lab.key, 1)
    first = jax.random.randint(key, (s.prompts, 1), 0, len(text) - s.prompt)
    prompts, keys = text[first + jnp.arange(s.prompt)[None]], jax.random.split(key, s.prompts)
    ask = jax.vmap(jax.vmap(partial(measure, model), (None, 0, 0)), (0, None, None))
    single = ask(trained, prompts, keys)["error"] if s.single else None
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)  # noqa: E731
        kinds = {"random": random, "trained": trained}
        found = {name: jax.device_get(ask(double(p), prompts, keys)) for name, p in kinds.items()}
    lab.tell(1.0)
    claims = [claim for name in found for claim in statements(name, found[name])]
    if single is not None:
        claims.append(Claim("trained, float32: farthest of J x, relative", float(jnp.max(single)), high=1e-4))
    means = {n: {k: v.mean(axis=(0, 1)) for k, v in x.items() if k in ("values", "energy")} for n, x in found.items()}
    errors = {n: {k: x[k].ravel() for k in ("error", "ordinary", "moved")} for n, x in found.items()}
    return Result(tuple(claims), {"mean": means, "errors": errors})


def statements(name: str, found: Tree) -> list[Claim]:
    """What is to hold at random and at trained weights."""
    few, judged = found["energy"][..., :FEW][..., -1], name == "trained"
    enough = (found["energy"] < 0.9).sum(axis=-1) + 1
    return [
        Claim(f"{name}: farthest of J x from the output, relative", found["error"].max(), high=1e-10),
        Claim(f"{name}: ordinary Jacobian, nearest", found["ordinary"].min(), low=0.01),
        Claim(f"{name}: input moved by 1 %, nearest", found["moved"].min(), low=1e-6),
        Claim(f"{name}: share of the output in {FEW} directions", few.mean(), low=0.9 if judged else -np.inf),
        Claim(f"{name}: directions for 90 % of the output", enough.mean()),
        Claim(f"{name}: stable rank of the last token's matrix", found["stable"].mean()),
        Claim(f"{name}: prediction among tokens of {FEW} directions", found["decoded"].mean()),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4)
    a, b, c = figure.subplots(1, 3)
    for n, (name, errors) in enumerate(series["errors"].items()):
        for i, values in enumerate(errors.values()):
            a.semilogy(np.full(len(values), i) + 0.3 * n, np.maximum(values, 1e-17), ".", color=f"C{n}", label=name)
    a.set_xticks([0.15, 1.15, 2.15], ["held", "ordinary", "held,\nmoved by 1 %"])
    a.set(title="Distance of J x from the output", ylabel="relative")
    handles = dict(zip(*a.get_legend_handles_labels()[::-1], strict=True))
    a.legend(handles.values(), handles.keys(), frameon=False)
    for name, mean in series["mean"].items():
        i = np.arange(1, len(mean["values"]) + 1)
        b.semilogy(i, np.array(mean["values"]) / mean["values"][0], label=name)
        c.plot(i, mean["energy"], label=name)
    c.axhline(1.0, color="k", linestyle="--", linewidth=1, label="all of it")
    b.set(title="Singular values of J", xlabel="direction", ylabel="relative to the first")
    c.set(title="Share of the output", xlabel="directions", ylim=(0, 1.05))
    for axes in (b, c):
        axes.legend(frameon=False)
