"""Runs the command line: `python -m taet` is the same as `taet`."""

import contextlib
import os
import sys

with contextlib.suppress(FileNotFoundError):  # the current directory is gone
    # put there by -m; from here on, none of its files shadows a module
    if sys.path[:1] == [os.getcwd()]:
        del sys.path[0]

from taet.cli import main

sys.exit(main())
