"""Attention with a multiple of the identity beside its products, against the formula in numpy; cut and packed."""

import numpy as np
import pytest
from tolerance import close
from twin import apply, float64, packed, weights

from jaxlm.errors import ConfigError
from jaxlm.layers.position import Sets
from jaxlm.mixers import Attention
from jaxlm.mixers.identity_attention import IdentityAttention

M = IdentityAttention(8, heads=2, position=None)


def formula(m, p, x, starts):
    """One head, one query at a time."""
    y = np.zeros(x.shape)
    for b, h in np.ndindex(len(x), m.h):
        begin = 0
        product = p["query"][:, h] @ p["key"][:, h].T / np.sqrt(m.k) + p["a"][h] * np.eye(m.width)
        for t in range(x.shape[1]):
            begin = t if starts[b, t] else begin
            seen = x[b, begin : t + 1]
            scores = np.exp(seen @ product.T @ x[b, t])
            y[b, t] += scores / scores.sum() @ seen @ (p["value"][:, h] @ p["out"][h] + p["b"][h] * np.eye(m.width))
    return y


def test_equals_the_definition_cut_and_packed():
    params, (x, starts) = weights(M), packed(M)
    want = formula(M, float64(params), float64(x), np.asarray(starts))
    close(apply(M, params, x, None, starts)[0], want)
    y, state = apply(M, params, x[:, :3], M.start(params, 2, 7), starts[:, :3])
    close((y, apply(M, params, x[:, 3:], state, starts[:, 3:])[0]), (want[:, :3], want[:, 3:]))


def test_it_begins_as_attention():
    plain = Attention(8, heads=2)
    params, (x, starts) = weights(plain), packed(plain)
    none = IdentityAttention(8, heads=2, keys=False, values=False)
    assert none.params() == plain.params()
    assert {n for n, spec in M.params().items() if spec.shape == (2,) and spec.init.value == 0} == {"a", "b"}  # type: ignore[attr-defined]
    close(apply(none, params, x, None, starts)[0], apply(plain, params, x, None, starts)[0])


def test_what_cannot_be_is_named():
    for fields in ({"heads": 2, "kv_heads": 1}, {"sets": Sets(1, (2,))}):
        with pytest.raises(ConfigError, match=rf"\.{list(fields)[-1]} = "):
            IdentityAttention(8, **fields)
