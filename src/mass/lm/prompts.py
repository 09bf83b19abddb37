"""The texts that ask a model to solve a problem, or to write practice like it, for each kind of problem.

A base model continues `PLAIN`. A model whose tokenizer has a chat template gets a user message, `CHAT` for mathematics
and others for problems whose answer is a program or a letter (`CHATS`). `mass.lm.prompts_file` reads a user's own
prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mass.types import Task

MATH, CODE, CHOICE, OTHER = KINDS = ("math", "code", "choice", "other")
"""Kinds of problems, by the form of the final answer: a number or formula, a program, a letter, or none of these."""
_KIND_OF_VERIFIER = {
    **dict.fromkeys(("math", "exact", "gsm8k-strict", "gsm8k-flexible", "minerva"), MATH),
    "code": CODE,
    "choice": CHOICE,
}


@dataclass(frozen=True)
class Prompts:
    """The prompts for one kind of problem."""

    solve: str
    """Prompt with `{problem}`, to which the model answers with a worked solution."""
    synthesis: str
    """Prompt with `{problem}`, to which the model answers with a similar problem and its solution."""
    answer_prefix: str
    """Text between a prompt and the solution that follows it directly."""
    example: str
    """Practice example with `{problem}` and `{solution}`, as the model writes it after the synthesis prompt."""
    between: str = "\n\n"
    """Text between a solved problem and the next one in a prompt with several problems."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation, besides the end token."""
    chat: bool = False
    """True if a prompt goes through the tokenizer's chat template as a user message."""
    system: str = ""
    """System message (with `chat`), put before the user's text if the template has no system role."""
    thinking: bool = False
    """True if the model may think aloud first (with `chat`), in a template with such a switch (`enable_thinking`)."""
    date: str = "2024-07-26"
    """Day for templates that write a date (with `chat`), so that a prompt is the same every day."""
    opening: str = ""
    """First words of the assistant's message after the synthesis prompt (with `chat`, without thinking). They are part
    of the prompt, so that the model continues in the requested form."""
    shown_target: str = ""
    """Problem that is shown with practice for it (with `chat`), as an earlier turn of the conversation before the
    synthesis prompt, to demonstrate the form. Empty to show nothing."""
    shown_problem: str = ""
    """The practice problem that is shown for `shown_target`."""
    shown_solution: str = ""
    """The solution of `shown_problem`."""
    synthesis_stop: tuple[str, ...] = ()
    """Texts that end a practice example, besides `stop`."""

    def render_solve(self, problem: str) -> str:
        """Return the text that asks to solve a problem."""
        return self.solve.replace("{problem}", problem.strip())

    def render_synthesis(self, problem: str) -> str:
        """Return the text that asks for practice for a problem."""
        return self.synthesis.replace("{problem}", problem.strip())

    def render_example(self, problem: str, solution: str) -> str:
        """Return `example` filled in."""
        # Split first, so that a "{solution}" inside the problem stays as it is.
        before, after = self.example.split("{problem}")
        return before + problem.strip() + after.replace("{solution}", solution.strip())

    @property
    def opens(self) -> str:
        """The `opening` if the prompt ends with it; empty without a chat, or where the model thinks first."""
        return self.opening if self.chat and not self.thinking else ""

    def render_written(self, problem: str, solution: str) -> str:
        """Return a practice example as the model writes it after the synthesis prompt and its `opens`."""
        unopened = self.opening if self.chat and not self.opens else ""
        return unopened + self.render_example(problem, solution)

    @property
    def form(self) -> str:
        """A complete practice example with {problem} and {solution} in their places."""
        return self.opens + self.render_written("{problem}", "{solution}")

    def without_form(self) -> Prompts:
        """Return a copy without opening and shown example, for a synthesis prompt that asks for another form."""
        nothing = dict.fromkeys(("opening", "shown_target", "shown_problem", "shown_solution"), "")
        return dataclasses.replace(self, example=self.opening + self.example, synthesis_stop=(), **nothing)

    def shown_turns(self) -> list[tuple[str, str]]:
        """Return the turns (role, text) before the synthesis prompt; none where no example is shown."""
        if not (self.chat and self.shown_target):
            return []
        example = self.opening + self.render_example(self.shown_problem, self.shown_solution)
        return [("user", self.render_synthesis(self.shown_target)), ("assistant", example)]


PromptSet = Mapping[str, Prompts]
"""Prompts by kind, one for each of `KINDS`."""

PLAIN = Prompts(
    solve="Problem: {problem}\nSolution:",
    synthesis="Problem: {problem}\nSimilar problem:",
    answer_prefix=" ",
    example=" {problem}\nSolution: {solution}",
    stop=("\nProblem:", "\nSimilar problem:"),
)

CHAT = Prompts(
    solve="{problem}\n\nReason step by step, and put your final answer within \\boxed{}.",
    synthesis=(
        "Here is a problem:\n\n{problem}\n\n"
        "Write one new problem that trains the same skills with other things and other numbers, then solve it in a few "
        "short steps and put its final answer within \\boxed{}. Answer in exactly this form:\n"
        "Problem: <the new problem>\nSolution: <its solution>"
    ),
    answer_prefix="",
    example=" {problem}\nSolution: {solution}",
    chat=True,
    opening="Problem:",
    shown_target=(
        "A baker sold 24 loaves of bread in the morning and half as many in the afternoon. Each loaf costs $3. How "
        "much money did he take that day?"
    ),
    shown_problem=(
        "A farmer filled 30 crates with apples on Monday and a third as many on Tuesday. Each crate holds 8 kilograms. "
        "How many kilograms of apples did she pick on the two days?"
    ),
    shown_solution=(
        "On Tuesday she filled 30 / 3 = 10 crates.\nOn the two days she filled 30 + 10 = 40 crates.\nThey hold "
        "40 * 8 = 320 kilograms.\nThe final answer is \\boxed{320}."
    ),
    synthesis_stop=("\nProblem:", "\nProblem 2"),
)

