"""The large configs, compiled for pods that are not there: examples/results/compile.json, and its table in README.md.

command    python tpu/compile_table.py [--only WORD ...] [--limit SECONDS]     compiles; needs libtpu; an hour or so
           python tpu/compile_table.py --plan-only            plans all rows anew, keeps what was compiled
           python tpu/compile_table.py --page                 writes the table of the committed answers
           python tpu/compile_table.py --check                compares; 1 where the table is stale
A step that finds no room in memory, or does not compile in time, is a row too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE.parent / "examples" / "results" / "compile.json"
PAGE = HERE / "README.md"
BEGIN, END = "<!-- compiled -->\n", "<!-- end of compiled -->"
ROWS = (
    "attention_1b --topology v5e-16 --mesh fsdp=16 --accumulate 4",
    "gated_delta_1b --topology v5e-16 --mesh fsdp=16 --accumulate 8",
    "llama_7b --topology v5e-16 --mesh fsdp=16",
    "llama_7b --topology v5e-16 --mesh fsdp=16 --accumulate 64",
    "srwm_200m --topology v5e-16 --mesh data=16",
    "lem_200m --topology v5e-16 --mesh data=16",
    "attention_1b --topology v5e-256 --mesh fsdp=256",
    "gated_delta_1b --topology v5e-256 --mesh fsdp=256",
    "llama_7b --topology v5e-256 --mesh fsdp=256 --accumulate 4",
    "srwm_200m --topology v5e-256 --mesh data=256 --batch 2048",
    "lem_200m --topology v5e-256 --mesh data=256 --batch 4096",
    "attention_1b --topology v5p-128 --mesh fsdp=64",
    "gated_delta_1b --topology v5p-128 --mesh fsdp=64",
    "llama_7b --topology v5p-128 --mesh fsdp=64 --accumulate 2",
    "srwm_200m --topology v5p-128 --mesh data=64 --batch 1024",
    "lem_200m --topology v5p-128 --mesh data=64",
    "attention_1b --topology v6e-256 --mesh fsdp=256",
    "gated_delta_1b --topology v6e-256 --mesh fsdp=256",
    "llama_7b --topology v6e-256 --mesh fsdp=256",
    "srwm_200m --topology v6e-256 --mesh data=256 --batch 2048",
    "lem_200m --topology v6e-256 --mesh data=256 --batch 4096",
)
COMMAND = "python tpu/compile_check.py"
DONE = ("compiled", "out of memory")
Row = dict[str, Any]


def compiled(args: str, limit: float, more: str = "", program: Path = HERE / "compile_check.py") -> Row:
    """One row, in a process of its own that may take `limit` seconds; `more`: flags that the row does not name."""
    row: Row = {"command": f"{COMMAND} {args}"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        before = ran()
        call = [sys.executable, str(program), *args.split(), *more.split(), "--json", str(file)]
        try:
            done = subprocess.run(call, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            config, _, topology = args.split()[:3]
            row |= {"config": config, "topology": topology}
            row |= json.loads(file.read_text()) if file.exists() else {}  # the plan's part is there before
            said = f"did not compile in {limit:g} s, {ran() - before:.0f} of a core"
            return row | {"outcome": "did not end", "said": said}
        found = json.loads(file.read_text()) if file.exists() else {"outcome": None}
        answers = ("not compiled",) if more else DONE
        if done.returncode not in (0, 1) or found["outcome"] not in answers:
            raise SystemExit(f"{row['command']}: {done.stderr.strip() or done.returncode}")
        return row | found


def ran() -> float:
    """Seconds of a core that ended processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(only: list[str], limit: float, more: str) -> None:
    """Compile the rows that have one of the words, or those that are not there; each is in the file once it is.

    more    '--plan-only': compile nothing, plan anew, and without words that is all rows
    """
    for args in ROWS:
        known = {row["command"]: row for row in read()}
        here = known.get(f"{COMMAND} {args}", {})
        if any(word in args for word in only) if only else (more or here.get("outcome") not in DONE):
            row = compiled(args, limit, more)
            row = renewed(here, row) if more else row
            write(known | {row["command"]: row})
            print(time.strftime("%H:%M"), cells(row), flush=True)


