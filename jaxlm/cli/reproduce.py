"""jaxlm reproduce NAME --budget smoke|cpu|gpu"""

import dataclasses
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro

from jaxlm.cli import say
from jaxlm.cli.knobs import parse
from jaxlm.cli.progress import Progress
from jaxlm.papers import GROUPS, names, result
from jaxlm.papers.record import Record, passed, read
from jaxlm.papers.report import band, number, section, table, verdict

HELP = """usage: jaxlm reproduce NAME [--budget smoke|cpu|gpu] [settings]
       jaxlm reproduce all [--budget smoke|cpu|gpu]      every result, one report (also: papers, theory)
       jaxlm reproduce --list                            what each one asks, its seconds, its last result

NAME is one of {names}.
`jaxlm reproduce NAME --help` tells the settings of a result, which are flags."""

OUT = Path("results")


def main(args: list[str]) -> int | None:
    """Reproduce a published result: paper | ours | band | pass, a JSON and a picture."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(names=", ".join(names())))
        return 0 if args else 2
    if args[0] == "--list":
        return listing(args[1:])
    if args[0] in ("all", *GROUPS):
        return everything(args[0], args[1:])
    return one(args[0], result(args[0]), args[1:])


def options(
    budget: Literal["smoke", "cpu", "gpu"] = "cpu",
    data: Path | None = None,
    out: Path = OUT,
    seed: int = 0,
    keep: Path | None = None,
) -> None:
    """How to run.

    Args:
        budget: smoke runs every path in seconds and judges nothing, cpu is for two cores, gpu the paper's setting.
        data: Directory of the real data sets; by default JAXLM_DATA.
        out: Folder for NAME.json and NAME.png.
        seed: Of all randomness.
        keep: Folder for the progress of long runs: the same command goes on from there.
    """


def one(name: str, module: ModuleType, args: list[str]) -> int:
    """One result; 1 if a judged claim failed."""
    budget = next((b for a, b in pairwise(args) if a == "--budget"), "cpu")
    budget = next((a.split("=", 1)[1] for a in args if a.startswith("--budget=")), budget)
    start = module.BUDGETS.get(budget, module.BUDGETS["cpu"])
    about = f"{module.TITLE}\n\n{(module.__doc__ or '').strip()}"
    defaults = dataclasses.asdict(start)
    settings, how = parse(f"jaxlm reproduce {name}", about, module.Settings, options, args, defaults)
    record = run(name, module, settings, **how)
    show(record, sys.stdout.isatty())
    return 1 if passed(record) is False else 0


def run(name: str, module: ModuleType, settings: dict, budget: str, data, out: Path, seed: int, keep) -> Record:
    """Run a result under a progress line and write its files."""
    import jax

    from jaxlm.data.folder import DataFolder
    from jaxlm.papers.record import digest, reproduce, write
    from jaxlm.papers.result import Lab

    with Progress() as progress:
        folder = keep and keep / f"{name}-{digest([seed, settings])}"  # other settings begin anew
        lab = Lab(jax.random.key(seed), DataFolder(data_directory(data)), progress.part, folder)
        record = reproduce(module, budget, lab, settings)
    record = {"name": name, "seed": seed, **record}
    say(f"wrote {write(record, module, out, name)} and its picture")
    return record


def data_directory(given: Path | None) -> Path | None:
    """--data, else JAXLM_DATA, else none."""
    named = os.environ.get("JAXLM_DATA")
    return given if given is not None else Path(named) if named else None


def everything(group: str, args: list[str]) -> int:
    """Every result of a group in turn, and one report; what fails to run is a line, not an end."""
    from jaxlm.errors import ConfigError

    _, how = parse(f"jaxlm reproduce {group}", "Every result in turn, and one report.", lambda: None, options, args)
    records, worst = {}, 0
    for name in names(None if group == "all" else group):
        say(f"{name}")
        module = result(name)
        try:
            settings = dataclasses.asdict(module.BUDGETS[how["budget"]])
            records[name] = run(name, module, settings, **how)
        except ConfigError as error:
            say(f"{name}: {error}")
            worst = 1
    for record in records.values():
        show(record, sys.stdout.isatty())
        worst = max(worst, 1 if passed(record) is False else 0)
    report = how["out"] / "report.md"
    report.parent.mkdir(parents=True, exist_ok=True)
    seconds = sum(r["seconds"] for r in records.values())
    head = f"# jaxlm reproduce {group} --budget {how['budget']}\n\n{len(records)} results in {seconds:,.0f} s.\n"
    report.write_text("\n".join([head, table(records), *(section(n, r) for n, r in records.items())]))
    say(f"wrote {report}")
    return worst


def listing(args: list[str]) -> int:
    """What can be reproduced, with the last result of each."""

    def command(results: Annotated[tuple[Path, ...], tyro.conf.arg(help="folders of results")] = LAST) -> None:
        from rich.console import Console
        from rich.table import Table

        shown = Table(box=None, header_style="bold", pad_edge=False)
        for head in ("result", "what", "needs", "last", "seconds", "on"):
            shown.add_column(head)
        for name in names():
            module, last = result(name), newest(name, results)
            ran = (verdict(last), f"{last['seconds']:g}", last["versions"]["device"]) if last else ("never", "", "")
            shown.add_row(name, getattr(module, "QUESTION", module.TITLE), ", ".join(module.NEEDS), *ran)
        Console(width=max(Console().width, 150)).print(shown)

    tyro.cli(command, prog="jaxlm reproduce --list", args=args)
    return 0


LAST = (OUT, Path("examples/results"))


def newest(name: str, folders: tuple[Path, ...]) -> Record | None:
    """The last result of that name that is no smoke run."""
    files = [f / f"{name}.json" for f in folders if (f / f"{name}.json").is_file()]
    found = [r for r in map(read, files) if r["budget"] != "smoke"]
    return max(found, key=lambda r: r["date"], default=None)


def show(record: Record, wide: bool) -> None:
    """The claims as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        title=f"{record['title']} ({record['budget']}, {record['seconds']:g} s)", title_justify="left", box=None
    )
    for head, side in (("claim", "left"), ("paper", "right"), ("ours", "right"), ("band", "right"), ("pass", "left")):
        shown.add_column(head, justify=side)  # type: ignore[arg-type]
    for c in record["claims"]:
        mark = {True: "yes", False: "NO", None: ""}[c["passed"]]
        shown.add_row(escape(c["name"]), number(c["paper"]), number(c["ours"]), band(c["low"], c["high"]), mark)
    console = Console() if wide else Console(width=140)
    console.print(shown)
    for note in record["notes"]:
        console.print(note, markup=False, style="dim")
