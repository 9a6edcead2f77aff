"""Strict tests: 8 simulated CPU devices, no silent rank or dtype promotion, fast compiles."""

import os
from importlib import metadata

# Read once when the backend starts. Compiling dominates this suite: no polish, and fusions by the older, quicker code
# generator where this jaxlib has it (an unknown flag ends the process).
QUICK = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK])
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one worker, which has their programs compiled; a parametrized class is split by parameter.

    (`--dist loadgroup` would say it with marks, but pytest-xdist 3.8 does not write them into pytest 9.2's node ids.)
    """
    from xdist.scheduler import LoadFileScheduling

    class BySubject(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            own = "::Test" in nodeid and nodeid.endswith("]")
            return super()._split_scope(nodeid) + (nodeid[nodeid.index("[") :] if own else "")

    return BySubject(config, log)
