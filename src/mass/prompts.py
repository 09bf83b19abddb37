"""A problem -> the text that asks a model to solve it, or to write practice like it.

A base model continues `PLAIN`; a model whose tokenizer has a chat template is asked with `CHAT` in a user message.
`answer_prefix` is what stands between a prompt and the solution it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    solve: str
    """Holds `{problem}`; the model answers with a worked solution."""
    synthesis: str
    """Holds `{problem}`; the model answers with a similar problem and its solution."""
    answer_prefix: str
    """Written before a solution that follows the prompt directly."""
    example: str
    """Holds `{problem}` and `{solution}`: a practice example as the model writes it after the synthesis prompt."""
    between: str = "\n\n"
    """Between a solved problem and the next one, where several stand in one prompt."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation, besides the end token."""
    chat: bool = False
    """Whether a prompt goes through the tokenizer's chat template as a user message."""

    def render_solve(self, problem: str) -> str:
        return self.solve.replace("{problem}", problem.strip())

    def render_synthesis(self, problem: str) -> str:
        return self.synthesis.replace("{problem}", problem.strip())

    def render_example(self, problem: str, solution: str) -> str:
        before, after = self.example.split("{problem}")
        return before + problem.strip() + after.replace("{solution}", solution.strip())


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
        "Write one new problem that trains the same skills but is not a copy of it, then solve your new problem "
        "step by step and put its final answer within \\boxed{}. Answer in exactly this form:\n"
        "Problem: <the new problem>\nSolution: <its solution>"
    ),
    answer_prefix="",
    example="Problem: {problem}\nSolution: {solution}",
    chat=True,
)
