"""Navigating the latent space dynamics of neural models (Fumero et al. 2025): what an autoencoder does if it goes on.

An encoder E and a decoder D make two maps, x -> D(E(x)) of images and f: z -> E(D(z)) of codes; E takes each walk of
the first to one of the second. At a fixed point their Jacobians are products of the same two matrices in either order,
so they have the same eigenvalues but for zeros, and near to it a walk is f^k(z + δ) = z + J^k δ + ...: it comes back if
the spectral radius is below 1. A training sample is called an attractor if D(E(x)) is x to 1e-3 and the radius at E(x)
is below 1. ReLU networks on pooled MNIST digits, trained on few and on many, with noise on their inputs that fades out
(which makes them contract) and without any.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.fixed_points import iterate, newton, radius
from jaxlm.data.mnist import FILES, mnist
from jaxlm.papers.lem_smnist import sequences
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Navigating the latent space dynamics of neural models"
QUESTION = "Where does an autoencoder go that is applied again and again: to what it was trained on?"
ROWS = (85,)
NEEDS = FILES
HEADLINE = "20 samples: share that are attractors, least of the seeds"
FIXED, NEAR = 1e-3, 1e-2  # of the length of an image: a sample that stays; a walk that ends at a sample
SMALL = 1e-7  # a step from a fixed point that crosses no kink of a ReLU


@dataclass(frozen=True)
class Settings:
    """The autoencoders, their training and their walks.

    Args:
        side: Pixels of an image's side, a divisor of 28.
        hidden: Units of the encoder's layer, and of the decoder's.
        latent: Of a code.
        sizes: Numbers of training samples.
        noise: Of the inputs in training at its begin, standard deviation of a pixel; 0 at its end.
        seeds: Of weights and of samples.
        steps: Of Adam.
        batch: Samples a step, in turn.
        rate: Of Adam.
        walks: From noise, uniform in [0, 1].
        turns: Of a walk.
        exact: Samples whose fixed points are found exactly.
        short: Turns of a walk back to such a point.
    """

    side: int = 7
    hidden: int = 128
    latent: int = 16
    sizes: tuple[int, ...] = (10, 20, 40, 80, 160)
    noise: float = 0.05
    seeds: int = 3
    steps: int = 3000
    batch: int = 32
    rate: float = 2e-3
    walks: int = 50
    turns: int = 300
    exact: int = 10
    short: int = 30


BUDGETS = {
    "smoke": Settings(7, 4, 2, (1, 2), 0.05, 1, 2, 2, 1e-3, 6, 2, 1, 2),
    "cpu": Settings(),
    "gpu": Settings(14, 512, 64, (10, 20, 40, 80, 160, 320, 640), seeds=5, steps=20_000, rate=1e-3, batch=64),
}


def start(key: Array, widths: tuple[int, ...]) -> Params:
    """Encoder (pixels, hidden, latent) and decoder (latent, hidden, pixels), weights N(0, 1 / inputs)."""

    def layers(key: Array, widths: tuple[int, ...]) -> list[Params]:
        sizes = list(zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True))
        return [{"w": jax.random.normal(k, (m, n)) / np.sqrt(m), "b": jnp.zeros(m)} for k, n, m in sizes]

    encoder, decoder = jax.random.split(key)
    return {"encoder": layers(encoder, widths), "decoder": layers(decoder, widths[::-1])}


def apply(layers: list[Params], x: Array) -> Array:
    """Linear layers with ReLU between.   (n) -> (m)"""
    for i, layer in enumerate(layers):
        x = layer["w"] @ (x if i == 0 else jax.nn.relu(x)) + layer["b"]
    return x


def again(params: Params, x: Array) -> Array:
    """D(E(x))."""
    return apply(params["decoder"], apply(params["encoder"], x))


def field(params: Params, z: Array) -> Array:
    """f(z) = E(D(z))."""
    return apply(params["encoder"], apply(params["decoder"], z))


def train(s: Settings, images: np.ndarray, lab: Lab) -> Params:
    """Autoencoders with and without noise, of all sizes and seeds.   (seeds, n, d) -> leaves (models, ...)"""
    data = jnp.asarray(images)

    def loss(params: Params, key: Array, step: Array, each: Tree) -> Array:
        rows = (step * s.batch + jnp.arange(s.batch, dtype=jnp.int32)) % each["size"]
        x = data[each["seed"], rows]
        fading = each["noise"] * (1 - step.astype(jnp.float32) / s.steps)
        back = jax.vmap(lambda x: again(params, x))(x + fading * jax.random.normal(key, x.shape))
        return jnp.mean(jnp.sum((back - x) ** 2, axis=-1))

    noise, size, seed = np.meshgrid((s.noise, 0), s.sizes, np.arange(s.seeds), indexing="ij")
    each = {"noise": np.float32(noise.ravel()), "size": np.int32(size.ravel()), "seed": np.int32(seed.ravel())}
    widths = (images.shape[-1], s.hidden, s.latent)
    found = fit(
        jax.random.split(lab.key, s.seeds)[each["seed"]],
        lambda key, each: start(key, widths),
        loss,
        optax.adam(trapezoid(s.rate, s.steps, cooldown=0.6)),
        steps=s.steps,
        every=max(s.steps // 10, 1),
        each=jax.tree.map(jnp.asarray, each),
        tell=lab.tell,
    )
    return jax.device_get(found.params)


def look(params: Params, x: Array, noise: Array, shift: Array, s: Settings) -> Tree:
    """One autoencoder at some samples, and on walks from noise.   x (n, d), noise (walks, d), shift (exact, k)

    off       |D(E(x)) - x| / |x|                                                  (n,)
    jacobian  of f at E(x)                                                         (n, k, k)
    ends      of walks                                                             (walks, d)
    point, left          fixed points near the first samples; |f(z) - z| there     (exact, k), (exact)
    latent, pixel        their Jacobians                                           (exact, k, k), (exact, d, d)
    walked    f^i(z + δ) - f^i(z) there, over the size of δ                        (exact, short + 1, k)
    """
    f, g = lambda z: field(params, z), lambda x: again(params, x)
    length = lambda x: jnp.linalg.norm(x, axis=-1)  # noqa: E731
    code = jax.vmap(lambda x: apply(params["encoder"], x))(x)
    point = jax.vmap(lambda z: newton(f, z, 8))(code[: s.exact])
    jacobian = jax.vmap(jax.jacfwd(f))(jnp.concatenate([code, point]))
    walk = jax.vmap(lambda z: iterate(f, z, s.short))(jnp.concatenate([point, point + SMALL * shift]))
    return {
        "off": length(jax.vmap(g)(x) - x) / length(x),
        "jacobian": jacobian[: len(code)],
        "ends": jax.vmap(lambda x: iterate(g, x, s.turns)[-1])(noise),
        "point": point,
        "left": length(walk[: s.exact, 1] - point),
        "latent": jacobian[len(code) :],
        "pixel": jax.vmap(lambda z: jax.jacfwd(g)(apply(params["decoder"], z)))(point),
        "walked": (walk[s.exact :] - walk[: s.exact]) / SMALL,
    }


def judged(seen: Tree, images: np.ndarray, size: int) -> dict[str, float]:
    """Shares of one autoencoder's samples and walks.   images (n, d), the first `size` are its samples"""
    x, ends = images[:size], seen["ends"]
    stays, radii = seen["off"][:size] < FIXED, radius(seen["jacobian"][:size])
    with np.errstate(over="ignore", invalid="ignore"):  # walks may go to infinity
        gap = np.linalg.norm(ends[:, None] - x[None], axis=-1) / np.linalg.norm(x, axis=-1)[None]
    found = {
        "attractors": np.mean(stays & (radii < 1)),
        "stay": np.mean(stays),
        "contract": np.mean(radii < 1),
        "radius": np.median(radii),
        "walks": np.mean(gap.min(axis=1) < NEAR),
        "reached": np.mean(gap.min(axis=0) < NEAR),
    }
    return {k: float(v) for k, v in found.items()}