_FORM = "Answer in exactly this form:\nProblem: <the new problem>\nSolution: <its solution>"
PLAINS: PromptSet = dict.fromkeys(KINDS, PLAIN)
CHATS: PromptSet = {
    MATH: CHAT,
    CODE: dataclasses.replace(
        CHAT,
        solve=(
            "Solve this programming problem in Python:\n\n{problem}\n\n"
            "Give the complete code, with everything that it needs, in one ```python block."
        ),
        synthesis=(
            "Here is a programming problem:\n\n{problem}\n\n"
            "Write one new programming problem that trains the same skills with another function, and two or three "
            "tests that its solution should pass, each a line that begins with `assert`. Then solve it in Python, with "
            f"the complete code in one ```python block. {_FORM}"
        ),
        shown_target=(
            "Write a function to find the largest number of a list. Your code should pass these tests:\n\n"
            "assert largest([3, 1, 2]) == 3\nassert largest([-5, -9]) == -5"
        ),
        shown_problem=(
            "Write a function to find the longest word of a list; of equally long ones the first. Your code should "
            'pass these tests:\n\nassert longest_word(["fig", "apple", "plum"]) == "apple"\n'
            'assert longest_word(["one", "two"]) == "one"'
        ),
        shown_solution=(
            "```python\ndef longest_word(words):\n    best = words[0]\n    for word in words:\n"
            "        if len(word) > len(best):\n            best = word\n    return best\n```"
        ),
    ),
    CHOICE: dataclasses.replace(
        CHAT,
        solve=(
            "{problem}\n\nReason step by step, and end with a line 'Answer: X', where X is the letter of the right "
            "choice."
        ),
        synthesis=(
            "Here is a multiple-choice problem:\n\n{problem}\n\n"
            "Write one new multiple-choice problem that trains the same skills but asks for something else, with its "
            "choices as lines that begin with 'A. ', 'B. ' and so on. Then solve it in a few short steps, and end with "
            f"a line 'Answer: X', where X is the letter of the right choice. {_FORM}"
        ),
        shown_target=(
            "Which gas do plants take from the air for photosynthesis?\nA. Oxygen\nB. Nitrogen\nC. Carbon dioxide\n"
            "D. Helium"
        ),
        shown_problem=(
            "Which gas do animals take from the air to release energy from food?\nA. Carbon dioxide\nB. Oxygen\n"
            "C. Argon\nD. Nitrogen"
        ),
        shown_solution=(
            "Animals release energy from food by respiration. Respiration uses oxygen and gives off carbon dioxide.\n"
            "Answer: B"
        ),
    ),
    OTHER: dataclasses.replace(
        CHAT,
        solve="{problem}\n\nReason step by step, and end with a line 'Answer: ' and your final answer after it.",
        synthesis=(
            "Here is a problem:\n\n{problem}\n\n"
            "Write one new problem that trains the same skills but asks for something else, then solve it in a few "
            f"short steps, and end with a line 'Answer: ' and its final answer after it. {_FORM}"
        ),
        shown_target="Sort these words alphabetically: stone, apple, river",
        shown_problem="Sort these words alphabetically: lamp, door, window, chair",
        shown_solution=(
            "By their first letters the order is c, d, l, w: chair, door, lamp, window.\nAnswer: chair, door, lamp, "
            "window"
        ),
    ),
}


def defaults(*, chat: bool) -> PromptSet:
    """Return the package's own prompts, for a model with a chat template or for one without."""
    return CHATS if chat else PLAINS


def kind_of(task: Task) -> str:
    """Return the kind of problem of a task, from its verifier, which fixes the form of the final answer.

    The gold solution is not used.
    """
    return _KIND_OF_VERIFIER.get(task.verifier, OTHER)


def common_kind(tasks: Iterable[Task]) -> str:
    """Return the kind of all tasks; OTHER, whose prompts suit any kind, where they differ; MATH without tasks."""
    kinds = {kind_of(task) for task in tasks}
    return OTHER if len(kinds) > 1 else next(iter(kinds), MATH)


def with_thinking(prompts: PromptSet, thinking: bool | None) -> PromptSet:
    """Return the prompts with the thinking switch set for all kinds; None leaves it as it is."""
    if thinking is None:
        return prompts
    return {kind: dataclasses.replace(one, thinking=thinking) for kind, one in prompts.items()}


def to_json(prompts: PromptSet) -> dict[str, dict[str, Any]]:
    """Return prompts as plain JSON values."""
    return {kind: _one_to_json(one) for kind, one in prompts.items()}


def _one_to_json(one: Prompts) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(one).items()}


def from_json(data: Mapping[str, Mapping[str, Any]]) -> PromptSet:
    """Read what `to_json` returned. Raises TypeError on unknown fields, KeyError for a missing kind."""
    return {kind: one_from_json(data[kind]) for kind in KINDS}


def one_from_json(data: Mapping[str, Any]) -> Prompts:
    """Read the prompts of one kind. Raises TypeError on unknown fields."""
    values = dict[str, Any]({**data, **{name: tuple(data.get(name, ())) for name in ("stop", "synthesis_stop")}})
    return Prompts(**values)
