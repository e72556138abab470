"""The command line: `taet COMMAND ...`, one file per command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from taet.errors import UserError, unknown

COMMANDS = {
    "demo": "train AT, AT-BSL and TAET on long-tailed digits, attack them, write report.html (minutes, no download)",
    "train": "train a method: taet train METHOD [options]; continue a run: taet train --resume RUN",
    "check": "find what would spoil an evaluation of a run or of any model, and estimate its duration",
    "evaluate": "attack a finished run, or any model, and write its result card",
    "transfer": "evaluate each of several runs on the adversarial examples of the others",
    "compare": "train and attack a grid of methods, data, imbalance ratios and seeds; runs only what is missing",
    "report": "write one self-contained HTML file about any number of runs",
    "predict": "classify images with a finished run, and test whether each prediction survives an attack",
    "export": "write the model of a finished run, with its preprocessing, as pt2, ONNX or safetensors",
    "cost": "measure the cost of training on this machine: passes, seconds, memory, and what TAET saves",
    "list": "list methods, attacks, data, models or protocols",
    "data": "show a data set, or download and check its files: taet data show|prepare NAME",
    "doctor": "check whether this machine can train, and how fast",
}

EPILOG = """Every command has --help, with examples, and --debug, which shows the traceback of an error.
Exit status: 0 success; 1 a cell of a comparison failed; 2 a mistake in the call, named in one line; 130 interrupted,
with all finished work saved."""

DEBUG = "TAET_DEBUG"
"""Environment variable that acts as --debug."""
STARTED_TOGETHER = "TAET_STARTED_TOGETHER"
"""Environment variable of the processes that one command started to share its work."""


def help_text() -> str:
    """What `taet --help` prints."""
    lines = ["usage: taet COMMAND [options]", "", "Adversarial robustness under long-tailed data.", ""]
    lines += [f"  {name:9} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # `list` may be the command's module here
    debug = "--debug" in arguments or DEBUG in os.environ
    arguments = [a for a in arguments if a != "--debug"]
    if debug and argv is None:
        os.environ[DEBUG] = "1"  # also for the processes that this one starts
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still handled
        return status
    except UserError as error:
        if debug:
            raise
        print(f"taet: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if STARTED_TOGETHER not in os.environ:  # otherwise the process that started this one reports it
            print("\ntaet: interrupted; what was done so far is saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # e.g. `taet list methods | head`
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
    """Discard buffered output: Python would try, and fail, to write it again at exit."""
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
