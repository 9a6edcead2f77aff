"""Transformers that are n-gram models, by their weights (Svete & Cotterell 2024).

Random conditionals over some symbols and an end mark, which on entry is the mark before the first symbol. Three
constructions: n-1 heads in one layer with hard attention, n-1 layers of one head, sparse attention; and softmax, whose
heads leak 2 exp(-β) to the neighbours of the token that they look for.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.ngram_compiler import attending, compile_ngrams
from jaxlm.models.lm import LM
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.taps import capture
from jaxlm.typing import Array, Params

TITLE = "Transformers can represent n-gram language models"
QUESTION = "Can a transformer hold every conditional of an n-gram model exactly, and what does softmax cost it?"
ROWS = (23,)
NEEDS = ()
HEADLINE = "n-1 heads, hard attention: farthest conditional"

FORMS = {
    "n-1 heads, hard attention": (False, "hard"),
    "n-1 heads, sparse attention": (False, "sparse"),
    "n-1 layers, hard attention": (True, "hard"),
}


@dataclass(frozen=True)
class Settings:
    """The n-gram models.

    Args:
        order: n of the model that is asked about all strings.
        symbols: Of its alphabet.
        length: Of the longest strings.
        large_order: n of the model that is asked about random strings.
        large_symbols: Of its alphabet.
        large_length: Of these strings.
        strings: Of them.
        betas: Sharpness of softmax attention; the last one is to be exact.
        rows: Strings at a time.
    """

    order: int = 3
    symbols: int = 4
    length: int = 8
    large_order: int = 4
    large_symbols: int = 5
    large_length: int = 24
    strings: int = 1000
    betas: tuple[float, ...] = (2.5, 5.0, 10.0, 15.0, 20.0, 40.0)
    rows: int = 8192


BUDGETS = {
    "smoke": Settings(3, 2, 3, 3, 2, 3, 8, (5.0, 40.0), 8),
    "cpu": Settings(),
    "gpu": Settings(symbols=5, strings=100000),
}


def random_table(rng: np.random.Generator, order: int, symbols: int) -> np.ndarray:
    """Conditionals, each uniform among all: p(next | history), the last token the mark.   (v, ..., v)"""
    return rng.dirichlet(np.ones(symbols + 1), (symbols + 1,) * (order - 1))


def padded(strings: np.ndarray, order: int, mark: int) -> np.ndarray:
    """Strings behind n-1 marks.   (b, t) -> (b, n - 1 + t) int32"""
    return np.pad(strings, ((0, 0), (order - 1, 0)), constant_values=mark).astype(np.int32)


def conditionals(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """What the n-gram model says after each token from the last mark on.   (b, n - 1 + t) -> (b, 1 + t, v)"""
    n, t = table.ndim, tokens.shape[1]
    return table[tuple(tokens[:, i : t - n + 2 + i] for i in range(n - 1))]


@partial(jax.jit, static_argnums=(0, 3))
def compiled(model: LM, params: Params, tokens: Array, how: str) -> Array:
    """The model's probabilities after every token.   (b, t) -> (b, t, v)"""
    return jax.nn.softmax(attending(model.apply, how)(params, tokens)[0], axis=-1)


@partial(jax.jit, static_argnums=0)
def leak(model: LM, params: Params, tokens: Array) -> tuple[Array, Array]:
    """What a soft head one token back gives to others, mean over the places with a token on both sides; and the output.

    ->   (), (b, t, v)
    """
    (out, _), seen = capture(model.apply, ["attn.probs"])(params, tokens)
    probs = seen["attn.probs"][0][:, 1, 0]  # (b, q, s)
    found = jnp.diagonal(probs, -1, axis1=1, axis2=2)[:, 1:]
    return 1 - jnp.mean(found), jax.nn.softmax(out, axis=-1)


