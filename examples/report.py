"""Write examples/results/README.md, examples/theory/README.md and the README's table from the committed results.

command    python examples/report.py            writes;  --check only compares, and exits with 1 where they differ
"""

import json
import sys
from pathlib import Path
from typing import Any

from jaxlm import papers
from jaxlm.papers.record import Record, read
from jaxlm.papers.report import MARKS, band, cells, headline, number, section, table

RESULTS = Path(__file__).parent / "results"
THEORY = Path(__file__).parent / "theory" / "README.md"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- papers -->\n", "<!-- end of papers -->"
HEAD = """# Reproduced results

Written by `python examples/report.py` from the JSON beside each picture, which `jaxlm reproduce NAME` wrote. A number
without a band is only reported. `jaxlm papers` tells where each paper lives.
"""
THEORY_HEAD = """# Controlled experiments

Written by `python examples/report.py` from the JSON in `../results/`, which `jaxlm reproduce NAME` wrote; all of them:
`jaxlm reproduce theory --budget cpu`. Where no band stands, the number is only reported.
"""


def records(group: str) -> dict[str, Record]:
    """The committed results of a group by name."""
    files = [RESULTS / f"{name}.json" for name in papers.names(group)]
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


def loaded(name: str) -> dict[str, Any] | None:
    """A committed JSON, if it is there."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def faults() -> list[str]:
    """The recovery table."""
    found = loaded("faults")
    if found is None:
        return []
    lines = ["## Faults, and what was recovered", "", "`python tests/faults.py --json examples/results/faults.json`"]
    lines += ["", "| fault | where | times | recovered | updates made again | same bits at the end | s to a commit |"]
    lines += ["|---|---|---:|---:|---:|---|---:|"]
    for r in found["rows"]:
        numbers = (str(r[k]) for k in ("times", "recovered", "lost"))
        seconds = "" if r["seconds"] is None else f"{r['seconds']:.1f}"
        lines.append(cells(r["fault"], r["where"], *numbers, MARKS[r["same"]], seconds))
    return [*lines, ""]


def placing() -> list[str]:
    """The law of placing over meshes, and what a split along time saves."""
    table, memory, lines = loaded("placing"), loaded("context"), []
    if table is not None:
        ran = [e for row in table["errors"].values() for e in row.values() if e is not None]
        worst = max(ran)
        name = next(n for n, row in table["errors"].items() if worst in row.values())
        lines += ["## Placing", "", "`python tests/placing_table.py --json examples/results/placing.json`: "]
        lines[-1] += (
            f"values and gradients of {len(table['errors'])} mixers and models on 8 simulated devices, {len(ran)} "
        )
        lines[-1] += (
            f"pairs with a mesh, {sum(e <= table['tolerance'] for e in ran)} within {table['tolerance']:g} of one "
        )
        lines += [f"device; the farthest is {name}, {worst:.1e}.", ""]
    if memory is not None:
        s = memory["sizes"]
        lines += [f"Temporary MiB of one device, a training step, {s['length']} tokens, batch {s['batch']}, width "]
        lines[-1] += (
            f"{s['width']}, {s['depth']} blocks (`python tests/context_table.py --json examples/results/context.json`):"
        )
        lines += [
            "",
            "| devices along time | GLA, relay | idle share | Attention, keys gathered |",
            "|---:|---:|---:|---:|",
        ]
        for n, gla in memory["steps"]["GLA"].items():
            mib = [f"{row['temporary'] / 2**20:.0f}" for row in (gla, memory["steps"]["Attention"][n])]
            lines.append(cells(n, mib[0], f"{gla['idle']:.2f}", mib[1]))
        lines.append("")
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
    """examples/results/README.md."""
    found = records("papers")
    rest = [*others(), *placing(), *faults()]
    return "\n".join([HEAD, table(found), *(section(name, record) for name, record in found.items()), *rest])


def gallery() -> str:
    """examples/theory/README.md: every experiment in small, what was predicted beside what was measured."""
    parts = [THEORY_HEAD]
    for name, record in records("theory").items():
        parts.append(f"## {record['title']}\n\n{papers.result(name).QUESTION} `jaxlm reproduce {name}`\n")
        parts.append(f'<img src="../results/{name}.png" width="440" alt="{name}">\n')
        parts.append("| claim | predicted | published | measured | met |\n|---|---:|---:|---:|---|")
        for c in record["claims"]:
            told = band(c["low"], c["high"]), number(c["paper"]), number(c["ours"])
            parts.append(cells(c["name"], *told, MARKS[c["passed"]]))
        parts.append(f"\n{record['seconds']:,.0f} s on {record['versions']['device']}, {record['date']}.\n")
    return "\n".join(parts)


def readme() -> str:
    """The README with its table: the results whose papers give the number too."""
    text = README.read_text()
    head, rest = text.split(BEGIN)
    named = records("papers")
    beside = {name: r for name, r in named.items() if headline(name, r)["paper"] is not None}
    return head + BEGIN + table(beside) + END + rest.split(END)[1]


def main() -> int:
    pages = {RESULTS / "README.md": page(), THEORY: gallery(), README: readme()}
    stale = [file for file, text in pages.items() if not file.exists() or file.read_text() != text]
    if "--check" not in sys.argv:
        for file in stale:
            file.write_text(pages[file])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
