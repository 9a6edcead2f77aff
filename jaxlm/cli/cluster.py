"""The processes of a run: found by flags, or by what a launcher left in the environment; joined, and left.

JAX itself finds TPU pods, SLURM and Open MPI. What is decided here is whether there is anything to find, so that one
process alone starts nothing.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax

from jaxlm.cli import Terminated, explain, say
from jaxlm.cli.peers import Peers
from jaxlm.errors import ConfigError
from jaxlm.train.loop import SHARED

FLAGS = ("--coordinator", "--processes", "--process")


@contextmanager
def joined(args: Sequence[str]) -> Iterator[None]:
    """Inside, this process is one of its run's; it leaves together with the others.

    A process that fails on its own does not wait for them: it says so, and all end at once.
    """
    how = None if "--help" in args or "-h" in args else found(args, os.environ)
    if how is None:
        yield
        return
    join(how)
    peers = Peers(how.get("coordinator_address", "").rpartition(":")[0].strip("[]"))
    try:
        yield
    except (*SHARED, SystemExit):
        peers.goodbye()
        jax.distributed.shutdown()
        raise
    except BaseException as e:
        leave(e, peers)
    peers.goodbye()
    jax.distributed.shutdown()


def found(args: Sequence[str], env: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize, {} where JAX finds them itself; None for a process alone."""
    flags = given(args)
    if flags:
        how = checked(flags)
        return how if how["num_processes"] > 1 else None
    return {} if launched(env) else None


def given(args: Sequence[str]) -> dict[str, str]:
    """The flags among the arguments, as they stand: needed before a config, which may touch devices, is loaded."""
    flags = {}
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in FLAGS:
            flags[name] = value if equals else (args[i + 1] if i + 1 < len(args) else "")
    return flags


def checked(flags: dict[str, str]) -> dict[str, Any]:
    """The flags as jax.distributed.initialize wants them; raises where they are partial or impossible."""
    lacking = [f for f in FLAGS if f not in flags]
    if lacking:
        raise ConfigError(f"{' '.join(f'{k} {v}' for k, v in flags.items())}: expected {' and '.join(lacking)} too")
    address = flags["--coordinator"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator = {address!r}: expected HOST:PORT")
    n, i = flags["--processes"], flags["--process"]
    if not n.isdigit() or int(n) < 1:
        raise ConfigError(f"--processes = {n!r}: expected a number from 1")
    if not i.isdigit() or int(i) >= int(n):
        raise ConfigError(f"--process = {i!r}: expected 0 to {int(n) - 1}, one below --processes")
    # Whoever says where the processes are says which devices they see, too.
    return {
        "coordinator_address": address,
        "num_processes": int(n),
        "process_id": int(i),
        "cluster_detection_method": "deactivate",
    }


def launched(env: Mapping[str, str]) -> bool:
    """Whether this is one of several processes of a SLURM step, of Open MPI, or on a TPU pod."""

    def many(*names: str) -> bool:
        return all(env[n].isdigit() and int(env[n]) > 1 for n in names if n in env)

    if "SLURM_STEP_NODELIST" in env and "SLURM_NTASKS" in env:  # an interactive shell has one task of the job's many
        return many("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
    if "OMPI_COMM_WORLD_SIZE" in env:
        return many("OMPI_COMM_WORLD_SIZE")
    if "," in (env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")):
        return True
    return tpu_machine() and "TPU_SKIP_MDS_QUERY" not in env


def tpu_machine() -> bool:
    """Whether JAX found itself on a Cloud TPU machine; it says so nowhere in public."""
    return bool(getattr(import_module("jax._src.cloud_tpu_init"), "running_in_cloud_tpu_vm", False))


def join(how: dict[str, Any]) -> None:
    """Meet the other processes, before any device is touched."""
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which the loop itself answers
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if "--debug" not in sys.argv:
        jax.config.update("jax_logging_level", "CRITICAL")  # what matters of it arrives as an exception
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=60, **how)
    except (RuntimeError, ValueError, OSError) as e:
        raise ConfigError(
            f"the other processes of this run were not found: {' '.join(str(e).split())[:200]}; expected them to be "
            f"reachable, or {' '.join(FLAGS)}"
        ) from e


def leave(e: BaseException, peers: Peers) -> None:
    """Say what went wrong here and end, without the farewell at which the others are waited for."""
    if isinstance(e, jax.errors.JaxRuntimeError):
        time.sleep(2)  # most likely another process is gone: then it is known by now, and this is not reached
    if "--debug" in sys.argv:
        traceback.print_exception(e)
    if isinstance(e, Exception):
        code = explain(e)
    else:
        name, code = ("SIGTERM", 143) if isinstance(e, Terminated) else ("Ctrl-C", 130)
        say(f"stopped by {name}")
    peers.fail(" ".join(str(e).split())[:300] or type(e).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
