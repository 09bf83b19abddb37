"""Turn exceptions into exit codes and messages: one line for a user's error, a traceback for a bug of ours.

When several processes end with the same error, one of them reports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from mass.errors import MassError
from mass.training.distributed import speaks

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code.

    A `MassError`, Ctrl-C, a closed pipe and an exit become exit codes; any other exception is a bug and is passed on.
    """
    try:
        code = command()
        # A closed pipe may show only when the buffer is written, so that has to happen inside the try.
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
    except SystemExit as exit:  # from --help
        return exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1


def _drop_output() -> None:
    """Send the interpreter's last flush to the null device, so that it does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
