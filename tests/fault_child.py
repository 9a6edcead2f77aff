"""A process of a run that meets a fault: the command line itself, hurt at a point that is told beforehand.

Children are forked from a server that has imported the library and touched no device: each begins within a second.
"""

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

NO_DISK = 77  # exit code where a process may not have a disk of its own
PRELOAD = ["jaxlm.cli.train", "jaxlm.mixers", "orbax.checkpoint", "tensorboardX", "matplotlib.pyplot"]


class Fault(NamedTuple):
    """What happens to a process.

    signum    signal that it sends to itself; 0: none
    where     'start', 'update', 'evaluation', 'save' or 'export'
    count     how many of them have begun when it happens, from 1; of updates: the step
    delay     seconds after that
    file      bytes beyond which files may not grow from then on, instead of a signal
    clock     seconds that the clock jumps from then on, instead of a signal
    """

    signum: int = 0
    where: str = "start"
    count: int = 1
    delay: float = 0.0
    file: int = 0
    clock: float = 0.0


class Setting(NamedTuple):
    """What a process sees of the world.

    devices   how many it has
    cache     folder of compiled programs
    shift     seconds that its clock is off
    bad       update whose batch is bad, 0: none; its weights are NaN, or its targets a byte that the text has nowhere
    how       'nan' or 'spike'
    """

    devices: int = 1
    cache: str = ""
    shift: float = 0.0
    bad: int = 0
    how: str = "nan"


def strike(fault: Fault, times: Path) -> None:
    """Let it happen, and note when."""
    if fault.clock:
        return move_clock(fault.clock)
    if fault.file:
        import resource

        return resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file, resource.RLIM_INFINITY))
    with times.open("a") as file:
        file.write(json.dumps({"signal": time.monotonic()}) + "\n")
    os.kill(os.getpid(), fault.signum)


def move_clock(seconds: float) -> None:
    """From now on the wall clock of this process is off."""
    now, strf, local = time.time, time.strftime, time.localtime
    time.time = lambda: now() + seconds
    time.time_ns = lambda: int((now() + seconds) * 1e9)
    time.localtime = lambda at=None: local(now() + seconds if at is None else at)
    time.strftime = lambda form, at=None: strf(form, time.localtime() if at is None else at)


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """act(arguments of the call) before each call of owner.name."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def prepare(fault: Fault, times: Path) -> None:
    """Arrange for the fault, and note when a checkpoint was complete."""
    from jaxlm.cli import train
    from jaxlm.data.rows import Evaluation, Rows
    from jaxlm.train.checkpoint import Checkpoints

    waited = Checkpoints.wait

    def wait(self: Checkpoints) -> None:
        waited(self)
        with times.open("a") as file:
            file.write(json.dumps({"committed": time.monotonic()}) + "\n")

    Checkpoints.wait = wait
    seen = [0]

    def arrive(*args: Any, **kwargs: Any) -> None:
        if seen[0] < 0:  # once
            return
        seen[0] = args[1] + 1 if fault.where == "update" else seen[0] + 1  # Rows.batch(self, step, ...)
        if seen[0] == fault.count:
            seen[0] = -1
            threading.Timer(fault.delay, strike, (fault, times)).start() if fault.delay else strike(fault, times)

    places = {
        "update": (Rows, "batch"),
        "evaluation": (Evaluation, "batch"),
        "save": (Checkpoints, "save"),
        "export": (train, "finish"),
    }
    if fault.where == "start":
        threading.Timer(fault.delay, strike, (fault, times)).start()
    else:
        owner, name = places[fault.where]
        before(owner, name, arrive)


def spoil(update: int, how: str) -> None:
    """Make the batch of an update a bad one, whenever it is read."""
    from jaxlm.data.rows import Rows

    real = Rows.batch

    def batch(self: Rows, step: int, *args: Any) -> dict[str, np.ndarray]:
        made = real(self, step, *args)
        if step == update - 1:
            name, value = ("weights", np.nan) if how == "nan" else ("targets", 255)
            made[name] = np.full_like(made[name], value)
        return made

    setattr(Rows, "batch", batch)  # noqa: B010  its type is another one


def child(work: Callable[[list[str]], Any], args: list[str], log: str, setting: Setting, fault: Fault | None) -> None:
    """One process: what it says goes to the end of `log`."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["jaxlm", *args]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", setting.devices)
    if setting.cache:
        jax.config.update("jax_compilation_cache_dir", setting.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if setting.shift:
        move_clock(setting.shift)
    if setting.bad:
        spoil(setting.bad, setting.how)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if fault is not None:
        prepare(fault, Path(log).with_suffix(".times"))
    work(args)


def jaxlm(args: list[str]) -> None:
    """The command."""
    from jaxlm.cli import main

    main(args)


def meet_and_leave(args: list[str], who: int, killed: bool) -> None:
    """Meet the other processes; process `who` leaves them without a word, or with an error of its own."""
    from jaxlm.cli.cluster import joined

    with joined(args):
        if jax.process_index() == who and killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if jax.process_index() == who:
            raise ValueError("out of luck")
        time.sleep(300)


def on_small_disk(args: list[str]) -> None:
    """Train in a directory that is a small disk, and copy to a large one what was there at the end."""
    where, libc = Path(args[-1]), ctypes.CDLL(None, use_errno=True)
    new_user_and_mounts, uid, gid = 0x10000000 | 0x20000, os.getuid(), os.getgid()
    if libc.unshare(new_user_and_mounts):
        sys.exit(NO_DISK)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)
    disk = where.with_name("disk")
    disk.mkdir()
    if libc.mount(b"none", str(disk).encode(), b"tmpfs", 0, b"size=400k"):
        sys.exit(NO_DISK)
    try:
        jaxlm([*args[:-1], str(disk)])
    finally:
        shutil.copytree(disk, where)


def start(
    args: list[str], log: Path, setting: Setting, fault: Fault | None = None, work: Callable = jaxlm
) -> BaseProcess:
    """Begin `work(args)` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=child, args=(work, [str(a) for a in args], str(log), setting, fault))
    process.start()
    return process


def free_port(low: int = 20000, high: int = 40000) -> int:
    """A port that nobody listens at."""
    while True:
        port = random.randrange(low, high)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def by_flags(n: int) -> list[list[str]]:
    """Flags of each of n processes: told where the others are."""
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(n), "--process"]
    return [[*flags, str(i)] for i in range(n)]


def gone(process: BaseProcess, limit: float = 1500.0) -> float:
    """Wait for its end; when that was."""
    process.join(limit)
    process.kill()
    process.join()
    return time.monotonic()
