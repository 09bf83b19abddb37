"""The harness's prompts, letter by letter."""

from __future__ import annotations

import pytest

from mass.errors import DataError
from mass.evaluation.lm_eval import framing as harness
from mass.types import Task


def test_gsm8k() -> None:
    shots = [Task("How many?", "2 + 1 = 3\n#### 3", "3"), Task("And {problem}?", "#### 4", "4")]
    prompts = harness.prompts("gsm8k", shots)
    assert prompts.render_solve("Now?") == (
        "Question: How many?\nAnswer: 2 + 1 = 3\n#### 3\n\nQuestion: And { problem}?\nAnswer: #### 4\n\n"
        "Question: Now?\nAnswer:"
    )
    assert (prompts.answer_prefix, prompts.stop[0], prompts.chat) == (" ", "Question:", False)


def test_math() -> None:
    prompts = harness.prompts("math500", [Task("Find x.", r"It is $\boxed{2}.$", "2")])
    assert prompts.render_solve("Find y.") == (
        "Problem:\nFind x.\n\nSolution: It is $\\boxed{2}.$\nFinal Answer: The final answer is $2$. "
        "I hope it is correct.\n\nProblem:\nFind y.\n\nSolution:"
    )


def test_mmlu() -> None:
    prompts = harness.prompts("mmlu", [Task("Which?\nA. x\nB. y", "Answer: B", "B", "college_biology")])
    assert prompts.render_solve("What?\nA. u\nB. v") == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "Which?\nA. x\nB. y\nAnswer: B\n\nWhat?\nA. u\nB. v\nAnswer:"
    )


def test_code() -> None:
    assert harness.prompts("humaneval").render_solve("def f():\n    '''x'''\n") == "def f():\n    '''x'''\n"
    shot = Task("Write f. Your code should pass these tests:\n\nassert f(1) == 1", "def f(x): return x", "…")
    assert harness.prompts("mbpp", [shot]).render_solve("Write g.") == (
        "You are an expert Python programmer, and here is your task: Write f. Your code should pass these tests:\n\n"
        "assert f(1) == 1\n[BEGIN]\ndef f(x): return x\n[DONE]\n\n"
        "You are an expert Python programmer, and here is your task: Write g.\n[BEGIN]\n"
    )


def test_an_unknown_data_set() -> None:
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        harness.prompts("gsm")
