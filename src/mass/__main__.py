"""Run the command line as `python -m mass`, for launchers that start a module."""

import sys

from mass.cli.main import main

sys.exit(main())
