"""jaxlm sample RUN --prompt TEXT --tokens N --temperature 0.8"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxlm.cli import say
from jaxlm.cli.train import sample
from jaxlm.generate import Sampling
from jaxlm.train.loop import restore_weights
from jaxlm.train.rundir import RunDirectory


def main(args: list[str]) -> None:
    """Write text with a trained run."""

    def command(
        run: Annotated[Path, tyro.conf.Positional],
        prompt: str = "",
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        mesh: str = "",
    ) -> None:
        """Write text with a trained run.

        Args:
            run: The run's directory.
            prompt: Text to go on from.
            tokens: How many tokens to write.
            temperature: 0 is greedy.
            top_k: Keep the k likeliest tokens.
            top_p: Keep the likeliest tokens of this total probability.
            min_p: Keep tokens of at least this share of the likeliest one's probability.
            seed: Of the draw.
            mesh: Devices to read the weights onto, whatever they were trained on.
        """
        exp = dataclasses.replace(RunDirectory(run).experiment(), mesh=mesh)
        how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        step, params = restore_weights(exp, run, say)
        say(f"{run}: {exp.name} after step {step}")
        print(sample(exp, params, prompt, tokens, how, seed))

    tyro.cli(command, prog="jaxlm sample", args=args)
