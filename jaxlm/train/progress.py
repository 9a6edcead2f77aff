"""The progress of a long experiment in one file, so that a stopped run goes on bit for bit."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.typing import Tree


def keep(file: Path, carry: Tree, plan: Any, seen: Mapping[str, np.ndarray], about: Any = None) -> None:
    """Write what a later call goes on from, at once: a kill leaves the old file or the new one.

    carry   tree of arrays, all that the run needs to go on
    plan    what the run is, as JSON has it: `resume` refuses another's
    seen    arrays by name, what was found so far
    about   anything else that JSON can hold
    """
    arrays: dict[str, Any] = {f"carry{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(carry))}
    arrays |= {f"seen.{name}": x for name, x in seen.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    with new.open("wb") as f:
        np.savez(f, about=json.dumps({"plan": plan, "about": about}), **arrays)
        os.fsync(f.fileno())
    new.replace(file)


def resume(file: Path, like: Tree, plan: Any) -> tuple[Tree, dict[str, np.ndarray], Any]:
    """(carry, seen, about) as `keep` wrote them.   like: a carry of that shape; ConfigError for another run's file"""
    flat, tree = jax.tree.flatten(like)
    with np.load(file, allow_pickle=False) as f:
        record = json.loads(str(f["about"]))
        leaves = [f[f"carry{i}"] for i in range(sum(name.startswith("carry") for name in f.files))]
        seen = {name.removeprefix("seen."): f[name] for name in f.files if name.startswith("seen.")}
    same = [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in flat]
    if record["plan"] != json.loads(json.dumps(plan)) or not same:
        raise ConfigError(f"{file}: expected the progress of this run, found another's: remove it to begin anew")
    return jax.tree.unflatten(tree, [jnp.asarray(x) for x in leaves]), seen, record["about"]
