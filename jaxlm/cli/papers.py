"""jaxlm papers"""

from pathlib import Path

import tyro

from jaxlm.cli.reproduce import LAST, newest
from jaxlm.papers.index import ROWS
from jaxlm.papers.report import verdict


def main(args: list[str]) -> None:
    """The table of papers."""

    def command(results: tuple[Path, ...] = LAST) -> None:
        """The papers that the library holds: where each lives, its check, the last result of each reproduction.

        Args:
            results: Folders that hold results.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(header_style="bold", pad_edge=False, box=None, show_lines=True)
        for head in ("#", "paper", "lives in", "check", "last result"):
            table.add_column(head)
        for row in ROWS:
            last = [(name, newest(name, results)) for name in row.results]
            said = [f"{name}: {verdict(record) if record else 'never run'}" for name, record in last]
            cells = row.paper, "\n".join(row.lives), row.check, "\n".join(said) or "tests"
            table.add_row(str(row.number), *cells)
        Console(width=max(Console().width, 150)).print(table)

    tyro.cli(command, prog="jaxlm papers", args=args)
