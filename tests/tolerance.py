"""The one tolerance table. Closeness is relative to the size of what is compared, by dtype; nothing else is used."""

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float64": 1e-9, "complex128": 1e-9, "float32": 5e-5, "complex64": 5e-5, "bfloat16": 4e-2, "float16": 4e-3}
FLOOR = 1e-3  # a leaf is never judged finer than this share of the largest leaf beside it


def widened(leaf) -> np.ndarray:
    """In numpy, which knows no kind of number for bfloat16."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf


def distance(got, want) -> dict[str, float]:
    """Per leaf: the largest difference over the leaf's size; integers and bools count 0 or inf; NaN must meet NaN."""
    got_leaves, got_def = jax.tree_util.tree_flatten_with_path(got)
    want_leaves, want_def = jax.tree_util.tree_flatten_with_path(want)
    assert got_def == want_def, f"trees differ:\n{got_def}\n{want_def}"
    wide = [widened(w) for _, w in want_leaves]
    sizes = [
        float(np.nanmax(np.abs(w))) if w.size and w.dtype.kind in "fc" and not np.isnan(w).all() else 0.0 for w in wide
    ]
    largest = max(sizes, default=0.0)
    out = {}
    for (path, g), w, size in zip(got_leaves, wide, sizes, strict=True):
        g = widened(g)
        name = jax.tree_util.keystr(path)
        assert g.shape == w.shape, f"{name}: shape {g.shape}, expected {w.shape}"
        if w.dtype.kind not in "fc":
            out[name] = 0.0 if np.array_equal(g, w) else np.inf
            continue
        if not np.array_equal(np.isnan(g), np.isnan(w)):
            out[name] = np.inf
            continue
        gap = float(np.nanmax(np.abs(g - w))) if w.size and not np.isnan(w).all() else 0.0
        scale = max(size, FLOOR * largest)
        out[name] = 0.0 if gap == 0 else (gap / scale if scale else np.inf)
    return out


def close(got, want, dtype=None) -> None:
    """Assert that two trees agree within the table; `dtype` is the coarsest dtype that took part (default: float32)."""
    limit = TOLERANCE[jnp.dtype(dtype or jnp.float32).name]
    gaps = distance(got, want)
    bad = {name: gap for name, gap in gaps.items() if not gap <= limit}
    assert not bad, f"beyond {limit:g} (relative): " + ", ".join(f"{n}={g:.2e}" for n, g in bad.items())
