"""The alphabet: what a letter means in every einsum, docstring and comment of the library.

b  batch rows            h  heads                 v  value width of a head
t  time, tokens          g  key/value heads       n  channels or slots of a state
s  time of keys          k  key width of a head   f  hidden width of an MLP
d  width of the model    c  places in a chunk     l  layers
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Tree = Any  # nested dicts whose leaves are arrays, Specs or shardings
Params = Mapping[str, Any]  # nested dict of arrays
State = Any  # nested dict of arrays, every leaf with a batch axis


def wide(x: Array) -> Array:
    """At least float32: bfloat16 and float16 widen, float32 and float64 stay, complex stays."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x
    return x.astype(np.promote_types(x.dtype, np.float32))  # numpy's: jnp's raises under strict promotion
