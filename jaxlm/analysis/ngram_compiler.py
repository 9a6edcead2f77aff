"""N-gram models written into the weights of transformers: nothing is trained, every conditional is exact.

The residual stream holds the token (one-hot), its place (t, t², 1), n-1 slots for the last tokens, and the logits.
A head with query β (2 (t - h), -1) and key (j, j²) scores β ((t - h)² - (j - t + h)²): it looks h tokens back.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.blocks import Block, Chain
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.layers.mlp import MLP
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models.lm import LM
from jaxlm.module import Module
from jaxlm.ops.simplex import hardmax, sparsemax
from jaxlm.taps import replace
from jaxlm.typing import Array, Params

NEVER = -1e4  # the logit of what has probability 0: exp gives 0 in every dtype
SWITCHES = {"soft": lambda p: p, "hard": hardmax, "sparse": lambda p: sparsemax(jnp.log(p))}


class Unchanged(Module):
    """x itself, in the place of a norm.   x, y (..., d)"""

    width: int

    def apply(self, params: Params, x: Array) -> Array:
        return x


def compile_ngrams(table: np.ndarray, length: int, beta: float = 2.0, layers: bool = False) -> tuple[LM, Params]:
    """A transformer whose conditionals are those of an n-gram model.

    table    p(next | n-1 tokens before, the oldest first)      (v, ..., v), n axes
    length   tokens that it can read
    beta     sharpness of its attention; at least 1 where it is sparse
    layers   False: n-1 heads in one layer; True: n-1 layers of one head, each copies the slot of the token before
    ->       the model and its weights, numpy in the table's dtype; v^(n-1) hidden units

    Before the first token stand n-1 others (the table says which). Raises ConfigError for n < 2.
    Svete & Cotterell 2024, theorems 3.1 to 3.3.
    """
    n, v = table.ndim, table.shape[0]
    if n < 2 or set(table.shape) != {v}:
        raise ShapeError(f"table: got {table.shape}, expected n > 1 equal axes")
    if beta <= 0:
        raise ConfigError(f"beta = {beta}: expected a positive sharpness")
    d, head, hidden = v * (n + 1) + 3, max(v, 2), v ** (n - 1)
    mlp, norm = MLP(d, hidden, "relu"), Unchanged(d)
    attend = Attention(d, 1 if layers else n - 1, head=head, position=None)
    blocks = [Block(attend, mlp if not layers or h == n - 2 else None, norm) for h in range(n - 1 if layers else 1)]
    model = LM(v, d, Chain((LearnedPositions(d, length), *blocks)), tied=False, norm=norm, scale=1.0)
    heads = [[h] for h in range(n - 1)] if layers else [list(range(n - 1))]
    body: dict[str, Any] = {"part0": {"table": place_codes(v, d, length)}}
    for i, (block, back) in enumerate(zip(blocks, heads, strict=True)):
        body[f"part{i + 1}"] = {"norm": {}, "mixer": copying_heads(v, d, head, beta, back, by_one=layers)}
        if block.mlp is not None:
            body[f"part{i + 1}"] |= {"mlp_norm": {}, "mlp": _looking_up(table, d)}
    last = d - v
    params = {"embed": np.eye(v, d), "body": body, "norm": {}, "readout": np.eye(d, v, -last)}
    return model, _cast(params, table.dtype)


def attending(f: Callable[..., Any], how: str) -> Callable[..., Any]:
    """f with 'soft', 'hard' (the largest probability is 1) or 'sparse' attention (sparsemax of the same scores)."""
    if how not in SWITCHES:
        raise ConfigError(f"how = {how!r}: expected one of {', '.join(SWITCHES)}")
    return replace(f, {"attn.probs": lambda p, at: SWITCHES[how](p)})


def place_codes(v: int, d: int, length: int) -> np.ndarray:
    """(t, t², 1) behind v numbers of the token, as LearnedPositions adds them.   (length, d)"""
    t, out = np.arange(length), np.zeros((length, d))
    out[:, v : v + 3] = np.stack([t, t * t, np.ones(length)], axis=1)
    return out


def copying_heads(v: int, d: int, k: int, beta: float, back: list[int], by_one: bool) -> Params:
    """Heads that fill the slots `back`: with the token so far back, or, by one, with the slot before one token back."""
    place, square, one = v, v + 1, v + 2
    query, key, value = (np.zeros((d, len(back), k)) for _ in range(3))
    out = np.zeros((len(back), k, d))
    for i, h in enumerate(back):
        far = min(h, 1) if by_one else h
        query[place, i, 0], query[one, i, :2] = 2, (-2 * far, -1)
        key[place, i, 0], key[square, i, 1] = 1, 1
        source = slot(v, h - 1) if by_one and h else 0
        value[source + np.arange(v), i, np.arange(v)] = 1
        out[i, np.arange(v), slot(v, h) + np.arange(v)] = 1
    return {"query": beta * np.sqrt(k) * query, "key": key, "value": value, "out": out}  # attention divides by √k


def _looking_up(table: np.ndarray, d: int) -> Params:
    """One hidden unit for each history, which is on for it alone; it writes the logits."""
    n, v = table.ndim, table.shape[0]
    histories = np.indices(table.shape[:-1]).reshape(n - 1, -1)
    up = np.zeros((d, histories.shape[1]))
    for h in range(n - 1):
        up[slot(v, h) + histories[n - 2 - h], np.arange(histories.shape[1])] = 1
    down = np.zeros((histories.shape[1], d))
    with np.errstate(divide="ignore"):
        down[:, d - v :] = np.maximum(np.log(table.reshape(-1, v)), NEVER)
    return {"up": up, "up_bias": np.full(up.shape[1], 2.0 - n), "down": down, "down_bias": np.zeros(d)}


def slot(v: int, h: int) -> int:
    """Where the token h places back is held."""
    return v + 3 + h * v


def _cast(tree: Any, dtype: Any) -> Any:
    return {k: _cast(x, dtype) if isinstance(x, dict) else x.astype(dtype) for k, x in tree.items()}
