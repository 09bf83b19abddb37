"""The program of one worker: a request in, its receipt and a verdict out, one JSON line each.

`python worker.py LIMIT_S math` compares a gold and an answer with math-verify, `… gym` asks a data set of reasoning-gym
for the score of an answer. It is run as a file of its own and imports nothing of `mass` (whose values need torch). Once
its library is there, it gives up files, network and signals where the kernel lets it.
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
from collections.abc import Callable, Generator
from typing import Any, TextIO

MAX_MEMORY_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Whether the two are the same mathematics; raises what the comparison raises."""
    with _beside():
        algebra: Any = importlib.import_module("inside.algebra")
    return bool(algebra.equal(gold, answer))


def score(name: str, seed: int, index: int, options: dict[str, Any], answer: str) -> float:
    """What the data set itself says of an answer to its entry `index`."""
    library: Any = importlib.import_module("reasoning_gym")
    made = library.create_dataset(name, seed=seed, size=index + 1, **options)
    return float(made.score_answer(answer, made[index]))


_MODES: dict[str, tuple[str, Callable[..., Any], list[Any]]] = {
    "math": ("equal", equal, ["x", "x+1-1"]),
    "gym": ("score", score, ["chain_sum", 0, 0, {}, "1"]),
}
"""Name of the result, the function, and a request whose reply shows that it works."""


def main(limit_s: float, mode: str = "math") -> None:
    """Serve standard input until it ends; each request may take `limit_s` seconds of wall clock."""
    with open(os.devnull, "w") as silence, os.fdopen(os.dup(1), "w") as channel:
        # The parser's runtime prints to standard output.
        os.dup2(silence.fileno(), 1)
        faulthandler.dump_traceback_later(10 * limit_s, exit=True, file=silence)
        _limit_memory()
        logging.disable(logging.CRITICAL)
        _reply(channel, _guarded(mode, _MODES[mode][2]))
        _give_up_powers()
        faulthandler.cancel_dump_traceback_later()
        for line in sys.stdin:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=silence)
            # What ends this process from here on may be the request's doing; what did before was not.
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
    """What is left: to compute, and to read Python's own folders."""
    with contextlib.suppress(ImportError, OSError, AttributeError), _beside():
        confine: Any = importlib.import_module("inside.confine")
        readable = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/dev/urandom", *sys.path}
        confine.landlock(readable, [os.devnull])
        confine.filter_calls()


@contextlib.contextmanager
def _beside() -> Generator[None]:
    """The folder of this file among those that are imported from."""
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
