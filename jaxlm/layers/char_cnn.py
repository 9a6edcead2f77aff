"""A vector for a word, read from its characters: no word is unknown, and no table grows with the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Constant, FanIn, Normal, Zeros
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, Params


class CharCNN(Module):
    """Convolutions over the characters of a word, the largest over its places, highway layers, a projection.

    m_j = max_i relu(Σ_a K_j,a u_{i+a} + b_j)       u_i: vector of character i, 0 behind the word's end
    g = σ(m W_g + b_g)       m <- g relu(m W_h + b_h) + (1 - g) m        `highways` times (Srivastava et al. 2015)
    y = m W + b

    chars     how many characters there are, id 0 = none: it fills up a word, behind its last one
    letter    width of a character's vector
    filters   (characters that it sees, how many of it) of each size
    Kim et al. 2016, section 2; ReLU, and a projection, as the large language model of Jozefowicz et al. 2016 has them
    """

    width: int
    chars: int = 259
    letter: int = 16
    filters: tuple[tuple[int, int], ...] = ((1, 32), (2, 64), (3, 128), (4, 256))
    highways: int = 2

    def __post_init__(self):
        for field in ("width", "chars", "letter"):
            self.check(getattr(self, field) > 0, field, "at least 1")
        sound = bool(self.filters) and all(size > 0 and many > 0 for size, many in self.filters)
        self.check(sound, "filters", "at least one pair of a size and a number, each at least 1")
        self.check(len(dict(self.filters)) == len(self.filters), "filters", "each size once")
        self.check(self.highways >= 0, "highways", "0 or more")

    @property
    def features(self) -> int:
        """Of a word, before the projection."""
        return sum(many for _, many in self.filters)

    def params(self):
        m = self.features
        square = Spec((m, m), ("state", "head"), FanIn(2.0), ins=("state",))
        p: dict[str, Any] = {
            f"conv{size}": {
                "kernel": Spec((size * self.letter, many), ("slots", "mlp"), FanIn(2.0), ins=("slots",)),
                "bias": Spec((many,), ("mlp",), Zeros),
            }
            for size, many in self.filters
        }
        p["letters"] = Spec((self.chars, self.letter), ("slots", None), Normal(1.0))
        for i in range(self.highways):
            p[f"highway{i}"] = {
                "gate": square,
                "gate_bias": Spec((m,), ("head",), Constant(-2.0)),  # closed: at first the word passes as it is
                "map": square,
                "map_bias": Spec((m,), ("head",), Zeros),
            }
        project = Spec((m, self.width), ("mlp", "embed"), FanIn(), ins=("mlp",))
        return p | {"project": project, "project_bias": Spec((self.width,), ("embed",), Zeros)}

    def apply(self, params: Params, chars: Array) -> Array:
        """Vectors of words.   chars (..., c) int -> (..., d)"""
        if chars.ndim < 2 or not jnp.issubdtype(chars.dtype, jnp.integer):
            got = f"shape {chars.shape} of {chars.dtype}"
            raise ShapeError(f"CharCNN: chars have {got}, expected (..., c) of integers")
        *lead, c = chars.shape
        ids = chars.reshape(-1, c)
        there = (ids > 0)[..., None]
        x = jnp.take(params["letters"], ids, axis=0)
        x = jnp.where(there, x, jnp.zeros((), x.dtype))
        m = jnp.concatenate([self._most(params[f"conv{size}"], x, there, size) for size, _ in self.filters], axis=-1)
        for i in range(self.highways):
            p = params[f"highway{i}"]
            g = jax.nn.sigmoid(dense(m, p["gate"], p["gate_bias"]))
            m = g * jax.nn.relu(dense(m, p["map"], p["map_bias"])) + (1 - g) * m
        return dense(m, params["project"], params["project_bias"]).reshape(*lead, self.width)

    def _most(self, p: Params, x: Array, there: Array, size: int) -> Array:
        """The largest answer of each filter over windows that begin inside the word.   x (n, c, letter) -> (n, many)"""
        c = x.shape[1]
        padded = jnp.pad(x, ((0, 0), (0, size - 1), (0, 0)))
        windows = jnp.concatenate([padded[:, i : i + c] for i in range(size)], axis=-1)
        y = jax.nn.relu(dense(windows, p["kernel"], p["bias"]))
        return jnp.max(jnp.where(there, y, jnp.zeros((), y.dtype)), axis=1)  # no answer is below 0
