"""`python -m taet` is `taet`."""

import sys

from taet.cli import main

sys.exit(main())