def renewed(row: Row, anew: Row) -> Row:
    """A row with its plan anew: what the compiler answered, when and with which versions, stays."""
    if row.get("outcome", "not compiled") == "not compiled":
        return anew
    row = anew | {k: v for k, v in row.items() if k not in anew or k in ("outcome", "versions", "date")}
    if "seconds" in row:  # products and memory as planned, the network as compiled
        seconds = row["plan"]["seconds"] | {"network": row["seconds"]["network"]}
        step = max(seconds.values())
        row |= {"seconds": seconds, "step_seconds": step, "utilisation": seconds["products"] / step}
    return row


def read() -> list[Row]:
    return json.loads(FILE.read_text()) if FILE.exists() else []


def write(known: dict[str, Row]) -> None:
    """The rows in the table's order."""
    commands = (f"{COMMAND} {args}" for args in ROWS)
    FILE.write_text(json.dumps([known[c] for c in commands if c in known], indent=1) + "\n")


def cells(row: Row) -> str:
    """One line of the table: what the compiler says before what the plan says."""
    head, plan = f"| {row['config']} | {row['topology']} |", row.get("plan")
    if plan is None:
        return f"{head} | **{row['said']}** | | | | | |"
    parts = f" in {row['accumulate']} parts" if row["accumulate"] > 1 else ""
    batch = f"{row['mesh']}; {row['rows']:,} x {row['length']:,}{parts}"
    best = row if "seconds" in row else plan
    bound = max(best["seconds"], key=best["seconds"].__getitem__)
    took = f"{row['compile_seconds']['core']:.0f}" if "compile_seconds" in row else row.get("said", "no")
    parts = (
        batch,
        " / ".join(gib(side["held"]) if "held" in side else "?" for side in (row, plan)),
        " / ".join({True: "yes", False: "**no**", None: "?"}[side.get("fits")] for side in (row, plan)),
        " / ".join(gib(*side["moved"].values()) if "moved" in side else "?" for side in (row, plan)),
        f"{1e3 * best['step_seconds']:,.0f} ({bound})",
        f"{100 * best['utilisation']:.0f} %",
        took,
    )
    return f"{head} " + " | ".join(parts) + " |"


def gib(*parts: int | None) -> str:
    """A sum of bytes; nothing where it is not known."""
    known = [n for n in parts if n is not None]
    return f"{sum(known) / 2**30:.2f}" if len(known) == len(parts) else "?"


HEAD = (
    "config", "pod", "mesh; rows x tokens an update", "GiB a chip", "fits", "GiB sent a chip", "ms at best (bound by)",
    "of the products", "compiled, s of a core",
)  # fmt: skip


def page() -> str:
    """The text of the page with the table in its place."""
    rows = read()
    versions = {(r["date"], *r["versions"].values()) for r in rows if "date" in r}
    made = "; ".join(f"{date}, jax {jax}, libtpu {libtpu}" for date, jax, libtpu in sorted(versions))
    lines = [
        "| " + " | ".join(HEAD) + " |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
        *map(cells, rows),
        "",
        f"Each row's command, and its bytes by kind, are in `examples/results/compile.json` ({made}).",
        "",
    ]
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n".join(lines) + END + rest.split(END)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the large configs for pods that are not there.")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="rows whose arguments have one of these")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="that one row may take")
    parser.add_argument("--plan-only", action="store_true", help="plan anew, keep what was compiled")
    parser.add_argument("--page", action="store_true", help="write the table into README.md, compile nothing")
    parser.add_argument("--check", action="store_true", help="only compare the table; 1 where it is stale")
    told = parser.parse_args()
    if told.check:
        return int(PAGE.read_text() != page())
    if not told.page:
        measure(told.only, told.limit, "--plan-only" if told.plan_only else "")
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
