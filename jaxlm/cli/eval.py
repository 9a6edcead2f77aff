"""jaxlm eval RUN [--data FILE]"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxlm.cli import say
from jaxlm.data import Evaluation, TextFiles, pack
from jaxlm.errors import ConfigError
from jaxlm.sharding import mesh as make_mesh
from jaxlm.train.loop import evaluate, restore_weights
from jaxlm.train.rundir import RunDirectory
from jaxlm.train.step import evaluation_step


def main(args: list[str]) -> None:
    """Bits per byte of a run."""

    def command(
        run: Annotated[Path, tyro.conf.Positional],
        data: Path | None = None,
        length: int | None = None,
        rows: int = 0,
        mesh: str = "",
    ) -> None:
        """Bits per byte of a run on its held-out text, or on a file or folder.

        Args:
            run: The run's directory.
            data: A text file, folder or .gz; all of it is scored. Default: the run's own held-out text.
            length: Tokens a row; default: as in the run's own evaluations.
            rows: Read only that many rows; 0: all.
            mesh: Devices to read the weights onto, whatever they were trained on.
        """
        if rows < 0:
            raise ConfigError(f"rows = {rows}: expected 0 or more")
        exp = dataclasses.replace(RunDirectory(run).experiment(), mesh=mesh)
        length = length or exp.evaluate_length or exp.data.length
        if data is None:
            text = exp.data.evaluation(length)
        else:
            documents = TextFiles((str(data),), held_out=(str(data),)).documents("held_out")
            text = Evaluation(pack(documents, exp.data.tokenizer), length)
        step, params = restore_weights(exp, run, say)
        devices = make_mesh(mesh)
        if not mesh:
            exp = dataclasses.replace(exp, batch=min(exp.batch, text.rows), accumulate=1)
        bits = evaluate(exp, devices, evaluation_step(exp, devices), params, text, rows)
        read = f"{text.stream.bytes:,} bytes" if not rows else f"{rows} rows"
        print(f"{bits:.4f} bits per byte  {read} of {data or 'held-out text'}, after step {step}")

    tyro.cli(command, prog="jaxlm eval", args=args)
