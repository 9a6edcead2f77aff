"""The processes of a run hold a line to the first one: when any of them dies, all know at once and end with one line.

Left to the runtime, a collective may wait for the dead until its heart beat has been missed for 100 seconds, and a
process ends with the stack trace of a library. Where no line can be laid, it is left to the runtime.
"""

import contextlib
import os
import selectors
import socket
import threading
import time
from typing import NoReturn

import jax

from jaxlm.train.processes import shared, told

PATIENCE = 10.0  # seconds to lay the lines, and for others to leave before the first process does
BYE = "bye"


def open_door() -> socket.socket:
    """A port of this machine, by either version of the internet protocol."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class Peers:
    """The lines of this process: to all others of the first process, to the first of any other.

    host   where the first process is found; default: its own name
    """

    def __init__(self, host: str = ""):
        self.index, self.count = jax.process_index(), jax.process_count()
        self.words, self.null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        self.lines: dict[int, socket.socket] = {}
        self.ending = threading.Lock()
        door = None
        with contextlib.suppress(OSError):
            door = open_door() if self.index == 0 else None
        address = shared(f"{host or socket.gethostname()} {door.getsockname()[1]}" if door else "")
        with contextlib.suppress(OSError, ValueError):
            self.lay(door, address)
        complete = len(self.lines) == (self.count - 1 if self.index == 0 else 1)
        if not all(text == "1" for text in told(str(int(complete)))):
            self.hang_up()
        threading.Thread(target=self.listen, daemon=True).start()

    def lay(self, door: socket.socket | None, address: str) -> None:
        """Connect every process with the first."""
        if door is not None:
            with door:
                door.settimeout(PATIENCE)
                while len(self.lines) < self.count - 1:
                    line = door.accept()[0]
                    line.settimeout(PATIENCE)
                    self.lines[int(line.recv(16).decode())] = line
        else:
            name, port = address.split()
            line = socket.create_connection((name, int(port)), PATIENCE)
            line.sendall(f"{self.index:<16}".encode())
            self.lines[0] = line
        for line in self.lines.values():
            line.settimeout(None)

    def listen(self) -> None:
        """Until a process is gone that did not say goodbye."""
        with selectors.DefaultSelector() as selector:
            for who, line in self.lines.items():
                selector.register(line, selectors.EVENT_READ, who)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        text = key.fileobj.recv(4096).decode(errors="replace")  # type: ignore[union-attr]
                    except OSError:
                        text = ""
                    if text == BYE:
                        selector.unregister(key.fileobj)
                    else:
                        who, _, why = text.partition(" ")
                        self.end(int(who) if who.isdigit() else key.data, why)

    def end(self, who: int, why: str) -> NoReturn:
        """Say that another process is gone, pass it on, and end."""
        self.ending.acquire()  # never released: one end is enough
        os.dup2(self.null, 2)  # before the runtime says it in its own way
        reason = f"failed: {' '.join(why.split())}" if why else "is gone"
        text = f"error: process {who} of this run {reason}; the same command goes on from the last checkpoint\n"
        os.write(self.words, text.encode())
        self.pass_on(who, why)
        os._exit(1)

    def fail(self, why: str) -> None:
        """Tell the others that this process ends, and why."""
        self.ending.acquire()
        self.pass_on(self.index, why)

    def pass_on(self, who: int, why: str) -> None:
        """Tell the others; the first process, where all of them meet, leaves last."""
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.sendall(f"{who} {why}".encode()[:4096])
        until = time.monotonic() + PATIENCE
        for line in self.lines.values() if self.index == 0 else ():
            with contextlib.suppress(OSError):
                line.settimeout(max(until - time.monotonic(), 0.01))
                while line.recv(4096):
                    pass

    def goodbye(self) -> None:
        """This process leaves in good order."""
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.sendall(BYE.encode())

    def hang_up(self) -> None:
        for line in self.lines.values():
            line.close()
        self.lines.clear()
