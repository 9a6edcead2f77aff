"""jaxlm bench capability"""

from jaxlm.cli import say
from jaxlm.cli.reproduce import one
from jaxlm.papers import result

HELP = """usage: jaxlm bench capability [--mixers NAME ...] [--tasks NAME ...] [--budget smoke|cpu|gpu] [settings]

Trains each mixer on each task and measures its costs: one table, one picture. `--keep DIR` lets it go on after a stop.
`jaxlm bench capability --help` tells the settings, which are flags."""


def main(args: list[str]) -> int | None:
    """Measure what the mixers can do and cost."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0 if args else 2
    if args[0] != "capability":
        say(f"error: bench = {args[0]!r}: unknown; expected capability")
        return 2
    return one("capability", result("capability"), args[1:])
