"""The program of one worker: for each request it writes a receipt and a result, one JSON line each.

`python worker.py LIMIT_S math` compares a gold and an answer with math-verify; `python worker.py LIMIT_S gym` asks a
data set of reasoning-gym for the score of an answer. It runs as a program of its own and imports nothing from `mass`
(whose values need torch). Once its library is imported, it gives up files, network and signals where the kernel allows
that.

Code that parses what a model wrote may hang or use up memory. So each request has a watchdog that ends this process
even while it computes without releasing the interpreter lock, and even after its parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import sys

# The folder of this file has a `math.py`, which must not replace the standard library's.
if __name__ == "__main__":
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _HERE]

import faulthandler
import importlib
import json
import logging
from collections.abc import Callable, Generator
from typing import Any, TextIO

MAX_MEMORY_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Return True if the two are mathematically equal; pass on any exception of the comparison."""
    with _beside():
        algebra: Any = importlib.import_module("inside.algebra")
    return bool(algebra.equal(gold, answer))


def score(name: str, seed: int, index: int, options: dict[str, Any], answer: str) -> float:
    """Return the score that the data set itself gives to an answer to its entry `index`, from 0 to 1."""
    library: Any = importlib.import_module("reasoning_gym")
    made = library.create_dataset(name, seed=seed, size=index + 1, **options)
    return float(made.score_answer(answer, made[index]))


_MODES: dict[str, tuple[str, Callable[..., Any], list[Any]]] = {
    "math": ("equal", equal, ["x", "x+1-1"]),
    "gym": ("score", score, ["chain_sum", 0, 0, {}, "1"]),
}
"""For each mode: the name of the result, the function, and a request whose reply shows that the function works."""


def main(limit_s: float, mode: str = "math") -> None:
    """Answer the requests on standard input until it ends.

    Args:
        limit_s: Wall-clock seconds that each request may take; then this process ends.
        mode: A key of `_MODES`.
    """
    with open(os.devnull, "w") as silence, os.fdopen(os.dup(1), "w") as channel:
        # The parser's runtime prints to standard output, so replies go to a copy of it and the original is silenced.
        os.dup2(silence.fileno(), 1)
        # The watchdog is a thread in C: unlike a signal handler it needs no interpreter lock to end the process.
        faulthandler.dump_traceback_later(10 * limit_s, exit=True, file=silence)
        _limit_memory()
        logging.disable(logging.CRITICAL)
        # The test request imports the library while files can still be read, and tells the parent whether it works.
        _reply(channel, _guarded(mode, _MODES[mode][2]))
        _give_up_powers()
        faulthandler.cancel_dump_traceback_later()
        for line in sys.stdin:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=silence)
            # After this receipt, the request may be the reason why this process ends; before it, it is not.
            _reply(channel, {"received": True})
            _reply(channel, _guarded(mode, json.loads(line)))
            faulthandler.cancel_dump_traceback_later()


def _guarded(mode: str, request: list[Any]) -> dict[str, Any]:
    name, function, _ = _MODES[mode]
    try:
        return {name: function(*request)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def _reply(channel: TextIO, reply: dict[str, Any]) -> None:
    channel.write(json.dumps(reply) + "\n")
    channel.flush()


def _give_up_powers() -> None:
    """Keep only the power to compute and to read Python's own folders."""
    with contextlib.suppress(ImportError, OSError, AttributeError), _beside():
        confine: Any = importlib.import_module("inside.confine")
        readable = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/dev/urandom", *sys.path}
        confine.landlock(readable, [os.devnull])
        confine.filter_calls()


@contextlib.contextmanager
def _beside() -> Generator[None]:
    """Make the folder of this file importable."""
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
