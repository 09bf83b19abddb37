from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.config import SamplingConfig, SynthesisConfig
from mass.lm import LM
from mass.synthesis import judge, parse, synthesise
from mass.types import Sample
from small_lms import make_lm, random_adapter

GOOD = ("What is 2 + 3?", "2+3=5. Answer: 5")
TEXTS = {
    "plain continuation": " What is 2 + 3?\nSolution: 2+3=5. Answer: 5",
    "both labels": "Problem: What is 2 + 3?\nSolution: 2+3=5. Answer: 5",
    "bold labels": "**Problem:** What is 2 + 3?\n\n**Solution:** 2+3=5. Answer: 5\n",
    "bold words": "**Problem**: What is 2 + 3?\n**Solution**: 2+3=5. Answer: 5",
    "headings": "## Problem: What is 2 + 3?\n\n### Solution: 2+3=5. Answer: 5",
    "a preface": "Sure! Here is a new problem.\n\nProblem: What is 2 + 3?\nSolution: 2+3=5. Answer: 5",
    "an introduction and labels of other words": "Of course.\nNew problem: What is 2 + 3?\nSOLUTION: 2+3=5. Answer: 5",
    "the target repeated": "Problem: What is 9?\nSimilar problem: What is 2 + 3?\nSolution: 2+3=5. Answer: 5",
    "indented": "  Problem:  What is 2 + 3?  \n  Solution:  2+3=5. Answer: 5  ",
    "windows lines": "Problem: What is 2 + 3?\r\nSolution: 2+3=5. Answer: 5\r\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_models_write_is_parsed(name: str) -> None:
    assert parse(TEXTS[name]) == GOOD


def test_a_part_may_have_lines_and_the_words_themselves() -> None:
    text = "Problem: Line one.\nThe problem: is it 3?\nSolution: Step 1.\nThe solution: is 3.\nSolution: twice"
    assert parse(text) == (
        "Line one.\nThe problem: is it 3?",
        "Step 1.\nThe solution: is 3.\nSolution: twice",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is 2 + 3?",
        "Problem: What is 2 + 3?",
        "Problem: What is 2 + 3?\nSolution:",
        "Problem: What is 2 + 3?\nSolution:   \n",
        "Solution: 5",
        "Problem:\nSolution: 5",
        "\n  \nSolution: 5",
        "What is 2 + 3? Solution: 5",
    ],
)
def test_a_missing_part_is_no_example(text: str) -> None:
    assert parse(text) is None


PIECES = st.sampled_from(
    ["Problem", "Solution", ":", "\n", "**", "#", " ", "similar ", "x", "1", "\r", "\u2028", "ſolution"]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
def test_parse_never_raises_and_invents_nothing(text: str) -> None:
    found = parse(text)
    if found:
        assert all(part and part in text and part == part.strip() for part in found)


# ------------------------------------------------------------------------------- judgement


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm()


def reasons(lm: LM, texts: list[str | Sample], config: SynthesisConfig | None = None) -> list[str]:
    samples = [t if isinstance(t, Sample) else Sample((1, 2), t, True) for t in texts]
    examples = judge(lm, "What is  4 + 5?", samples, config or SynthesisConfig())
    assert [(e.text, e.tokens) for e in examples] == [(s.text, s.tokens) for s in samples]
    assert all(e.valid == (e.rejected == "") for e in examples)
    return [e.rejected for e in examples]


def written(problem: str, solution: str = "Answer: 5") -> str:
    return f" {problem}\nSolution: {solution}"


def test_each_reason(lm: LM) -> None:
    texts = [
        written("What is 2 + 3?"),
        written("What is 2 + 3?"),
        written("what is  2 + 3?", "answer:  5"),
        written("What is 2 + 3?", "2+3=5. Answer: 5"),
        written("what is 4 + 5?"),
        "no label at all",
        Sample((1,), written("What is 7?"), finished=False),
        written("What is 8?"),
    ]
    assert reasons(lm, texts) == ["", "repeat", "repeat", "", "copy", "unparsed", "unfinished", ""]


def test_a_rejected_one_does_not_make_the_next_a_repeat(lm: LM) -> None:
    cut = Sample((1,), written("What is 7?"), finished=False)
    assert reasons(lm, [cut, written("What is 7?")]) == ["unfinished", ""]


def test_copies_can_be_allowed(lm: LM) -> None:
    assert reasons(lm, [written("What is 4 + 5?")], SynthesisConfig(allow_copies=True)) == [""]


def test_too_long_counts_the_solver_prompt_and_the_context(lm: LM) -> None:
    problem, solution = "What is 2 + 3?", "Answer: 5"
    length = sum(map(len, lm.example_row(problem, solution)))
    assert lm.example_tokens(problem, solution) == length
    text = written(problem, solution)
    assert reasons(lm, [text], SynthesisConfig(max_example_tokens=length)) == [""]
    assert reasons(lm, [text], SynthesisConfig(max_example_tokens=length - 1)) == ["too long"]
    beyond = written(problem, "\ufffd" * 100)  # 300 bytes, in a context of 256 tokens
    assert reasons(lm, [beyond]) == ["too long"]
    assert reasons(lm, [written("\ufffd" * 100)]) == ["too long"]


def test_examples_are_a_function_of_problem_seed_and_adapter(lm: LM) -> None:
    config = SynthesisConfig(examples=3, sampling=SamplingConfig(max_tokens=8))
    theta = random_adapter(lm)
    both = synthesise(lm, ["What is 2?", "What is 3 + 4?"], config, [7, 8], theta)
    (alone,) = synthesise(lm, ["What is 3 + 4?"], config, [8], theta)
    assert both[1] == alone
    assert len({e.tokens for e in alone}) == 3
    assert synthesise(lm, ["What is 3 + 4?"], config, [9], theta) != [alone]
    assert synthesise(lm, ["What is 3 + 4?"], config, [8], None) != [alone]
