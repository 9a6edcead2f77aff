"""Outer-product associative memories: what one matrix stores, closed form or trained (Cabannes et al. 2024).

n inputs x with frequencies p(x), each with one of m outputs f(x). W = Σ_x q(x) u_f(x) e_xᵀ; recalled is the y of the
largest u_yᵀ W e_x. e, u are random and fixed; the weights q decide which inputs survive the interference of all others.
Matrices act on rows here, as everywhere in the library: `store` gives Wᵀ, and scores are e Wᵀ uᵀ.
"""

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Normal
from jaxlm.module import Module, Spec
from jaxlm.ops.losses import nats
from jaxlm.typing import Array, Params


def embeddings(key: Array, n: int, d: int, unit: bool = False) -> Array:
    """n random vectors N(0, I/d); `unit` puts them on the sphere.   (n, d)"""
    e = jax.random.normal(key, (n, d), jnp.float32) / jnp.sqrt(jnp.float32(d))
    return e / jnp.linalg.norm(e, axis=-1, keepdims=True) if unit else e


def circle(y: Array, m: int, dtype=jnp.float32) -> tuple[Array, Array]:
    """Embeddings that were chosen, not drawn: the outputs on a circle, e_x = u_f(x). Two dimensions hold any map.

    y       outputs             (n) int in 0 .. m-1
    ->      e (n, 2), u (m, 2)
    """
    turn = 2 * jnp.pi * jnp.arange(m, dtype=dtype) / m
    u = jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=-1)
    return u[y], u


# How much of each input to store: from frequencies or counts w (..., n), 0 where nothing was seen, to q (..., n).


def power(w: Array, rho: float) -> Array:
    """q = w^rho. rho 1: q = p, one large gradient step; smaller: flatter; 0: every input seen, alike ('fill')."""
    w = _real(w)
    return jnp.where(w > 0, jnp.where(w > 0, w, 1) ** rho, 0)


