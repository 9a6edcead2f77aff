"""Files that a run leaves: JSON lines, TensorBoard, the loss curve. Each is a listener of the loop's events."""

import json
import math
import re
import struct
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxlm.train.loop import Event

LOGGED = ("update", "evaluation", "skipped")


class JsonLines:
    """metrics.jsonl: one event a line. On resuming, lines after the resumed step go: they are written again."""

    def __init__(self, path: Path):
        self.path, self.known = path, []

    def __call__(self, event: Event) -> None:
        if event["kind"] in ("resume", "begin"):
            kept = [e for e in read_metrics(self.path) if e["step"] <= event["step"]]
            new = self.path.with_suffix(".new")
            new.write_text("".join(json.dumps(e) + "\n" for e in kept))
            new.replace(self.path)  # at once: a kill leaves the old lines or the new ones
            self.known = [e for e in kept if e["kind"] == "evaluation" and e["step"] == event["step"]]
        elif event in self.known:  # an evaluation that was due where the run goes on: made again, and the same
            return
        elif event["kind"] in LOGGED:
            with self.path.open("a") as file:
                file.write(json.dumps(finite(event), allow_nan=False) + "\n")


def finite(event: Event) -> Event:
    """The event with None for numbers that JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}


def read_metrics(path: Path) -> list[Event]:
    """Events of a metrics.jsonl; a line that a kill cut short is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


class TensorBoard:
    """Scalars for TensorBoard, under tensorboard/ of the run; it reads the files in the order of their names.

    The names count up, for a clock can go backwards. Nothing is held back: a kill loses nothing that was logged.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    def __call__(self, event: Event) -> None:
        if event["kind"] == "begin":
            self.begin(event["step"] + 1)
        elif event["kind"] in LOGGED:
            named = {k: v for k, v in finite(event).items() if k not in ("kind", "step") and isinstance(v, int | float)}
            values = [{"tag": f"{event['kind']}/{name}", "simple_value": value} for name, value in named.items()]
            self.write(step=event["step"], summary={"value": values})

    def begin(self, step: int) -> None:
        """A new file; what others have from `step` on counts no more."""
        self.directory.mkdir(parents=True, exist_ok=True)
        numbers = [re.search(r"tfevents\.(\d+)", p.name) for p in self.directory.iterdir()]
        number = 1 + max((int(n[1]) for n in numbers if n), default=0)
        self.file = self.directory / f"events.out.tfevents.{number:010d}"
        self.write(file_version="brain.Event:2")
        self.write(step=step, session_log={"status": "START"})

    def write(self, **what: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        record = import_module("tensorboardX.proto.event_pb2").Event  # 0.3 s: only in a run
        data = record(wall_time=time.time(), **what).SerializeToString()
        size = struct.pack("<Q", len(data))
        frame = size, struct.pack("<I", masked_crc32c(size)), data, struct.pack("<I", masked_crc32c(data))
        with self.file.open("ab") as file:
            file.write(b"".join(frame))


def loss_curve(metrics: Path, picture: Path, references: dict[str, float] | None = None) -> None:
    """Draw training loss and held-out bits per byte over steps, references as dotted lines."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    events = read_metrics(metrics)
    train = [(e["step"], e["loss"] / np.log(2)) for e in events if e["kind"] == "update"]
    held = [
        (e["step"], e["bits_per_byte"]) for e in events if e["kind"] == "evaluation" and e["bits_per_byte"] is not None
    ]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    if train:
        axes.plot(*zip(*train, strict=True), color="0.6", linewidth=0.8, label="training, bits a token")
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color="C0", markersize=4, label="held out, bits a byte")
    named = sorted((references or {}).items(), key=lambda item: item[1])
    for i, (name, value) in enumerate(named):
        crowded = i + 1 < len(named) and named[i + 1][1] - value < 0.15  # its label would touch the next line's
        axes.axhline(value, color="C3", linestyle=":", linewidth=1)
        style = {"ha": "right", "va": "top" if crowded else "bottom", "fontsize": 8, "color": "C3"}
        axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), **style)
    axes.set(xlabel="step", ylabel="bits")
    if held or train:
        low = min([v for _, v in held] + list((references or {}).values()) + [v for _, v in train])
        high = np.quantile([v for _, v in train], 0.98) if train else max(v for _, v in held)
        axes.set_ylim(0.9 * low, 1.05 * max(high, low))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
