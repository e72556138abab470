"""Runs the command line: `python -m taet` is the same as `taet`."""

import sys

from taet.cli import main

sys.exit(main())
