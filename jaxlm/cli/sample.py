"""jaxlm sample RUN --prompt TEXT --tokens N --temperature 0.8, or --pretrained DIR"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxlm.cli import say
from jaxlm.cli.train import sample, write
from jaxlm.errors import ConfigError
from jaxlm.generate import Sampling
from jaxlm.train.loop import restore_weights
from jaxlm.train.rundir import RunDirectory


def main(args: list[str]) -> None:
    """Write text with a trained run or with pretrained weights."""

    def command(
        run: Annotated[Path | None, tyro.conf.Positional] = None,
        pretrained: Path | None = None,
        prompt: str = "",
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        mesh: str = "",
    ) -> None:
        """Write text with a trained run, or with a folder of Hugging Face weights.

        Args:
            run: The run's directory.
            pretrained: A folder with config.json, model.safetensors and a tokenizer (GPT-2, Llama, GPT-NeoX,
                Mamba, Mamba-2).
            prompt: Text to go on from.
            tokens: How many tokens to write.
            temperature: 0 is greedy.
            top_k: Keep the k likeliest tokens.
            top_p: Keep the likeliest tokens of this total probability.
            min_p: Keep tokens of at least this share of the likeliest one's probability.
            seed: Of the draw.
            mesh: Devices to read the weights onto, whatever they were trained on.
        """
        how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        if (run is None) == (pretrained is None):
            raise ConfigError(f"run = {run}, pretrained = {pretrained}: expected one of the two")
        if pretrained is not None:
            if mesh:
                raise ConfigError(f"mesh = {mesh!r}: expected none beside pretrained")
            print(told(pretrained, prompt, tokens, how, seed))
            return
        assert run is not None
        exp = dataclasses.replace(RunDirectory(run).experiment(), mesh=mesh)
        step, params = restore_weights(exp, run, say)
        say(f"{run}: {exp.name} after step {step}")
        print(sample(exp, params, prompt, tokens, how, seed))

    tyro.cli(command, prog="jaxlm sample", args=args)


def told(folder: Path, prompt: str, tokens: int, how: Sampling, seed: int) -> str:
    """The prompt and what pretrained weights make of it, up to the end of the text."""
    from jaxlm.bridges.huggingface import ends, load
    from jaxlm.data import tokenizer_in
    from jaxlm.module import count

    model, params = load(folder)
    tokenizer = tokenizer_in(folder)
    say(f"{folder}: {count(model):,} weights")
    stop = sorted({t for t in (tokenizer.bos, *ends(folder)) if t < model.vocab})
    return write(model, params, tokenizer, prompt, tokens, how, seed, stop)
