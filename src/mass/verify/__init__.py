"""(Task, answer text) -> Verdict. `check` asks the verifier that the task names.

A verdict is True, False, or None: no verdict, where there is nothing to compare with or the verifier timed out or
crashed. A sample without a verdict is left out, it is not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mass.errors import DataError, MassError, nearest
from mass.types import Task, Verdict
from mass.verify import choice, code, exact, gym, harness, math, own, words
from mass.verify.extract import final_answer

__all__ = ["VERIFIERS", "check", "check_all", "final_answer", "has_gold"]

VERIFIERS: dict[str, Callable[[Task, str], Verdict]] = {
    "math": math.check,
    "exact": exact.check,
    "words": words.check,
    "choice": choice.check,
    "code": code.check,
    "gsm8k-strict": harness.gsm8k_strict,
    "gsm8k-flexible": harness.gsm8k_flexible,
    "minerva": harness.minerva,
    "reasoning-gym": gym.check,
}
"""Verifier name -> function. Your own: under a new name here, or named "module:function" or "command:PROGRAM" by the
task (`mass.verify.own`); what it raises becomes "no verdict"."""

_IN_PROCESS = ("exact", "words", "choice", "gsm8k-strict", "gsm8k-flexible")


def check(task: Task, text: str) -> Verdict:
    """Judge the answer text `text` to `task`.

    Raises DataError when the task names an unknown verifier, ConfigError when that cannot be used on this machine.
    """
    verifier = VERIFIERS.get(task.verifier) or own.find(task.verifier)
    if verifier is None:
        raise DataError(f"task {task.id!r} names the verifier {task.verifier!r}{nearest(task.verifier, VERIFIERS)}")
    if not has_gold(task):
        return Verdict(None, "the task has no answer to compare with", final_answer(text))
    try:
        return verifier(task, text)
    except MassError:
        raise
    except Exception as error:
        return Verdict(None, f"the verifier {task.verifier!r} crashed: {type(error).__name__}: {error}")


def has_gold(task: Task) -> bool:
    """Whether an answer to the task can be judged: it has one to compare with, or its verifier is the user's own, which
    may need none."""
    return bool(task.answer.strip()) or task.verifier not in VERIFIERS


def check_all(pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """Verdicts of many (task, text) pairs in their order.

    Side by side where a verifier may wait for other processes; the rest take less time than a thread.
    """
    if all(task.verifier in _IN_PROCESS for task, _ in pairs):
        return [check(task, text) for task, text in pairs]
    with ThreadPoolExecutor(max_workers=math.POOL.size) as threads:
        return list(threads.map(check, *zip(*pairs, strict=True)))
