"""`python -m mass`: the command line, for launchers that start a module."""

import sys

from mass.cli.main import main

sys.exit(main())
