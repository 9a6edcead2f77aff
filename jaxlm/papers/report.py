"""Records as text: claims beside their bands, a section a result, a table of many; all in Markdown."""

from collections.abc import Mapping

from jaxlm.papers import result
from jaxlm.papers.record import Record, passed

MARKS = {True: "yes", False: "**no**", None: ""}


def number(x: float | None) -> str:
    return "" if x is None else f"{x:.4g}"


def band(low: float | None, high: float | None) -> str:
    """'at most 15', 'at least 0.9', '0.1 to 0.4' or ''."""
    if low is None and high is None:
        return ""
    return f"at most {high:g}" if low is None else f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def verdict(record: Record) -> str:
    """'passed', 'failed: NAME, NAME' or 'not judged'."""
    failed = [c["name"] for c in record["claims"] if c["passed"] is False]
    return f"failed: {', '.join(failed)}" if failed else "not judged" if passed(record) is None else "passed"


def headline(name: str, record: Record) -> Record:
    """The claim that its module names as HEADLINE, or the first that is judged, or the first."""
    named, claims = getattr(result(name), "HEADLINE", None), record["claims"]
    judged = (c for c in claims if c["passed"] is not None)
    return next((c for c in claims if c["name"] == named), next(judged, claims[0]))


def cells(*row: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def table(named: Mapping[str, Record]) -> str:
    """One line a result: its headline, and how many of its bands were met."""
    lines = ["| `jaxlm reproduce` | shows | paper | ours | bands met | seconds |", "|---|---|---:|---:|---:|---:|"]
    for name, record in named.items():
        first = headline(name, record)
        what = f"{record['title']}: {first['name']}"
        ours = number(first["paper"]), number(first["ours"])
        lines.append(cells(f"`{name}`", what, *ours, met(record), f"{record['seconds']:,.0f}"))
    return "\n".join(lines) + "\n"


def met(record: Record) -> str:
    """'3 of 4' bands; '' where none was judged."""
    judged = [c["passed"] for c in record["claims"] if c["passed"] is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else ""


def section(name: str, record: Record, pictures: str = "") -> str:
    """One result: its command, table, notes and picture.   pictures: the way from the page to their folder"""
    question = getattr(result(name), "QUESTION", None)
    lines = [f"## {record['title']}", "", *([question, ""] if question else []), made(name, record), ""]
    lines += ["| claim | paper | ours | band | pass |", "|---|---:|---:|---:|---|"]
    for c in record["claims"]:
        ours = number(c["paper"]), number(c["ours"])
        lines.append(cells(c["name"], *ours, band(c["low"], c["high"]), MARKS[c["passed"]]))
    lines += ["", *(f"- {note}" for note in record["notes"]), *([""] if record["notes"] else [])]
    return "\n".join([*lines, f"![{name}]({pictures}{name}.png)", ""])


def made(name: str, record: Record) -> str:
    """The command that made a record, and where and when."""
    changed = {k: v for k, v in record["settings"].items() if v != _default(name, record["budget"], k)}
    flags = "".join(f" --{k.replace('_', '-')} {_flag(v)}" for k, v in changed.items())
    return (
        f"`jaxlm reproduce {name} --budget {record['budget']}{flags}`: {record['seconds']:,.0f} s on "
        f"{record['versions']['device']}, jax {record['versions']['jax']}, {record['date']}, commit {record['commit']}."
    )


def _default(name: str, budget: str, field: str) -> object:
    value = getattr(result(name).BUDGETS[budget], field, None)
    return list(value) if isinstance(value, tuple) else value


def _flag(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
