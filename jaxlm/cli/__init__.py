"""The command line: the only place that prints and reads flags.

Every failure is one line that names the field, the value and what was expected; `--debug` adds the traceback. Exit
codes: 0 done, 1 a failure of the run, 2 wrong arguments or input, 130 Ctrl-C, 143 SIGTERM.
"""

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

COMMANDS = {
    "train": "train a config: jaxlm train [CONFIG] [--steps N --lr X ...]",
    "sample": "write text: jaxlm sample RUN --prompt TEXT --tokens N, or --pretrained DIR for Hugging Face weights",
    "eval": "bits per byte of a run on held-out text or a file: jaxlm eval RUN [--data FILE]",
    "plan": "bytes, operations and seconds of a config on chips that need not be there: jaxlm plan CONFIG --chip v5e",
    "reproduce": "a paper's table or figure: jaxlm reproduce NAME [--budget smoke|cpu|gpu], or --list",
    "bench": "what each mixer can do and costs: jaxlm bench capability [--mixers ...] [--tasks ...]",
    "papers": "the papers that the library holds: where each lives, its check, its last result",
    "mixers": "the table of mixers: paper, weights, state bytes, cost per token, forms",
}

HELP = """jaxlm: pure-function sequence models with memory

usage: jaxlm COMMAND [arguments]        jaxlm COMMAND --help tells the arguments

{commands}

Without a config, `jaxlm train` runs configs/quickstart.py: a small language model on the Python standard library's own
text, about three minutes on two CPU cores. Configs: {configs}.
A config is a Python file with one function; its arguments are the flags. Copy one, change it, run it by path:
    jaxlm train my/config.py --lr 3e-4 --mesh data=4
Runs go to runs/NAME-date-time, or --run-dir DIR. A run that was stopped goes on with
    jaxlm train --run-dir DIR           or  jaxlm train [CONFIG] --resume   for the newest run of that config
--debug shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not debug:
        hush()
    signal.signal(signal.SIGTERM, terminate)  # a training loop has its own, which saves first
    sys.exit(guarded(args, debug))


class Terminated(BaseException):
    """SIGTERM, outside a training loop."""


def terminate(signum: int, frame: object) -> None:
    raise Terminated


def hush() -> None:
    """Silence what the storage library logs and drops around a failure: the failure itself arrives as an exception."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None


def guarded(args: list[str], debug: bool) -> int:
    """The exit code of a command; errors become one line on stderr."""
    try:
        code = dispatch(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say("stopped by Ctrl-C")
        return 130
    except Terminated:
        say("stopped by SIGTERM")
        return 143
    except BrokenPipeError:  # the reader of a pipe left: `jaxlm mixers | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug:
            traceback.print_exc()
        return explain(e)


def explain(e: Exception) -> int:
    """Print an error as one line; its exit code."""
    from jaxlm.errors import ConfigError, ShapeError

    text = " ".join(str(e).split()) or type(e).__name__
    if isinstance(e, ConfigError | ShapeError):
        say(f"error: {text}")
        return 2
    ours = type(e).__module__.startswith("jaxlm")
    if getattr(e, "signum", None) is not None:
        say(text)
        return 128 + e.signum  # type: ignore[attr-defined]
    say(f"error: {text}" if ours else f"error: {type(e).__name__}: {text[:300]} (--debug shows where)")
    return 1


def say(text: str) -> None:
    print(text, file=sys.stderr)


def dispatch(args: list[str]) -> int:
    """Run the command named by the first argument."""
    if not args or args[0] in ("-h", "--help", "help"):
        from jaxlm.train.config import known_configs

        commands = "\n".join(f"  {name:11}{text}" for name, text in COMMANDS.items())
        print(HELP.format(commands=commands, configs=", ".join(known_configs())))
        return 0
    if args[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(version("jaxlm"))
        return 0
    if args[0] not in COMMANDS:
        say(f"error: command = {args[0]!r}: unknown; expected one of {', '.join(COMMANDS)}")
        return 2
    return importlib.import_module(f"jaxlm.cli.{args[0]}").main(args[1:]) or 0