def threshold(w: Array, kept: int) -> Array:
    """q = 1 for the `kept` most frequent inputs that were seen, else 0; of equals the first. Of order d of them fit."""
    order = jnp.argsort(-w, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    return ((rank < kept) & (w > 0)).astype(_real(w).dtype)


def visit(q: Array, step: Array | float, m: int) -> Array:
    """What gradient descent adds when it meets x, interference left aside: q + step / (1 + e^q / (m - 1)).

    Linear at first, then logarithmic (Cabannes et al. 2024). A batch that holds x c times of B: step γ c / B.
    With step γ m / (m - 1) it is exact for the gap between the right logit and any other, embeddings orthonormal.
    """
    return q + step / (1 + jnp.exp(q) / (m - 1))


def learned(visits: Array, step: float, m: int) -> Array:
    """q after that many visits of each input, one at a time: f^visits(0).   visits (..., n) int -> (..., n)"""

    def again(i: Array, q: Array) -> Array:
        return jnp.where(i < visits, visit(q, step, m), q)

    return jax.lax.fori_loop(0, jnp.max(visits), again, jnp.zeros(visits.shape, jnp.float32))


def store(e: Array, u: Array, y: Array, q: Array) -> Array:
    """Σ_x q(x) e_x u_f(x)ᵀ.   e (n, d), u (m, v), y (n) int, q (n) -> (d, v)"""
    _check(e, u, y, q)
    return jnp.einsum("nd,n,nv->dv", e, q, u[y])


def scores(e: Array, u: Array, y: Array, q: Array) -> Array:
    """Logits of every input, e `store(e, u, y, q)` uᵀ, without forming the matrix: O(n m d).   (n, m)"""
    _check(e, u, y, q)
    sums = (jax.nn.one_hot(y, u.shape[0], dtype=e.dtype) * q[:, None]).T @ e  # (m, d): what each output was stored with
    return (e @ sums.T) @ (u @ u.T)


def recall(e: Array, u: Array, y: Array, q: Array) -> Array:
    """The output that the memory gives to every input; of equal scores the first.   (n) int32"""
    return jnp.argmax(scores(e, u, y, q), axis=-1).astype(jnp.int32)


def error(p: Array, recalled: Array, y: Array) -> Array:
    """The exact error of the population, Σ_x p(x) [recalled(x) != f(x)].   () from p, recalled, y (n)"""
    return jnp.sum(jnp.where(recalled == y, 0, p), axis=-1)


def _real(w: Array) -> Array:
    return w if jnp.issubdtype(w.dtype, jnp.floating) else w.astype(jnp.float32)


def _check(e: Array, u: Array, y: Array, q: Array) -> None:
    n = e.shape[0]
    if e.ndim != 2 or u.ndim != 2 or y.shape != (n,) or q.shape != (n,):
        got = f"e {e.shape}, u {u.shape}, y {y.shape}, q {q.shape}"
        raise ShapeError(f"outer-product memory: {got}, expected (n, d), (m, v), (n,), (n,)")


class OuterMemory(Module):
    """The memory that is trained on the cross-entropy of its logits (Cabannes et al. 2024).

    inputs, outputs, width   n, m, d
    form    'matrix'        logits e_x W uᵀ, W trained, embeddings stay as they were drawn
            'learnable'     the same, all three trained
            'exponential'   logits ReLU(e_x) uᵀ, both trained: no matrix between them
    norm    e_x W divided by its length, no gain (their LayerNorm); not for 'exponential'
    All weights start as N(0, 1/d), the matrix too.
    """

    inputs: int
    outputs: int
    width: int
    form: str = "matrix"
    norm: bool = False

    paper = "Cabannes et al. 2024"

    def __post_init__(self):
        self.check(self.form in ("matrix", "learnable", "exponential"), "form", "matrix, learnable or exponential")
        self.check(not (self.norm and self.form == "exponential"), "norm", "False: 'exponential' has no matrix")
        self.check(self.outputs > 1, "outputs", "at least 2")

    def params(self):
        d, drawn = self.width, Normal(self.width**-0.5)
        p = {
            "input": Spec((self.inputs, d), ("vocab", "embed"), drawn),
            "output": Spec((self.outputs, d), ("vocab", "embed"), drawn, ins=("embed",)),
        }
        if self.form != "exponential":
            p["memory"] = Spec((d, d), ("embed", "state"), drawn, ins=("embed",))
        return p

    def apply(self, params: Params, x: Array) -> Array:
        """Logits.   x (...) int -> (..., m)"""
        e, u = params["input"], params["output"]
        if self.form == "exponential":
            return jax.nn.relu(e[x]) @ u.T
        if self.form == "matrix":
            e, u = jax.lax.stop_gradient((e, u))
        if not self.norm:
            return e[x] @ (params["memory"] @ u.T)  # n m d, where (e W) uᵀ costs n d²
        h = e[x] @ params["memory"]
        return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-6) @ u.T

    def loss(self, params: Params, x: Array, y: Array, weights: Array) -> Array:
        """Σ weights · cross-entropy.   x, y (...) int, weights (...)"""
        return jnp.sum(weights * nats(self.apply(params, x), y))

    def rates(self) -> dict[str, float]:
        """The paper's factors of Adam's learning rate: 1/d for the matrix, 1/√d for embeddings."""
        return {n: self.width ** (-1.0 if n == "memory" else -0.5) for n in self.params()}


def population_gradient(params: Params, p: Array, y: Array) -> Array:
    """∇_W of the cross-entropy over the population: Σ_x p(x) e_x (Σ_y p̂(y|x) u_y - u_f(x))ᵀ.

    params   of an OuterMemory with a matrix, no norm
    p, y     (n), (n) int
    ->       (d, d)

    From W = 0 one step γ stores q = γ p, less the mean output (Cabannes et al. 2024).
    """
    e, u = params["input"], params["output"]
    guess = jax.nn.softmax(e @ (params["memory"] @ u.T), axis=-1)
    return jnp.einsum("n,nd,nv->dv", p, e, guess @ u - u[y])
