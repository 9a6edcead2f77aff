"""Strict tests: 8 simulated CPU devices, no silent rank or dtype promotion, fast compiles."""

import gc
import json
import os
import time
from importlib import metadata
from pathlib import Path

# Read once when the backend starts. Compiling dominates this suite: no polish, and, where this jaxlib has the options
# (an unknown one ends the process), fusions by the older, quicker code generator, and each program in one piece.
QUICK = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    QUICK += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK])
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxlm.data.folder import DataFolder  # noqa: E402
from jaxlm.papers import names  # noqa: E402
from jaxlm.train.rundir import versions  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many objects and little garbage: looking for cycles at Python's own pace takes a twelfth of the suite.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


DATA = Path(os.environ.get("JAXLM_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_folder():
    """The real data, beside the checkout or at JAXLM_DATA."""
    if not DATA.is_dir():
        pytest.skip(f"real data: no directory {DATA} (set JAXLM_DATA)")
    return DataFolder(DATA)


MAPS = Path("/proc/self/maps")  # Linux; elsewhere a process may map what it likes
MANY = 40_000  # of the 65,530 mappings that Linux allows a process


THEORY = frozenset(names("theory"))


def scope(nodeid: str, path: str) -> str:
    """Tests that share programs: those of a file, or of one subject of a parametrized class.

    Or results: experiments and the notebooks that show them.
    """
    if "::Test" not in nodeid or not nodeid.endswith("]"):
        return path
    subject = nodeid[nodeid.index("[") + 1 : -1]
    shown = (path.endswith("test_papers.py") and subject in THEORY) or subject.startswith("theory/")
    return "theory" if shown else f"{path}[{subject}]"


def pytest_runtest_teardown(item, nextitem):
    """Let programs go between scopes when they are many: each maps memory, and at the limit the compiler crashes."""
    here, then = (None if i is None else scope(i.nodeid, str(i.path)) for i in (item, nextitem))
    if here != then and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()


def pytest_collection_modifyitems(items):
    """What takes a worker a minute or more comes first, so that at the end none waits long for the other."""
    items.sort(key=lambda item: item.path.name not in ("test_train.py", "test_processes.py", "test_faults.py"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one worker, which has their programs compiled; a parametrized class is split by parameter.

    (`--dist loadgroup` would say it with marks, but pytest-xdist 3.8 does not write them into pytest 9.2's node ids.)
    """
    from xdist.scheduler import LoadFileScheduling

    class BySubject(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid, super()._split_scope(nodeid))

    return BySubject(config, log)


def pytest_addoption(parser):
    parser.addoption(
        "--record", metavar="FILE", help="write the suite's minutes and number of tests as JSON, if all pass"
    )


def pytest_configure(config):
    config.began = time.perf_counter()


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    file = config.getoption("--record")
    if file and exitstatus == 0 and not hasattr(config, "workerinput"):  # the workers report to this one
        minutes = (time.perf_counter() - config.began) / 60
        result = {"minutes": minutes, "passed": len(terminalreporter.stats["passed"]), "versions": versions()}
        Path(file).write_text(json.dumps(result, indent=1) + "\n")
