"""The program of one math-verify worker: gold and answer in, equal or not out, one JSON line each.

It is run as a file of its own and imports nothing of `mass` (whose values need torch): `python worker.py LIMIT_S`.
Code that parses what a model wrote may hang or eat memory, so each request has a watchdog that ends this process even
while it computes without the interpreter lock, and even after its parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import sys

# The folder of this file has a `math.py`, which must not stand in for the standard library's.
if __name__ == "__main__":
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _HERE]

import faulthandler
import importlib
import json
import logging
from typing import Any, TextIO

MAX_MEMORY_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify takes `answer` for `gold`; raises what its comparison raises."""
    # Imported so that it is typed as Any: the library has no stubs.
    library: Any = importlib.import_module("math_verify")
    # Its own timeouts are SIGALRM handlers that turn into wrong grades: the watchdog and the parent do that work.
    golds = library.parse(_formula(gold), parsing_timeout=None)
    answers = library.parse(_formula(answer), parsing_timeout=None)
    return bool(library.verify(golds, answers, timeout_seconds=None, raise_on_error=True))


def _formula(text: str) -> str:
    return text if "$" in text.replace(r"\$", "") else f"${text}$"


def main(limit_s: float) -> None:
    """Serve standard input until it ends; each request may take `limit_s` seconds of wall clock."""
    with open(os.devnull, "w") as silence, os.fdopen(os.dup(1), "w") as channel:
        # The parser's runtime prints to standard output.
        os.dup2(silence.fileno(), 1)
        faulthandler.dump_traceback_later(10 * limit_s, exit=True, file=silence)
        _limit_memory()
        logging.disable(logging.CRITICAL)
        _reply(channel, _guarded("1", "1"))
        faulthandler.cancel_dump_traceback_later()
        for line in sys.stdin:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=silence)
            _reply(channel, _guarded(*json.loads(line)))
            faulthandler.cancel_dump_traceback_later()


def _guarded(gold: str, answer: str) -> dict[str, Any]:
    try:
        return {"equal": equal(gold, answer)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def _reply(channel: TextIO, reply: dict[str, Any]) -> None:
    channel.write(json.dumps(reply) + "\n")
    channel.flush()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    main(float(sys.argv[1]))
