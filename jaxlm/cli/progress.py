"""What a run shows while it goes: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

EVERY = 5.0  # seconds between plain lines where there is no terminal


class Progress:
    """A listener of the loop's events that draws on stderr."""

    def __init__(self):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Bar | None = None
        self.task: Any = None
        self.steps, self.said = 0, 0.0

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}")
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task("compiling", total=None, state="")
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"on_{event['kind']}", lambda e: None)(event)

    def on_begin(self, event: dict[str, Any]) -> None:
        self.steps = event["steps"]

    def on_resume(self, event: dict[str, Any]) -> None:
        self.note(f"going on after step {event['step']}")

    def on_note(self, event: dict[str, Any]) -> None:
        self.note(event["text"])

    def on_update(self, event: dict[str, Any]) -> None:
        rate, left = event["tokens_per_second"], event["seconds_left"]
        state = f"loss {event['loss']:.3f}  {event['bits_per_byte']:.3f} bits/byte"
        state += f"  {rate:,.0f} tokens/s  {clock(left)} to go" if rate else ""
        if self.bar is not None:
            step = event["step"]
            self.bar.update(
                self.task, description=f"step {step}/{self.steps}", total=self.steps, completed=step, state=state
            )
        elif event["step"] in (1, self.steps) or time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            self.note(f"step {event['step']}/{self.steps}  {state}")

    def on_skipped(self, event: dict[str, Any]) -> None:
        self.note(f"step {event['step']}/{self.steps}  skipped: {event['reason']}; its batch: {event['file']}")

    def on_evaluation(self, event: dict[str, Any]) -> None:
        what = "held out" if event["whole"] else "held out (some rows)"
        self.note(f"step {event['step']}/{self.steps}  {what}: {event['bits_per_byte']:.3f} bits/byte")

    def part(self, fraction: float, **numbers: float) -> None:
        """How far a reproduction is, and what it sees."""
        state = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if self.bar is not None:
            self.bar.update(self.task, description=f"{fraction:4.0%}", total=1.0, completed=fraction, state=state)
        elif time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            self.note(f"{fraction:4.0%}  {state}")

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def table(self, title: str, rows: dict[str, float]) -> None:
        """Numbers side by side, lowest first."""
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, value in sorted(rows.items(), key=lambda item: item[1]):
            table.add_row(name, f"{value:.3f}", style="bold" if name == "this run" else "")
        self.console.print(table)

    def text(self, title: str, text: str) -> None:
        self.console.rule(title, align="left")
        self.console.print(text, markup=False)
        self.console.rule()


def clock(seconds: float) -> str:
    """'2:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
