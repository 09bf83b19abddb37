"""A question, and the examples to show before it -> the tokens of a prompt that asks it as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.lm.prompts import KINDS, OTHER, Prompts
from mass.types import Pair

if TYPE_CHECKING:
    from mass.lm import LM

_SYNTHESIS_CHAT = (
    "Here are examples of one task:\n\n{problem}\n\n"
    "Write one new example of the same task, with another input and the output that is right for it. Answer in exactly "
    "this form:\nInput: <the new input>\nOutput: <its output>"
)


def as_they_are(prompts: Prompts, instruction: str = "") -> Prompts:
    """Return prompts that ask a question without a word of ours.

    In a chat the input is the user's turn, the output the assistant's, and an instruction the system message. A model
    without a chat template continues "Input: ... Output:". The synthesis prompt shows a list of examples, and asks for
    one more.
    """
    if prompts.chat:
        return dataclasses.replace(
            prompts.without_form(),
            solve="{problem}",
            system=instruction.strip() or prompts.system,
            synthesis=_SYNTHESIS_CHAT,
            answer_prefix="",
            example=" {problem}\nOutput: {solution}",
            opening="Input:",
            synthesis_stop=("\nInput:",),
        )
    before = f"{instruction.strip()}\n\n" if instruction.strip() else ""
    return Prompts(
        solve=f"{before}Input: {{problem}}\nOutput:",
        synthesis=f"{before}{{problem}}\n\nInput:",
        answer_prefix=" ",
        example=" {problem}\nOutput: {solution}",
        stop=("\nInput:",),
    )


def asking_as_is(lm: LM, instruction: str = "", kind: str = OTHER) -> LM:
    """Return a view of the model that asks questions as they are."""
    return lm.with_prompts(dict.fromkeys(KINDS, as_they_are(lm.prompts, instruction)), kind)


def listed(pairs: Sequence[Pair]) -> str:
    """Return examples as the synthesis prompt shows them."""
    return "\n\n".join(f"Input: {question.strip()}\nOutput: {answer.strip()}" for question, answer in pairs)


def prompt(lm: LM, shots: Sequence[Pair], question: str, answer_tokens: int) -> list[int]:
    """Return the prompt of a question after as many of the examples, the first ones, as leave room for the answer.

    Raises DataError for a question that alone fills the context.
    """
    alone = lm.solve_prompt(question)
    for count in range(len(shots), 0, -1):
        found = lm.shots_prompt(shots[:count], question)
        if len(found) + answer_tokens <= lm.context:
            return found
    return alone


def fitting(lm: LM, shots: Sequence[Pair], longest: str, answer_tokens: int) -> tuple[Pair, ...]:
    """Return the examples, the first ones, that fit before the longest question with room for its answer."""
    for count in range(len(shots), 0, -1):
        if len(lm.shots_prompt(shots[:count], longest)) + answer_tokens <= lm.context:
            return tuple(shots[:count])
    return ()
