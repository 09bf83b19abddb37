"""Find the problem to practise on in a request: the document's own text, without gold and few-shot examples.

A request of lm-evaluation-harness is one text: a description, solved examples, the document. The task knows which part
belongs to the document (`doc_to_text`), but its function is given the whole document, including the gold. So its result
only says *where to look*: the problem is cut from the request, which any model sees.

The text around the problem for the solver ("Question: ... Answer:") is removed where it is known, since practice is
written and solved in the model's own prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

from mass.evaluation.lm_eval.framing import FORMS
from mass.lm.prompts import CHAT, PLAIN

PLACE = "{problem}"
FRAMES: tuple[str, ...] = (PLAIN.solve, CHAT.solve, *(form.problem for form in FORMS.values()))
"""Forms in which problems are asked: our own prompts, and those of the data sets that
`mass.evaluation.lm_eval.framing` knows."""


def cut(text: str, request: str) -> str | None:
    """Return the last place in `request` where `text` stands (chat templates may have trimmed it); None where it
    does not."""
    for wanted in (text, text.strip()):
        at = request.rfind(wanted)
        if wanted and at >= 0:
            return request[at : at + len(wanted)]
    return None


def unframed(text: str, frames: Iterable[str] = FRAMES) -> str:
    """Return `text` without the longest known frame around it, or as it is; in both cases without space at its ends."""
    text = text.strip()
    halves = [frame.strip().partition(PLACE)[::2] for frame in frames]
    for before, after in sorted(halves, key=lambda half: -len(half[0]) - len(half[1])):
        inner = text.removeprefix(before).removesuffix(after)
        if len(inner) == len(text) - len(before) - len(after) and inner.strip():
            return inner
    return text
