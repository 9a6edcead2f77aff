"""A pretrained Llama, stories260K: its recorded logits, its recorded greedy text, and its files there and back.

The weights were trained by A. Karpathy on TinyStories (Eldan & Li 2023), 260,032 of them; the expected logits are of an
independent float64 forward pass. Nothing is trained here.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxlm.bridges.huggingface import load, save
from jaxlm.data.tokens import tokenizer_in
from jaxlm.generate import Sampling, generate
from jaxlm.module import count
from jaxlm.papers.result import Claim, Lab, Result

TITLE = "stories260K, a pretrained Llama"
ROWS = ()
NEEDS = ("models/stories260K",)
FOLDER = NEEDS[0]


@dataclass(frozen=True)
class Settings:
    """stories260K.

    Attributes:
        tokens: How many of the 96 recorded tokens are compared.
        cut: Tokens at a time when the text is read again through the cache.
    """

    tokens: int = 96
    cut: int = 8


BUDGETS = {"smoke": Settings(tokens=24), "cpu": Settings(), "gpu": Settings()}


def run(s: Settings, lab: Lab) -> Result:
    folder = lab.data.file(FOLDER)
    model, params = load(folder)
    record = lab.data.arrays(f"{FOLDER}/expected.npz")
    ids, want = jnp.asarray(record["tokens"][: s.tokens], jnp.int32)[None], record["logits"][: s.tokens]
    logits = np.asarray(_read(model, params, ids)[0])
    lab.tell(0.3, difference=float(np.abs(logits - want).max()))
    pieces = np.asarray(_in_pieces(model, params, ids, s.cut))
    lab.tell(0.6)
    written, _ = generate(model, params, ids[:, :1], s.tokens - 1, None, Sampling(temperature=0))
    text = tokenizer_in(folder).decode(np.concatenate([np.asarray(ids[0, :1]), np.asarray(written[0])]))
    wrong = np.sum(np.asarray(written[0]) != record["tokens"][1 : s.tokens])
    nats = np.asarray(-jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), ids[0, 1:, None], axis=1)[:, 0])
    with tempfile.TemporaryDirectory() as place:
        save(place, model, params)
        altered = _altered(folder / "model.safetensors", Path(place) / "model.safetensors")
        again, back = load(place)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True)
    altered += sum(bool(jnp.any(a != b)) for a, b in pairs) + (again != model)
    lab.tell(1.0)
    claims = (
        Claim("greatest difference of a logit", float(np.abs(logits - want).max()), high=1e-4, paper=0.0),
        Claim("the same, read in pieces through the cache", float(np.abs(pieces - want).max()), high=1e-4, paper=0.0),
        Claim("greedy tokens that differ", float(wrong), high=0, paper=0),
        Claim("weights", count(model), 260_032, 260_032, 260_032),
        Claim("tensors altered by save and load", altered, high=0),
        Claim("nats a token of its own text", float(nats.mean())),
    )
    series = {"nats": nats, "difference": np.abs(logits - want).max(axis=1), "text": text}
    return Result(claims, series, (text,))


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Above: how far the logits are from the recorded ones. Below: how surprising each token of the text is."""
    above, below = figure.subplots(2, 1, sharex=True)
    difference, nats = np.asarray(series["difference"]), np.asarray(series["nats"])
    above.semilogy(np.arange(len(difference)), np.maximum(difference, 1e-9), lw=1)
    above.axhline(1e-4, color="0.6", ls="--", lw=1)
    above.set_ylabel("greatest difference\nof a logit")
    below.bar(np.arange(1, len(nats) + 1), nats, width=0.9)
    below.set_xlabel("token")
    below.set_ylabel("nats")


def _read(model: Any, params: Any, ids: jax.Array) -> jax.Array:
    """(b, t, vocab)."""
    return jax.jit(lambda p, x: model.apply(p, x)[0])(params, ids)


def _in_pieces(model: Any, params: Any, ids: jax.Array, size: int) -> jax.Array:
    """(t, vocab), the state carried from piece to piece."""
    go, state, out = jax.jit(model.apply), model.start(params, 1, ids.shape[1]), []
    for at in range(0, ids.shape[1], size):
        logits, state = go(params, ids[:, at : at + size], state)
        out.append(logits[0])
    return jnp.concatenate(out)


def _altered(ours: Path, theirs: Path) -> int:
    """Tensors of two files that are not the same to the bit."""
    from safetensors.numpy import load_file

    a, b = load_file(ours), load_file(theirs)
    return sum(n not in a or n not in b or a[n].tobytes() != b[n].tobytes() for n in {*a, *b})