def farthest(model: LM, params: Params, how: str, table: np.ndarray, tokens: np.ndarray, rows: int) -> float:
    """The largest difference of a conditional, over all strings."""
    gaps = []
    for first in range(0, len(tokens), rows):
        part = tokens[first : first + rows]
        got = compiled(model, params, jnp.asarray(part), how)[:, table.ndim - 2 :]
        gaps.append(np.abs(np.asarray(got) - conditionals(table, part)).max())
    return float(max(gaps))


def run(s: Settings, lab: Lab) -> Result:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    small, large = random_table(rng, s.order, s.symbols), random_table(rng, s.large_order, s.large_symbols)
    every = padded(np.array(list(product(range(s.symbols), repeat=s.length))), s.order, s.symbols)
    drawn = padded(rng.integers(s.large_symbols, size=(s.strings, s.large_length)), s.large_order, s.large_symbols)
    claims, errors = [], {}
    with jax.enable_x64(True):
        for i, (name, (layers, how)) in enumerate(FORMS.items()):
            model, params = compile_ngrams(small, every.shape[1], layers=layers)
            errors[name] = farthest(model, params, how, small, every, s.rows)
            claims.append(Claim(f"{name}: farthest conditional", errors[name], high=1e-10))
            lab.tell(0.2 * (i + 1), error=errors[name])
        model, params = compile_ngrams(large, drawn.shape[1])
        gap = farthest(model, params, "hard", large, drawn, s.rows)
        claims.append(
            Claim(f"{s.large_order}-grams of {s.large_symbols} symbols: farthest conditional", gap, high=1e-10)
        )
        soft = softness(small, every[:: max(len(every) // 256, 1)], s.betas)
    lab.tell(1.0)
    for beta, lost in zip(s.betas, soft["leak"], strict=True):
        if 5 <= beta <= 20:
            ratio = lost / (2 * np.exp(-beta))
            claims.append(Claim(f"softmax, β = {beta:g}: leak over 2 exp(-β)", ratio, low=0.98, high=1.001, paper=1.0))
    claims.append(Claim(f"softmax, β = {s.betas[-1]:g}: farthest conditional", soft["error"][-1], high=1e-10))
    series = {"errors": errors, "betas": s.betas, **soft}
    return Result(tuple(claims), series)


def softness(table: np.ndarray, tokens: np.ndarray, betas: tuple[float, ...]) -> dict[str, list]:
    """Leaks and farthest conditionals of softmax attention at each sharpness, and some conditionals at the first."""
    out: dict[str, list] = {"leak": [], "error": [], "want": [], "got": []}
    for i, beta in enumerate(betas):
        model, params = compile_ngrams(table, tokens.shape[1], beta)
        lost, got = leak(model, params, jnp.asarray(tokens))
        got, want = np.asarray(got)[:, table.ndim - 2 :], conditionals(table, tokens)
        out["leak"].append(float(lost))
        out["error"].append(float(np.abs(got - want).max()))
        if i == 0:
            out["want"], out["got"] = want.ravel()[:2000].tolist(), got.ravel()[:2000].tolist()
    return out


def draw(figure, series) -> None:
    figure.set_size_inches(10, 4)
    a, b = figure.subplots(1, 2)
    betas = np.linspace(series["betas"][0], series["betas"][-1], 100)
    a.semilogy(series["betas"], series["leak"], "o", label="attention lost to neighbours")
    a.semilogy(betas, 2 * np.exp(-betas), "k--", label=r"$2e^{-\beta}$")
    a.semilogy(series["betas"], np.maximum(series["error"], 1e-17), "s", mfc="none", label="farthest conditional")
    a.set(xlabel=r"sharpness $\beta$ of softmax", title="What softmax costs")
    a.legend(frameon=False)
    b.plot([0, 1], [0, 1], "k", linewidth=1)
    b.plot(series["want"], series["got"], ".", label=rf"softmax, $\beta$ = {series['betas'][0]:g}")
    for name, error in series["errors"].items():
        b.plot([], [], " ", label=f"{name}: {error:.1e}")
    b.set(xlabel="n-gram model", ylabel="compiled transformer", title="Conditionals, and the farthest of each form")
    b.legend(frameon=False, fontsize="small")
