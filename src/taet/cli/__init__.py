"""The command line: `taet COMMAND ...`, one file per command."""

import contextlib
import errno
import importlib
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence

from taet.cli.end_in_time import (
    INTERRUPTED,
    advice,
    advise,
    end_in_time,
    is_one_of_several,
    leave,
)
from taet.errors import (
    Done,
    UserError,
    custom_origin,
    exception_text,
    is_out_of_memory,
    printable,
    unknown,
)

COMMANDS = {
    "demo": "train AT, AT-BSL and TAET on long-tailed digits, attack them, write report.html",
    "train": "train a method: taet train METHOD; continue a run: taet train --resume RUN",
    "evaluate": "attack a finished run, or any model, and write its result card",
    "check": "check this machine, every file of a run, or an evaluation of any model",
    "compare": "train and attack a grid of methods, data, ratios and seeds; runs only what is "
    "missing",
    "report": "write runs and cards as one HTML page, or as Markdown, CSV or LaTeX tables",
    "predict": "classify images with a run, and test whether each prediction survives an attack",
    "export": "write the model of a run, with its preprocessing, as pt2, ONNX or safetensors",
    "push": "publish a run with its result card as a folder, or on the Hugging Face Hub",
    "data": "show a data set, or download and check its files: taet data show|prepare NAME",
    "list": "list methods, losses, attacks, data, models, protocols or recipes",
}
HELP = """usage: taet COMMAND [options]

Adversarial robustness under long-tailed data.

{}

Every command has --help, with examples, and --debug, which shows the traceback of an error.

Exit status: 0 success; 1 a check or a cell of a comparison failed, or an unexpected error;
2 a mistake in the call, a file or a plug-in, reported in one line; 130 interrupted, with all
finished work saved."""
OUTPUT = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE)
"""Errors of standard output, which has no file name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Any exception becomes one line."""
    # `list` may be the command's module here
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    words = [word for word in arguments if word != "--debug"]
    advise(how_to_go_on(words))
    if argv is None:
        _set_up_process(words)
    try:
        status = _dispatch(words)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still handled
    except BaseException as error:
        if argv is None:
            # when ending: a second Ctrl-C would only add a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        status, line = ended_by(error)
        with contextlib.suppress(OSError):  # standard error may be closed
            if "--debug" in arguments and not isinstance(error, Done):
                traceback.print_exception(error)
            if isinstance(error, OSError) and error.filename is None:
                # Python would try, and fail, to write buffered output again at exit.
                with contextlib.suppress(io.UnsupportedOperation):  # standard output is not a file
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, KeyboardInterrupt):
                print(file=sys.stderr)  # after ^C
                line += str(error) or advice()
            if line:
                # at once: torchrun writes there, too
                sys.stderr.write(f"taet: {printable(' '.join(line.split()))}\n")
        if argv is None and isinstance(error, KeyboardInterrupt):
            leave(status)  # at its end Python would wait for threads that read images
    if argv is None and is_one_of_several():
        leave(status)
    return status


def how_to_go_on(words: Sequence[str]) -> str:
    """Return what an interrupted command says of its work."""
    kept = words[:1] in (["compare"], ["demo"], ["evaluate"])
    saved = "finished work is saved; continue" if kept else "run it again"
    return f"{saved} with: {shlex.join(['taet', *words])}"


def _set_up_process(words: Sequence[str]) -> None:
    """Set up this process, and the environment of those that it will start."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no file in the current directory can shadow their modules
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
    end_in_time(words[0] if words else "")


def ended_by(error: BaseException) -> tuple[int, str]:
    """Return the exit status of a command that an exception ended, and the one line about it; ""
    for none."""
    place = custom_origin(error)
    match error:
        case Done():
            return int(error.code or 0), ""
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted; "
        case UserError():
            return 2, f"error: {error}"
        case _ if place is not None:
            return 2, f"error: {place}: {exception_text(error)}; --debug shows the trace"
        case _ if is_out_of_memory(error):
            return 1, (
                f"error: out of memory: {exception_text(error)}; a smaller batch size takes "
                "less; --debug shows where"
            )
        case BrokenPipeError():  # e.g. `taet list methods | head`
            return 0, ""
        case OSError() if error.filename is not None or error.errno in OUTPUT:
            return 2, f"error: {os.fsdecode(error.filename or 'output')}: {error.strerror}"
    advice = "--debug shows where. Unless your own code is there, please report this"
    return 1, f"error: unexpected: {exception_text(error)}; {advice}"


def _dispatch(arguments: list[str]) -> int:
    command, *words = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP.format("\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())))
        return 0
    if command == "--version":
        from taet import __version__

        print(f"taet {__version__}")
        return 0
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if os.name == "nt":
        raise UserError("the commands replace files as POSIX does; allowed: Linux, macOS, or WSL 2")
    status: int | None = importlib.import_module(f"taet.cli.{command}").run(words)
    return status or 0
