"""Write examples/results/README.md and the README's table of papers from the committed results.

command    python examples/report.py            writes;  --check only compares, and exits with 1 where they differ
"""

import sys
from pathlib import Path

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


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(name, record) for name, record in records().items())])


def headline(name: str, record: Record) -> Record:
    """The claim that its module names as HEADLINE, or the first that is judged, or the first."""
    named, claims = getattr(papers.result(name), "HEADLINE", None), record["claims"]
    return next(
        (c for c in claims if c["name"] == named), next((c for c in claims if c["passed"] is not None), claims[0])
    )


def table() -> str:
    """One line a result: its headline (or first judged claim), and how many of its bands were met."""
    lines = ["| `jaxlm reproduce` | shows | paper | ours | bands met | seconds |", "|---|---|---:|---:|---:|---:|"]
    for name, record in records().items():
        judged = [c["passed"] for c in record["claims"] if c["passed"] is not None]
        first = headline(name, record)
        what = f"{record['title']}: {first['name']}".replace("|", "\\|")
        met = f"{sum(judged)} of {len(judged)}" if judged else ""
        cells = f"`{name}`", what, number(first["paper"]), number(first["ours"]), met, f"{record['seconds']:,.0f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README with its table of papers as the results have it."""
    text = README.read_text()
    head, rest = text.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END)[1]


def main() -> int:
    pages = {RESULTS / "README.md": page(), README: readme()}
    stale = [file for file, text in pages.items() if not file.exists() or file.read_text() != text]
    if "--check" not in sys.argv:
        for file in stale:
            file.write_text(pages[file])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
