"""Judge an answer to a task of reasoning-gym: the data set's own score of the final answer must be 1.

The answer is taken out of the text first, and partial credit does not count: reasoning-gym gives a score above 0 to any
text that contains the answer somewhere. Some data sets evaluate the text that they are given. So scoring runs in worker
processes that can be killed and that give up their powers (`mass.verify.worker`), and an answer with two underscores in
a row is rejected unread. Not covered: an answer that is evaluated, has no such underscores, and changes what its own
worker says about it and about later answers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mass.types import Task, Verdict
from mass.verify.exact import shorten
from mass.verify.extract import find
from mass.verify.pool import NoVerdict, Pool

POOL = Pool(size=1, timeout_s=20.0, mode="gym")
_TAG = re.compile(r"<answer>\s?([^<]*(?:<(?!/answer>)[^<]*)*)</answer>")
MAX_ANSWER_CHARS = 20_000


def check(task: Task, text: str) -> Verdict:
    """Judge the answer in `<answer>` tags, or else the marked final answer: it must have the full score."""
    answer = _answer(text)
    if answer is None:
        return Verdict(False, "no answer found in the text")
    if answer == task.answer.strip():
        return Verdict(True, f"{shorten(answer)} is {shorten(task.answer)}", answer)
    # Two underscores are how an expression in Python reaches beyond its values (`__import__`, `__class__`).
    if "__" in answer or len(answer) > MAX_ANSWER_CHARS:
        return Verdict(False, "the answer is no answer of this kind", answer)
    try:
        # The id says how the entry was made; the worker makes the same entry again.
        made: dict[str, Any] = json.loads(task.id.partition(":")[2])
        score = POOL.ask([made["name"], made["seed"], made["index"], made["options"], answer])["score"]
    except (ValueError, KeyError, TypeError):
        return Verdict(None, f"the id {task.id[:60]!r} does not say how the task was made", answer)
    except NoVerdict as error:
        return Verdict(None, str(error).replace("math-verify", "reasoning-gym"), answer)
    return Verdict(score == 1.0, f"{shorten(answer)} has the score {score:.3g} of 1", answer)


def _answer(text: str) -> str | None:
    tagged = _TAG.findall(text)
    if tagged:
        return tagged[-1].strip()
    found = find(text)
    return found.number or found.text if found else None
