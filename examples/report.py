"""Write examples/results/README.md from the results beside it: paper, ours, band, seconds, device, picture.

command    python examples/report.py            writes;  --check only compares, and exits with 1 where they differ
"""

import sys
from pathlib import Path

from jaxlm import papers
from jaxlm.cli.reproduce import band, number
from jaxlm.papers.record import Record, read

RESULTS = Path(__file__).parent / "results"
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


def page() -> str:
    """The whole page."""
    files = [RESULTS / f"{name}.json" for name in papers.names()]
    return "\n".join([HEAD, *(section(f.stem, read(f)) for f in files if f.is_file())])


def main() -> int:
    file = RESULTS / "README.md"
    same = file.exists() and file.read_text() == page()
    if "--check" in sys.argv:
        return 0 if same else 1
    file.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
