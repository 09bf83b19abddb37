"""A document's own text, the request that asks it -> the problem to practise on: neither gold nor few-shot examples.

A request of lm-evaluation-harness is one text: a description, solved examples, the document. Which part is the
document's, its task knows (`doc_to_text`); but a task's function is handed the whole document, gold included. So what
it returns only says *where to look*: the problem is cut from the request, which any model is shown.

What frames the problem for the solver ("Question: ... Answer:") is taken off where it is known, as practice is asked
for and solved in the model's own prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

from mass.evaluation.lm_eval.framing import FORMS
from mass.lm.prompts import CHAT, PLAIN

PLACE = "{problem}"
FRAMES: tuple[str, ...] = (PLAIN.solve, CHAT.solve, *(form.problem for form in FORMS.values()))
"""How problems are asked: our own prompts, and those of the data sets that `mass.evaluation.lm_eval.framing` knows."""


def cut(text: str, request: str) -> str | None:
    """The last place in `request` where `text` stands; chat templates may have trimmed it. None where it does not."""
    for wanted in (text, text.strip()):
        at = request.rfind(wanted)
        if wanted and at >= 0:
            return request[at : at + len(wanted)]
    return None


def unframed(text: str, frames: Iterable[str] = FRAMES) -> str:
    """`text` without the frame that says most around it, or as it is, less the space at its ends."""
    text = text.strip()
    halves = [frame.strip().partition(PLACE)[::2] for frame in frames]
    for before, after in sorted(halves, key=lambda half: -len(half[0]) - len(half[1])):
        inner = text.removeprefix(before).removesuffix(after)
        if len(inner) == len(text) - len(before) - len(after) and inner.strip():
            return inner
    return text
