"""The command line: `taet COMMAND ...`, one file per command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import io
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence

from taet.errors import Done, UserError, custom_origin, is_out_of_memory, printable, said, unknown

COMMANDS = {
    "demo": "train AT, AT-BSL and TAET on long-tailed digits, attack them, write report.html (minutes, no download)",
    "train": "train a method: taet train METHOD [options]; continue a run: taet train --resume RUN",
    "check": "find problems that would invalidate an evaluation of a run or any model, and estimate its duration",
    "evaluate": "attack a finished run, or any model, and write its result card",
    "audit": "check whether robustness results can be trusted, by the checklist of Carlini et al. (2019)",
    "transfer": "evaluate each of several runs on the adversarial examples of the others",
    "compare": "train and attack a grid of methods, data, imbalance ratios and seeds; runs only what is missing",
    "report": "write one self-contained HTML file about any number of runs",
    "predict": "classify images with a finished run, and test whether each prediction survives an attack",
    "export": "write the model of a finished run, with its preprocessing, as pt2, ONNX or safetensors",
    "push": "publish a finished run with its result card and a model card: a folder, or the Hugging Face Hub",
    "list": "list methods, attacks, data, models, protocols or recipes",
    "data": "show a data set, or download and check its files: taet data show|prepare NAME",
    "doctor": "check whether this machine can train, and how fast; taet doctor RUN verifies every file of a run",
}

LEFT = {
    "cost": "python benchmarks/cost.py",
    "embed": "python examples/embed.py RUN PICTURE",
    "gate": "taet report NEW --fail-if-worse OLD",
    "leaderboard": "taet report RUNS, or taet.results(...).board()",
    "plan": "python examples/learning_curve.py METHOD...",
    "reproduce": "python papers/reproduce.py",
    "track": "python examples/track.py RUN",
    "tune": "python examples/tune.py",
}
"""Commands that left, and what does their work now."""

EPILOG = """Every command has --help, with examples, and --debug, which shows the traceback of an error.

taet help COMMAND is taet COMMAND --help.

Exit status: 0 success; 1 a cell of a comparison failed, a check failed, or an unexpected error;
2 a mistake in the call, a file or a plug-in, reported in one line; 130 interrupted, with all finished work saved."""

DEBUG = "TAET_DEBUG"
"""Environment variable that acts as --debug."""
OUTPUT = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE)
"""Errors of standard output, which has no file name."""
STARTED_TOGETHER = "TAET_STARTED_TOGETHER"
"""Environment variable of the processes that one command started to share its work."""


def help_width() -> int:
    """Return the width of help texts in columns: that of the terminal, at most 120."""
    return min(shutil.get_terminal_size().columns, 120)


def wrapped(text: str) -> str:
    """Return paragraphs, each wrapped to `help_width`; indented ones, such as TOML, are not changed."""
    parts = text.split("\n\n")
    filled = [part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), help_width()) for part in parts]
    return "\n\n".join(filled)


def help_text() -> str:
    """Return the output of `taet --help`."""
    lines = ["usage: taet COMMAND [options]", "", "Adversarial robustness under long-tailed data.", ""]
    for name, text in COMMANDS.items():
        lines += textwrap.wrap(text, help_width(), initial_indent=f"  {name:9} ", subsequent_indent=" " * 12)
    return "\n".join([*lines, "", *wrapped(EPILOG).split("\n\n")])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Any exception becomes one line."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # `list` may be the command's module here
    debug = "--debug" in arguments or DEBUG in os.environ
    arguments = [a for a in arguments if a != "--debug"]
    if argv is None:
        _set_up_process(debug)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still handled
        return status
    except BaseException as error:
        if argv is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # when ending: a second Ctrl-C would only add a traceback
        with contextlib.suppress(OSError):  # standard error may be closed
            if debug and not isinstance(error, Done):
                traceback.print_exception(error)
            if isinstance(error, OSError) and error.filename is None:
                _drop_output()
            status, line = ended_by(error)
            if isinstance(error, KeyboardInterrupt):
                if STARTED_TOGETHER in os.environ:  # the process that started this one reports it
                    return status
                print(file=sys.stderr)  # after ^C
            if line:
                print(f"taet: {printable(' '.join(line.split()))}", file=sys.stderr)
            return status
        return 1


def _set_up_process(debug: bool) -> None:
    """Set up this process, and the environment of those that it will start."""
    if debug:
        os.environ[DEBUG] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # no file in the current directory can shadow their modules
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text


def ended_by(error: BaseException) -> tuple[int, str]:
    """Return the exit status of a command that an exception ended, and the one line about it; "" for none."""
    place = custom_origin(error)
    match error:
        case Done():
            return int(error.code or 0), ""
        case KeyboardInterrupt():
            return 130, f"interrupted; {str(error) or 'only finished work is kept'}"
        case UserError():
            return 2, f"error: {error}"
        case _ if place is not None:
            return 2, f"error: {place}: {said(error)}; --debug shows the trace"
        case BrokenPipeError():  # e.g. `taet list methods | head`
            return 0, ""
        case OSError() if error.filename is not None or error.errno in OUTPUT:
            return 2, f"error: {os.fsdecode(error.filename or 'output')}: {error.strerror}"
        case _ if is_out_of_memory(error):
            return 1, f"error: out of memory: {said(error)}; a smaller --batch-size takes less; --debug shows where"
    return 1, f"error: unexpected: {said(error)}. Please report this to the authors of taet with the output of --debug"


def _drop_output() -> None:
    """Discard buffered output, because Python would try, and fail, to write it again at exit."""
    with contextlib.suppress(io.UnsupportedOperation):  # standard output is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from taet import __version__

        print(f"taet {__version__}")
        return 0
    if arguments[0] in LEFT:
        raise UserError(f"the command {arguments[0]} has left; now: {LEFT[arguments[0]]}")
    if arguments[0] not in COMMANDS:
        raise unknown("command", arguments[0], COMMANDS)
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("the commands lock files by fcntl, which Windows lacks; allowed: Linux, macOS, or WSL 2")
    status: int | None = importlib.import_module(f"taet.cli.{arguments[0]}").run(arguments[1:])
    return status or 0
