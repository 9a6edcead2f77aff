"""Write examples/results/README.md and the README's table of papers from the committed results.

command    python examples/report.py            writes;  --check only compares, and exits with 1 where they differ
"""

import json
import sys
from pathlib import Path
from typing import Any

from jaxlm import papers
from jaxlm.cli.reproduce import band, number
from jaxlm.papers.record import Record, read

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- papers -->\n", "<!-- end of papers -->"
HEAD = """# Reproduced results

Written by `python examples/report.py` from the JSON beside each picture, which `jaxlm reproduce NAME` wrote. A number
without a band is only reported. `jaxlm papers` tells where each paper lives.
"""


def section(name: str, record: Record) -> str:
    """One result: its table, notes and picture."""
    changed = {k: v for k, v in record["settings"].items() if v != _default(name, record["budget"], k)}
    flags = "".join(f" --{k.replace('_', '-')} {_flag(v)}" for k, v in changed.items())
    lines = [
        f"## {record['title']}",
        "",
        f"`jaxlm reproduce {name} --budget {record['budget']}{flags}`: {record['seconds']:,.0f} s on "
        f"{record['versions']['device']}, jax {record['versions']['jax']}, {record['date']}, "
        f"commit {record['commit']}.",
        "",
        "| claim | paper | ours | band | pass |",
        "|---|---:|---:|---:|---|",
    ]
    for c in record["claims"]:
        mark = {True: "yes", False: "**no**", None: ""}[c["passed"]]
        row = c["name"].replace("|", "\\|"), number(c["paper"]), number(c["ours"]), band(c["low"], c["high"]), mark
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        *(f"- {note}" for note in record["notes"]),
        "" if record["notes"] else None,
        f"![{name}]({name}.png)",
        "",
    ]
    return "\n".join(line for line in lines if line is not None)


def _default(name: str, budget: str, field: str) -> object:
    value = getattr(papers.result(name).BUDGETS[budget], field, None)
    return list(value) if isinstance(value, tuple) else value


def _flag(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def records() -> dict[str, Record]:
    """The committed results by name."""
    files = [RESULTS / f"{name}.json" for name in papers.names()]
    return {f.stem: read(f) for f in files if f.is_file()}


def others() -> list[str]:
    """The mixers beside other libraries, as far as `mixers_against_others.py` was run."""
    file = RESULTS / "mixers_against_others.json"
    parts = json.loads(file.read_text()) if file.is_file() else {}
    lines = [] if not parts else ["## The mixers beside other libraries", ""]
    for name, (says, rows) in {"memax": MEMAX, "torch": TORCH, "decoding": DECODING}.items():
        if name in parts:
            part = parts[name]
            versions = ", ".join(f"{n} {v}" for n, v in part["versions"].items() if n != "device")
            made = f"{part['seconds']:,.0f} s on {part['versions']['device']}, {versions}, {part['date']}"
            command = f"`python examples/mixers_against_others.py --parts {name}`"
            lines += [
                f"{command}: {made}, commit {part['commit']}. {says.format(**part['sizes'])}",
                "",
                *rows(part),
                "",
            ]
    return lines


def _memax(part: dict[str, Any]) -> list[str]:
    lines = [
        "| mixer | tokens | ours | time, fastest | time, median | memory, MiB: theirs / ours | ratio | met | outputs |",
        "|---|---:|---|---:|---:|---:|---:|---|---|",
    ]
    for name, pair in part["found"].items():
        gap = "" if pair["gap"] is None else f"differ by {pair['gap']:.0e}"
        outputs = " with our op: ".join(filter(None, (pair["difference"], gap))) if pair["difference"] else gap
        for length, found in pair["lengths"].items():
            memory = found["mebibytes"]
            for side, r in found["ratios"].items():
                met = "yes" if r["fastest"] >= 2 and r["mebibytes"] >= 10 else "**no**"
                cells = (
                    name, length, side, f"{r['fastest']:.1f}", f"{r['median']:.1f}",
                    f"{memory['memax']:.2f} / {memory[side]:.2f}", f"{r['mebibytes']:.1f}", met, outputs,
                )  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _torch(part: dict[str, Any]) -> list[str]:
    lines = ["| cell | torch, s | jaxlm, s | ratio of fastest | of medians |", "|---|---:|---:|---:|---:|"]
    for name, found in part["found"].items():
        fastest, ratios = found["seconds"]["fastest"], found["ratios"]
        times = f"{fastest['torch']:.3f} | {fastest['jaxlm']:.3f}"
        lines.append(f"| {name} | {times} | {ratios['fastest']:.2f} | {ratios['median']:.2f} |")
    return lines


def _decoding(part: dict[str, Any]) -> list[str]:
    contexts = part["sizes"]["contexts"]
    lines = ["| mixer | state, bytes | " + " | ".join(f"{c:,}" for c in contexts) + " | last / first |"]
    lines.append("|---|---:|" + "---:|" * (len(contexts) + 1))
    for name, found in part["found"].items():
        if found["fixed"]:
            times = [f"{1e6 * found['seconds']['fastest'][str(c)]:.1f}" for c in contexts]
            cells = name, f"{found['bytes'][0]:,}", *times, f"{found['ratio']:.2f}"
        else:
            cells = name, f"{found['bytes'][0]:,} to {found['bytes'][-1]:,}", *[""] * (len(contexts) + 1)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


MEMAX = (
    "Gradient of one row of width {width}; what memax takes over what ours takes. Met: half of the time and a tenth of "
    "the temporary memory at once. `checkpointed`: ours as `Checkpointed(mixer)`.",
    _memax,
)
TORCH = (
    "A training step ({steps} tokens, batch {batch}, width {cell_width}) against a plain loop of the same equations.",
    _torch,
)
DECODING = ("Microseconds a token after a past of so many tokens, fastest turn; one row of width {width}.", _decoding)


def page() -> str:
    """The whole page."""
    found = records()
    return "\n".join([HEAD, table(found), *(section(name, record) for name, record in found.items()), *others()])


def headline(name: str, record: Record) -> Record:
    """The claim that its module names as HEADLINE, or the first that is judged, or the first."""
    named, claims = getattr(papers.result(name), "HEADLINE", None), record["claims"]
    return next(
        (c for c in claims if c["name"] == named), next((c for c in claims if c["passed"] is not None), claims[0])
    )


def table(named: dict[str, Record]) -> str:
    """One line a result: its headline (or first judged claim), and how many of its bands were met."""
    lines = ["| `jaxlm reproduce` | shows | paper | ours | bands met | seconds |", "|---|---|---:|---:|---:|---:|"]
    for name, record in named.items():
        judged = [c["passed"] for c in record["claims"] if c["passed"] is not None]
        first = headline(name, record)
        what = f"{record['title']}: {first['name']}".replace("|", "\\|")
        met = f"{sum(judged)} of {len(judged)}" if judged else ""
        cells = f"`{name}`", what, number(first["paper"]), number(first["ours"]), met, f"{record['seconds']:,.0f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README with its table: the results whose papers give the number too."""
    text = README.read_text()
    head, rest = text.split(BEGIN)
    beside = {name: r for name, r in records().items() if headline(name, r)["paper"] is not None}
    return head + BEGIN + table(beside) + END + rest.split(END)[1]


def main() -> int:
    pages = {RESULTS / "README.md": page(), README: readme()}
    stale = [file for file, text in pages.items() if not file.exists() or file.read_text() != text]
    if "--check" not in sys.argv:
        for file in stale:
            file.write_text(pages[file])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
