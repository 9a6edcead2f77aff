"""What a compiled program says of itself: bytes on a chip by kind, and bytes of its collectives, loops counted."""

import re
from collections import Counter
from typing import Any

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "c128": 16}
SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|s4|u4|[su]8|[su]16|[su]32|[su]64|c64|c128|f8\w+)\[([\d,]*)\]")
HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def bytes_of(program: Any) -> dict[str, int]:
    """Bytes on a chip: arguments, results that do not take an argument's place, temporary, code."""
    m = program.memory_analysis()
    return {
        "arguments": m.argument_size_in_bytes,
        "results": m.output_size_in_bytes - m.alias_size_in_bytes,
        "temporary": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }


def collectives(text: str) -> dict[str, int]:
    """Bytes of what every kind of collective gives on a chip, in one run of an HLO text: a loop counts its trips.

    A loop whose trips the text does not know counts once.
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
    known: dict[str, Counter[str]] = {}

    def total(name: str) -> Counter[str]:
        if name not in known:
            known[name] = Counter()  # a computation does not call itself
            known[name] = sum((of_line(line) for line in bodies.get(name, ())), Counter())
        return known[name]

    def of_line(line: str) -> Counter[str]:
        found = LINE.match(line)
        if not found:
            return Counter()
        shape, kind, rest = found.groups()
        plain = kind.removesuffix("-start")
        if plain in COLLECTIVES:
            return Counter({plain: largest(shape) if plain != kind else whole(shape)})
        if kind.endswith("-done") or kind.endswith("-update"):
            return Counter()
        times = int((TRIPS.search(rest) or (0, 1))[1]) if kind == "while" else 1
        names = CALLED.findall(rest) + [n.strip(" %") for b in BRANCHES.findall(rest) for n in b.split(",")]
        return Counter({k: times * n for k, n in sum(map(total, names), Counter()).items()})

    return dict(total(entry))


def sizes(shape: str) -> list[int]:
    """Bytes of each array of a shape's text."""
    out = []
    for kind, dims in SHAPE.findall(shape):
        size = WIDTHS.get(kind) or max(1, int(re.sub(r"\D", "", kind)[:2] or 8) // 8)
        for d in filter(None, dims.split(",")):
            size *= int(d)
        out.append(size)
    return out


def whole(shape: str) -> int:
    return sum(sizes(shape))


def largest(shape: str) -> int:
    """Of what a started collective gives, operands and results side by side, the larger half."""
    return max(sizes(shape), default=0)
