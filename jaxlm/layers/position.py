"""How places enter attention besides turning: a bias in proportion to the distance, and sets without an order."""

import jax.numpy as jnp
import numpy as np

from jaxlm.module import Module
from jaxlm.typing import Array


class ALiBi(Module):
    """Scores lose m_h (i - j), a slope m_h a head, and nothing turns (Press et al. 2022)."""

    def slopes(self, h: int) -> np.ndarray:
        """m_h: 2^(-8/H), 2^(-16/H), ... for H a power of two; else those of the power P below, then every other of 2P.

        ->   (h)
        """
        p = 1 << (h.bit_length() - 1)
        return 2.0 ** np.concatenate([-8 * np.arange(1, p + 1) / p, -4 * (2 * np.arange(1, h - p + 1) - 1) / p])

    def bias(self, h: int, query: Array, key: Array) -> Array:
        """What is added to the scores.   places (b or 1, q), (b or 1, s) -> (b or 1, h, q, s) float32"""
        gap = (query[:, :, None] - key[:, None]).astype(jnp.float32)[:, None]
        return -jnp.asarray(self.slopes(h), jnp.float32)[None, :, None, None] * gap


class Sets(Module):
    """The layout of a prompt A, {B_1 ... B_n}, D whose middle parts have no order (McIlroy-Young et al. 2024).

    Each B_j begins at place |A| and sees A and itself; D begins at |A| + max |B_j| and sees everything.

    before   |A|, tokens
    sizes    |B_j|, tokens each
    Tokens are numbered as they lie in the document: A, B_1, ..., B_n, D; D has no end.
    """

    before: int
    sizes: tuple[int, ...]

    def __post_init__(self):
        self.check(self.before >= 0, "before", "a number of tokens")
        self.check(min(self.sizes, default=1) > 0, "sizes", "at least one token in each set")

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """(places, groups) of the tokens up to D's first, whose group is -1; A's is 0.   (before + sum of sizes + 1)"""
        places = [np.arange(self.before), *(self.before + np.arange(n) for n in self.sizes)]
        groups = [np.zeros(self.before), *(np.full(n, j + 1) for j, n in enumerate(self.sizes))]
        places.append(np.array([self.before + max(self.sizes, default=0)]))
        groups.append(np.array([-1]))
        return np.concatenate(places).astype(np.int32), np.concatenate(groups).astype(np.int32)

    def places(self, n: Array) -> Array:
        """Places of tokens by their number in the document.   (...) int32"""
        places = self._table()[0]
        last = len(places) - 1
        return jnp.take(jnp.asarray(places), jnp.clip(n, 0, last)) + jnp.maximum(n - last, 0)

    def visible(self, query: Array, key: Array) -> Array:
        """Does no wall stand between them?   numbers (b or 1, q), (b or 1, s) -> (b or 1, 1, q, s) bool"""
        groups = self._table()[1]
        q, k = (jnp.take(jnp.asarray(groups), jnp.clip(n, 0, len(groups) - 1)) for n in (query, key))
        return ((q[:, :, None] == k[:, None]) | (k == 0)[:, None] | (q == -1)[:, :, None])[:, None]
