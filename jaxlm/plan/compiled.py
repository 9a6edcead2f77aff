"""What a compiled program says of itself: bytes on a chip by kind, and bytes of its collectives, loops counted."""

import math
import re
from collections import Counter
from typing import Any

import jax

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "c128": 16}
SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|s4|u4|[su]8|[su]16|[su]32|[su]64|c64|c128|f8\w+)\[([\d,]*)\]")
HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CONDITION = re.compile(r"condition=%?([\w.-]+)")
LIMIT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
COUNTER = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)")
NAME = re.compile(r"%([\w.-]+)")
CHANNEL = re.compile(r"channel_id=(\d+)")
GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]<=|\{\{([\d,]+)\}|mesh\[([^]]*)\] \{([^}]*)\})")
AXIS = re.compile(r"'([^']*)'(?:=|:\(\d+\))?(\d*)")
DEVICES = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")

Sent = Counter[tuple[str, str]]  # bytes by a collective's kind and channel


def bytes_of(program: Any) -> dict[str, int]:
    """Bytes on a chip: arguments, results that do not take an argument's place, temporary, code.

    temporary   what lives beside the former two at the fullest moment. For TPU it follows from the compiler's peak: its
                sum of temporaries is more than its buffers take (libtpu 0.0.42.1: a step whose sum is over the memory
                of a v5e compiles, with 3.1 GiB less in buffers). Other compilers' peak leaves temporaries out
    """
    m = program.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    tpu = next(iter(jax.tree.leaves(program.input_shardings)[0].device_set)).platform == "tpu"
    return {
        "arguments": m.argument_size_in_bytes,
        "results": results,
        "temporary": m.peak_memory_in_bytes - m.argument_size_in_bytes - results if tpu else m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }


def collectives(text: str) -> dict[str, int]:
    """Bytes that a chip sends by every kind of collective in one run of an HLO text: a loop counts its trips.

    Rings are assumed, as in `traffic.between_devices`. A loop whose trips the text does not tell counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry, own = "", []
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            own = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            own.append(line)
    devices = max((int(n) for n in DEVICES.findall(text[: text.find("\n")])), default=1)
    known: dict[str, Sent] = {}

    def total(names: list[str]) -> Sent:
        out: Sent = Counter()
        for name in names:
            if name not in known:
                known[name] = Counter()  # a computation does not call itself
                for line in bodies.get(name, ()):
                    add(known[name], of_line(line))
            add(out, known[name])
        return out

    def add(out: Sent, more: Sent) -> None:
        """One that is drawn through other operations, turns of loops too, stands in each piece: it is sent once."""
        out.update({key: min(n, out[key]) - out[key] if key in out else n for key, n in more.items()})

    def of_line(line: str) -> Sent:
        found = LINE.match(line)
        if not found:
            return Counter()
        name, shape, kind, rest = found.groups()
        plain = kind.removesuffix("-start")
        if plain in COLLECTIVES:
            channel = CHANNEL.search(rest)
            return Counter({(plain, channel[1] if channel else name): sent(kind, whole(shape), group(rest, devices))})
        if kind.endswith("-done") or kind.endswith("-update"):
            return Counter()
        called = CALLED.findall(rest) + [n.strip(" %") for b in BRANCHES.findall(rest) for n in b.split(",")]
        times = trips(rest, bodies) if kind == "while" else 1
        return Counter({key: times * n for key, n in total(called).items()})

    out: Counter[str] = Counter()
    for (kind, _), n in total([entry]).items():
        out[kind] += n
    return dict(out)


def trips(rest: str, bodies: dict[str, list[str]]) -> int:
    """How often a while loop turns: the compiler's word, or else its counter's limit by what a turn adds to it."""
    known, condition = TRIPS.search(rest), CONDITION.search(rest)
    if known or not condition:
        return int(known[1]) if known else 1
    text = "\n".join(bodies.get(condition[1], ()))
    limit, counter = max((int(n) for n in LIMIT.findall(text)), default=1), COUNTER.search(text)
    return -(-limit // added(bodies.get(CALLED.findall(rest)[0], []), int(counter[1]))) if counter else limit


def added(body: list[str], place: int) -> int:
    """What a turn adds to the number at a place of what a loop carries; 1 where the text does not tell.

    A product that takes in its weight from device to device is a loop whose turn does two steps.
    """
    lines = {found[1]: found for found in map(LINE.match, body) if found}
    root = next((LINE.match(line) for line in body if line.lstrip().startswith("ROOT")), None)
    results = NAME.findall(root[4].partition(")")[0]) if root else []
    last = lines.get(results[place]) if place < len(results) else None
    if not last or last[3] != "add":
        return 1
    steps = (lines.get(name) for name in NAME.findall(last[4].partition(")")[0]))
    return next((int(s[4].partition(")")[0]) for s in steps if s and s[3] == "constant"), 1)


def group(rest: str, devices: int) -> int:
    """How many devices a collective joins; all of them where it names none."""
    found = GROUPS.search(rest)
    if not found:
        return devices
    size, listed, mesh, axes = found.groups()
    if mesh is not None:  # axes of a mesh, or parts of them: 'a' or 'a':(1)2
        sizes = {axis: int(n) for axis, n in AXIS.findall(mesh)}
        return math.prod(int(n or sizes[axis]) for axis, n in AXIS.findall(axes))
    return int(size) if size else listed.count(",") + 1


def sent(kind: str, given: int, n: int) -> int:
    """Bytes that each of n devices in a ring sends, where the operation gives so many bytes.

    A gather or permutation that is only started gives its operand too.
    """
    match kind:
        case "all-gather-start":
            return given * (n - 1) // (n + 1)
        case "collective-permute-start":
            return given // 2
        case "collective-permute":
            return given
        case "all-reduce" | "all-reduce-start":
            return 2 * given * (n - 1) // n
        case "reduce-scatter":  # what it gives is a part
            return given * (n - 1)
    return given * (n - 1) // n


def whole(shape: str) -> int:
    """Bytes of the arrays of a shape's text."""
    total = 0
    for kind, dims in SHAPE.findall(shape):
        size = WIDTHS.get(kind) or max(1, int(re.sub(r"\D", "", kind)[:2] or 8) // 8)
        for d in filter(None, dims.split(",")):
            size *= int(d)
        total += size
    return total
