"""(Task, answer text) -> Verdict. `check` asks the verifier that the task names.

A verdict is True, False, or None: no verdict, where there is nothing to compare with or the verifier timed out or
crashed. A sample without a verdict is left out, it is not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mass.errors import DataError, MassError, nearest
from mass.types import Task, Verdict
from mass.verify import choice, code, exact, math
from mass.verify.extract import final_answer

__all__ = ["VERIFIERS", "check", "check_all", "final_answer"]

VERIFIERS: dict[str, Callable[[Task, str], Verdict]] = {
    "math": math.check,
    "exact": exact.check,
    "choice": choice.check,
    "code": code.check,
}
"""Verifier name -> function. Add your own under a new name; what it raises becomes "no verdict"."""


def check(task: Task, text: str) -> Verdict:
    """Judge the answer text `text` to `task`. Raises DataError when the task names an unknown verifier."""
    verifier = VERIFIERS.get(task.verifier)
    if verifier is None:
        raise DataError(f"task {task.id!r} names the verifier {task.verifier!r}{nearest(task.verifier, VERIFIERS)}")
    if not task.answer.strip():
        return Verdict(None, "the task has no answer to compare with", final_answer(text))
    try:
        return verifier(task, text)
    except MassError:
        raise
    except Exception as error:
        return Verdict(None, f"the verifier {task.verifier!r} crashed: {type(error).__name__}: {error}")


def check_all(pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """Verdicts of many (task, text) pairs in their order.

    Side by side, with all workers busy, where math-verify may be asked: the other verifiers take less than a thread.
    """
    if not any(task.verifier in ("math", "code") for task, _ in pairs):
        return [check(task, text) for task, text in pairs]
    with ThreadPoolExecutor(max_workers=math.POOL.size) as threads:
        return list(threads.map(check, *zip(*pairs, strict=True)))
