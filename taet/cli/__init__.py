"""The command line: `taet COMMAND ...`, one file per command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from taet.errors import UserError, unknown

COMMANDS = {
    "demo": "train AT, AT-BSL and TAET on long-tailed digits, attack them, write report.html (minutes, no download)",
    "train": "train a method: taet train METHOD [options], or go on: taet train --resume RUN",
    "check": "say what would spoil an evaluation of a run or of any model, and how long it would take",
    "evaluate": "attack a finished run, or any model, and write its result card",
    "transfer": "evaluate each of several runs on the adversarial examples of every other",
    "compare": "train and attack methods x data x imbalance x seeds as a file says; only what is missing is run",
    "report": "make one self-contained HTML file from any number of runs",
    "predict": "say the class of images by a finished run, and whether each answer survives an attack",
    "export": "write the model of a finished run, preprocessing inside, as pt2, ONNX or safetensors",
    "cost": "measure what training costs here: passes, seconds, memory and the share that TAET saves",
    "list": "list methods, attacks, data, models or protocols",
    "data": "show what a data set holds, or put its files in place: taet data show|prepare NAME",
    "doctor": "say whether this machine can train, and how fast",
}

EPILOG = """Every command has --help with examples and --debug, which shows the traceback behind an error.
Exit status: 0 done, 1 a cell of a comparison failed, 2 a mistake in the call (one line says which), 130 interrupted
with everything so far saved."""

DEBUG = "TAET_DEBUG"
"""Environment variable that acts as --debug."""
STARTED_TOGETHER = "TAET_STARTED_TOGETHER"
"""Environment variable of processes that share the work of one command, which started them."""


def help_text() -> str:
    """What `taet --help` prints."""
    lines = ["usage: taet COMMAND [options]", "", "Adversarial robustness under long-tailed data.", ""]
    lines += [f"  {name:9} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # `list` here is the command, once it has been imported
    debug = "--debug" in arguments or DEBUG in os.environ
    arguments = [a for a in arguments if a != "--debug"]
    if debug and argv is None:
        os.environ[DEBUG] = "1"  # also for the processes that this one starts
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # here, where a reader that has gone or a full disk is still caught
        return status
    except UserError as error:
        if debug:
            raise
        print(f"taet: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if STARTED_TOGETHER not in os.environ:  # else the process that started it tells
            print("\ntaet: interrupted; what was done so far is saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. `taet list methods | head`
        _drop_output()
        return 0
    except OSError as error:
        if debug:
            raise
        if error.filename is None:
            _drop_output()
        print(f"taet: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Send what is still buffered nowhere: Python would try again, and fail again, on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from taet import __version__

        print(f"taet {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        raise unknown("command", arguments[0], COMMANDS)
    status: int | None = importlib.import_module(f"taet.cli.{arguments[0]}").run(arguments[1:])
    return status or 0
