"""exception -> exit code and what is said of it: one line for a user's error, a traceback for a bug of ours.

Of several processes that end with one error, one says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from mass.errors import MassError
from mass.training.distributed import speaks

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command. Anything but a `MassError`, Ctrl-C, a closed pipe and an exit is a bug and goes through."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except MassError as error:
        if debug:
            raise
        if speaks(error):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        if speaks():
            print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except SystemExit as exit:  # --help
        return exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere, instead of failing again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
