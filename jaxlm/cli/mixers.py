"""jaxlm mixers"""

import tyro


def main(args: list[str]) -> None:
    """The table of mixers."""

    def command(width: int = 256, room: int = 1024) -> None:
        """The mixers: paper, weights, bytes of state a row, operations a token, forms along time.

        Args:
            width: Width at which they are counted.
            room: Tokens that a memory which grows makes room for, and at which the cost of a token is counted.
        """
        from rich.console import Console
        from rich.table import Table

        from jaxlm.mixers import MIXERS, make
        from jaxlm.mixers.facts import facts

        table = Table(box=None, header_style="bold", pad_edge=False)
        for name, how in [("mixer", "left"), ("paper", "left"), ("weights", "right"), ("state bytes", "right")]:
            table.add_column(name, justify=how)  # type: ignore[arg-type]
        table.add_column("operations a token", justify="right")
        table.add_column("grows")
        table.add_column("forms")
        for name in MIXERS:
            f = facts(make(name, width), room)
            cells = f"{f.weights:,}", f"{f.state_bytes:,}", f"{f.flops_per_token:,}"
            table.add_row(name, f.paper, *cells, f.growth, ", ".join(f.forms))
        console = Console()
        console.print(f"width {width}; state and cost with room for {room} tokens")
        Console(width=max(console.width, 150)).print(table)

    tyro.cli(command, prog="jaxlm mixers", args=args)
