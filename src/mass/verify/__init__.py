"""Judge an answer text to a task with the verifier that the task names.

A verdict is True, False or None. None means "no verdict": there is nothing to compare with, or the verifier timed out
or crashed. A sample without a verdict is left out; it does not count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mass.errors import DataError, MassError, nearest
from mass.types import Task, Verdict
from mass.verify import choice, code, exact, gym, harness, math, own, verbatim, words
from mass.verify.extract import final_answer

__all__ = ["VERIFIERS", "check", "check_all", "final_answer", "has_gold"]

VERIFIERS: dict[str, Callable[[Task, str], Verdict]] = {
    "math": math.check,
    "exact": exact.check,
    "words": words.check,
    "text": verbatim.check,
    "choice": choice.check,
    "code": code.check,
    "gsm8k-strict": harness.gsm8k_strict,
    "gsm8k-flexible": harness.gsm8k_flexible,
    "minerva": harness.minerva,
    "reasoning-gym": gym.check,
}
"""The built-in verifiers by name. To use your own, add it here under a new name, or let the task name it as
"module:function" or "command:PROGRAM" (`mass.verify.own`). An exception that it raises becomes "no verdict"."""

_IN_PROCESS = ("exact", "words", "text", "choice", "gsm8k-strict", "gsm8k-flexible")


def check(task: Task, text: str) -> Verdict:
    """Judge the answer text `text` to `task`.

    Raises:
        DataError: The task names an unknown verifier.
        ConfigError: That verifier cannot be used on this machine.
    """
    verifier = VERIFIERS.get(task.verifier) or own.find(task.verifier)
    if verifier is None:
        raise DataError(f"task {task.id!r} names the verifier {task.verifier!r}{nearest(task.verifier, VERIFIERS)}")
    if not has_gold(task):
        return Verdict(None, "the task has no answer to compare with", final_answer(text))
    try:
        return verifier(task, text)
    # The user can mend these, and they would come back for every answer; anything else concerns this answer alone.
    except MassError:
        raise
    except Exception as error:
        return Verdict(None, f"the verifier {task.verifier!r} crashed: {type(error).__name__}: {error}")


def has_gold(task: Task) -> bool:
    """Return True if an answer to the task can be judged: the task has an answer to compare with, or its verifier is
    the user's own, which may need none."""
    return bool(task.answer.strip()) or task.verifier not in VERIFIERS


def check_all(pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """Return the verdicts of many (task, text) pairs, in their order.

    They are judged side by side where a verifier may wait for other processes; the other verifiers take less time than
    starting a thread.
    """
    if all(task.verifier in _IN_PROCESS for task, _ in pairs):
        return [check(task, text) for task, text in pairs]
    with ThreadPoolExecutor(max_workers=math.POOL.size) as threads:
        return list(threads.map(check, *zip(*pairs, strict=True)))