def checked(seen: list[Tree], shift: np.ndarray) -> dict[str, np.ndarray]:
    """What holds exactly at the fixed points that attract, as distances.   leaves (models * exact, ...)"""
    flat = {k: np.concatenate([one[k] for one in seen]) for k in ("left", "latent", "pixel", "walked")}
    told = [np.tile(shift, (len(seen), 1))]
    for _ in range(flat["walked"].shape[1] - 1):
        told.append(np.einsum("nij,nj->ni", flat["latent"], told[-1]))
    told, radii = np.stack(told, axis=1), radius(flat["latent"])
    there = (flat["left"] < 1e-10) & (radii < 1)
    walked, told, size = flat["walked"][there], told[there], lambda x: np.linalg.norm(x, axis=-1)
    return {
        "radii": radii[there],
        "orders": np.abs(radii - radius(flat["pixel"]))[there],
        "walks": size(walked - told).max(axis=-1) / size(told[:, 0]),
        "walked": size(walked),
        "told": size(told),
    }


def run(s: Settings, lab: Lab) -> Result:
    pooled = sequences(mnist(lab.data)["train"][0], s.side)[..., 0]
    orders = [np.random.Generator(np.random.Philox(seed)).permutation(len(pooled)) for seed in range(s.seeds)]
    images = np.stack([pooled[order[: max(s.sizes)]] for order in orders])
    params = train(s, images, lab.part("train", 0.0, 0.8))
    rng = np.random.Generator(np.random.Philox(s.seeds))
    noise, shift = rng.random((s.walks, images.shape[-1])), rng.normal(size=(s.exact, s.latent))
    with jax.enable_x64(True):
        every = np.tile(np.float64(images), (2 * len(s.sizes), 1, 1))
        one = jax.jit(jax.vmap(lambda p, x, noise, shift: look(p, x, noise, shift, s), (0, 0, None, None)))
        seen = jax.device_get(one(jax.tree.map(np.float64, params), every, noise, shift))
    models = [{k: v[i] for k, v in seen.items()} for i in range(len(every))]
    sizes = np.tile(np.repeat(s.sizes, s.seeds), 2)
    shares = [judged(m, x, n) for m, x, n in zip(models, every, sizes, strict=True)]
    found = {k: np.reshape([d[k] for d in shares], (2, len(s.sizes), s.seeds)) for k in shares[0]}
    exact = checked([m for m, n in zip(models[: len(models) // 2], sizes, strict=False) if n >= s.exact], shift)
    lab.tell(1.0)
    return Result(claims(s, found, exact), series(s, found, exact, noise, models, images))


def claims(s: Settings, found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> tuple[Claim, ...]:
    share = found["attractors"]
    means = share[0].mean(axis=-1)
    few, at = [n for n in s.sizes if n <= 20], len([n for n in s.sizes if n <= 20]) - 1
    out = [
        Claim(f"{n} samples: share that are attractors, least of the seeds", share[0, i].min(), low=0.8)
        for i, n in enumerate(few)
    ]
    out += [
        Claim("share of attractors: largest rise to the next number of samples", np.diff(means).max(), high=0),
        Claim(f"share of attractors, {s.sizes[-1]} samples less {s.sizes[at]}", means[-1] - means[at], high=-0.1),
        Claim("fixed points: radius of codes and of images, farthest", exact["orders"].max(initial=0), high=1e-8),
        Claim("near them: a walk from J^k δ, farthest", exact["walks"].max(initial=0), high=1e-6),
    ]
    names = {
        "walks": "walks from noise that end at a sample", "reached": "samples that a walk ends at",
        "stay": "samples that stay to 1e-3", "contract": "samples with a radius below 1",
        "radius": "median radius",
    }  # fmt: skip
    for i in sorted({at, len(s.sizes) - 1}):
        out += [Claim(f"{s.sizes[i]} samples: {said}", found[k][0, i].mean()) for k, said in names.items()]
    plain = [("attractors", "share that are attractors"), *names.items()]
    out += [Claim(f"without noise, {s.sizes[at]} samples: {said}", found[k][1, at].mean()) for k, said in plain]
    return tuple(Claim(c.name, float(c.ours), c.low, c.high) for c in out)


def series(s: Settings, found: Tree, exact: Tree, noise: np.ndarray, models: list, images: np.ndarray) -> dict:
    """What is drawn: shares by size, walks back to fixed points, and from noise where there are few samples."""
    at = max(i for i, n in enumerate(s.sizes) if n <= 20)
    ends, x = models[at * s.seeds]["ends"][:6], images[0, : s.sizes[at]]
    nearest = x[np.linalg.norm(ends[:, None] - x[None], axis=-1).argmin(axis=1)]
    means = {k: found[k].mean(axis=-1) for k in ("attractors", "stay", "contract", "walks")}
    back = {k: exact[k][:4] for k in ("walked", "told", "radii")}
    return {
        "sizes": s.sizes,
        **means,
        "back": back,
        "side": s.side,
        "begins": noise[:6],
        "ends": ends,
        "nearest": nearest,
    }


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    said = {
        "attractors": "attractors",
        "stay": "stay to 1e-3",
        "contract": "radius below 1",
        "walks": "walks that end there",
    }
    for n, (key, label) in enumerate(said.items()):
        for kind, line in enumerate(("-", ":")):
            a.semilogx(series["sizes"], series[key][kind], f"C{n}o{line}", ms=4, label=label if kind == 0 else None)
    a.plot([], [], "k:", label="the same, trained without noise")
    a.set(xlabel="training samples", ylabel="share", title="Samples that are attractors", ylim=(-0.05, 1.05))
    a.set_xticks(series["sizes"], series["sizes"])
    a.minorticks_off()
    back = series["back"]
    for n, (walked, told, rate) in enumerate(zip(back["walked"], back["told"], back["radii"], strict=True)):
        b.semilogy(walked, f"C{n}o", ms=4)
        b.semilogy(told, f"C{n}-", label=f"$|J^k δ|$, radius {rate:.2f}")
    b.set(xlabel="turn k", ylabel="distance from the fixed point, over 1e-7", title="The way back")
    rows = [np.array(series[k]).reshape(-1, series["side"], series["side"]) for k in ("begins", "ends", "nearest")]
    c.imshow(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]), cmap="gray_r", vmin=0, vmax=1)
    c.set_yticks([series["side"] * (i + 0.5) for i in range(3)], ["noise", "its end", "nearest\nsample"])
    c.set_xticks([])
    c.set(title="Walks from noise, at most 20 samples")
    for axes, place in ((a, "center left"), (b, "lower left")):
        axes.legend(frameon=False, fontsize="small", loc=place)
