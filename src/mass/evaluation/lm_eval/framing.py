"""Build the prompts that lm-evaluation-harness uses for a known data set, for comparable numbers.

`framing.prompts("gsm8k", shots)` is a `Prompts` for `mass.lm.LM`: the shots (solved examples) stand before each problem
as the harness writes them (except for GSM8K's calculator marks, which our solutions leave out), and an answer ends at
the harness's stop texts. The harness also decides which shots: five random training rows of gsm8k, the first five `dev`
rows of an MMLU subject, tasks 2 to 4 of MBPP, four examples of its own for MATH (they come with lm_eval,
minerva_math/utils.py). HumanEval has none.

References: lm-evaluation-harness 0.4.13, lm_eval/tasks/{gsm8k/gsm8k,minerva_math/minerva_math_algebra,mmlu/default/
_default_template,humaneval/humaneval,mbpp/mbpp,aime/aime}.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mass.errors import DataError, nearest
from mass.lm.prompts import CHAT, Prompts
from mass.types import Task


@dataclass(frozen=True)
class Form:
    """The text forms of one data set's problems and solutions."""

    problem: str
    target: str
    """The solution of a shot, right after its problem."""
    stop: tuple[str, ...]
    """Texts at which an answer ends."""
    start: str = ""
    """Text before the first shot; `{subject}` is the subject of the shots or of the prompt."""
    between: str = "\n\n"


_CHAT_ENDS = ("</s>", "<|im_end|>")
FORMS: dict[str, Form] = {
    "gsm8k": Form("Question: {problem}\nAnswer:", " {solution}", ("Question:", *_CHAT_ENDS)),
    "aime": Form("Question: {problem}\nAnswer:", " {answer}", ("Question:", *_CHAT_ENDS, "<|eot_id|>")),
    "math": Form(
        "Problem:\n{problem}\n\nSolution:",
        " {solution}\nFinal Answer: The final answer is ${answer}$. I hope it is correct.",
        ("Problem:",),
    ),
    "mmlu": Form(
        "{problem}\nAnswer:",
        " {answer}",
        ("\n\n",),
        "The following are multiple choice questions (with answers) about {subject}.\n\n",
    ),
    "humaneval": Form("{problem}\n", "{solution}", ("\nclass", "\ndef", "\n#", "\nif", "\nprint")),
    "mbpp": Form(
        "You are an expert Python programmer, and here is your task: {problem}\n[BEGIN]\n",
        "{solution}\n[DONE]",
        ("[DONE]",),
    ),
}
_ALSO = {"math500": "math", "aime24": "aime", "aime25": "aime"}


def prompts(name: str, shots: Sequence[Task] = (), subject: str = "") -> Prompts:
    """Return the harness's prompts for the data set `name`, with `shots` solved before each problem.

    Practice is asked for in our own words: the harness has none.

    Args:
        subject: A subject of MMLU; by default that of the first shot. As in the harness, underscores become spaces.

    Raises:
        DataError: The data set has no form here.
    """
    key = _ALSO.get(name, name)
    if key not in FORMS:
        raise DataError(f"the harness's prompts of {name!r} are not known{nearest(name, [*FORMS, *_ALSO])}")
    form = FORMS[key]
    about = (subject or (shots[0].subject if shots else "")).replace("_", " ")
    solved = [form.problem.replace("{problem}", shot.problem.strip()) + _target(form, shot) for shot in shots]
    # A shot may contain the text "{problem}", which must not be taken for the place of the problem.
    text = form.start.replace("{subject}", about) + form.between.join([*solved, ""]).replace("{problem}", "{ problem}")
    return Prompts(
        solve=text + form.problem,
        synthesis=CHAT.synthesis,
        answer_prefix="" if form.problem.endswith("\n") else " ",
        example=CHAT.example,
        between=form.between,
        stop=form.stop,
    )


def _target(form: Form, shot: Task) -> str:
    target = form.target.replace("{answer}", shot.answer)
    return target.replace("{solution}", shot.solution if form.target.startswith("{") else shot.solution.strip())
