from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mass.adaptation.synthesis import judge, synthesise
from mass.adaptation.synthesis.completion import with_solutions
from mass.adaptation.synthesis.reading import read
from mass.adaptation.synthesis.reasons import rejected_shares, sentence
from mass.config import SamplingConfig, SynthesisConfig
from mass.lm import LM
from mass.lm.prompts import CHATS, PLAIN
from mass.seeds import derive
from mass.types import Sample
from small_lms import make_lm, random_adapter

GOLDEN: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "golden" / "written.yaml").read_text())
GOOD = ("What is 2 + 3?", "2+3=5. Answer: 5")


def parts(text: str, form: str = PLAIN.example) -> tuple[str, str]:
    found = read(text, form)
    assert bool(found.reason) != bool(found.problem and found.solution)
    return found.problem, found.solution


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_what_models_write_is_read(case: dict[str, Any]) -> None:
    found = read(case["text"])
    wanted = (case.get("problem", ""), case.get("solution", ""), case.get("reason", ""), case.get("also", 0))
    assert (found.problem, found.solution, found.reason, found.also) == wanted


def test_the_ways_are_many_and_the_names_their_own() -> None:
    assert len({case["name"] for case in GOLDEN}) == len(GOLDEN) >= 60
    assert sum("reason" in case for case in GOLDEN) >= 12


@pytest.mark.parametrize("kind", CHATS)
def test_what_a_prompt_asks_for_is_read(kind: str) -> None:
    for prompts in (PLAIN, CHATS[kind]):
        assert parts(prompts.opens + prompts.render_written(*GOOD), prompts.example) == GOOD


def test_labels_of_the_users_own_form_are_read() -> None:
    form = "**Aufgabe:** {problem}\n**Lösung:** {solution}"
    assert parts("Aufgabe: 2 + 3?\n\nLÖSUNG: 5", form) == ("2 + 3?", "5")
    assert parts("Problem: 2 + 3?\nSolution: 5", form) == ("2 + 3?", "5")
    assert read("Aufgabe: 2 + 3?\nLösung: 5").reason


def test_a_part_may_have_lines_and_the_words_themselves() -> None:
    text = "Problem: Line one.\nThe problem: is it 3?\nSolution: Step 1.\nThe solution: is 3.\nSolution: twice"
    assert parts(text) == (
        "Line one.\nThe problem: is it 3?",
        "Step 1.\nThe solution: is 3.\nSolution: twice",
    )


WORDS = 'Problem Solution Answer : ** # similar x 1 2. ſolution Q: A: <think> </think> ``` { " } [ <problem> </problem>'
OTHERS = "---|Sure! Here is|Let me know|```python\n|\n|\n\n|\r|\u2028|\0| |<solution>|</solution>|\\"
PIECES = st.sampled_from([*WORDS.split(" "), *OTHERS.split("|"), '{"problem": ', "\ud800"])


@settings(max_examples=60)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)))
def test_reading_never_raises_and_says_why(text: str) -> None:
    found = read(text)
    assert bool(found.reason) != bool(found.problem and found.solution)
    assert "\n" not in found.reason
    assert (found.problem, found.solution) == (found.problem.strip(), found.solution.strip())


@settings(max_examples=60)
@given(st.lists(PIECES.filter(lambda piece: "{" not in piece), max_size=40).map("".join))
def test_reading_invents_nothing(text: str) -> None:
    found = read(text)
    words = [word for part in (found.problem, found.solution) for word in part.replace("**", " ").split()]
    assert all(word in text for word in words)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["problem", "solution", "answer", "steps", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(JSON, st.integers(0, 200))
def test_any_json_whole_or_cut_off(value: Any, length: int) -> None:
    for text in (json.dumps({"problem": value, "solution": [value]}), json.dumps({"problem": "2 + 3?", "a": value})):
        for piece in (text, text[:length], f"```json\n{text}\n```"):
            found = read(piece)
            assert bool(found.reason) != bool(found.problem and found.solution)


REPEATED = [
    "<think>",
    "```a\n",
    " ",
    "\n",
    "{",
    '{"problem": ',
    "\\",
    "**Problem: ",
    "Problem:\n",
    "Solution:\n",
    "1. ",
    "> ",
]
REPEATED += ["---\n", "<problem>", "A:\n", "Q:\n", "x **Solution:**", "new ", "Let me know\n\n", "Sure!\n"]


@pytest.mark.parametrize("piece", REPEATED)
def test_long_repetitions_take_no_time(piece: str) -> None:
    text = piece * (30_000 // len(piece))
    start = time.process_time()
    for whole in (text, f"Problem: x\nSolution: y\n{text}", f'"problem"{text}'):
        read(whole)
    assert time.process_time() - start < 3


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
    assert reasons(lm, texts) == [
        "",
        "repeat",
        "repeat",
        "",
        "copy",
        "unparsed: no solution is marked",
        "unfinished",
        "",
    ]


def test_a_rejected_one_does_not_make_the_next_a_repeat(lm: LM) -> None:
    cut = Sample((1,), written("What is 7?"), finished=False)
    assert reasons(lm, [cut, written("What is 7?")]) == ["unfinished", ""]


def test_the_first_of_several_problems_is_taken_and_their_number_said(lm: LM) -> None:
    """It is whole even where the last one was cut off."""
    text = "Problem 1: What is 2?\nSolution: 2\nProblem 2: What is 3?\nSolution: it"
    for finished in (True, False):
        (example,) = judge(lm, "What is 4 + 5?", [Sample((1,), text, finished)], SynthesisConfig())
        assert (example.problem, example.solution, example.rejected) == ("What is 2?", "2", "")
        assert example.note == "the first of 2 problems"


def test_labels_come_from_the_prompts_in_use(lm: LM) -> None:
    own = dataclasses.replace(PLAIN, example="Aufgabe: {problem}\nAntwort: {solution}")
    asked = lm.with_prompts(dict.fromkeys(CHATS, own))
    (example,) = judge(asked, "x", [Sample((1,), "Aufgabe: 2?\nAntwort: 2", True)], SynthesisConfig())
    assert (example.problem, example.solution) == ("2?", "2")


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
    config = SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=8))
    theta = random_adapter(lm)
    both = synthesise(lm, ["What is 2?", "What is 3 + 4?"], config, [7, 8], theta)
    (alone,) = synthesise(lm, ["What is 3 + 4?"], config, [8], theta)
    assert both[1] == alone
    assert len({e.tokens for e in alone}) == 3
    assert synthesise(lm, ["What is 3 + 4?"], config, [9], theta) != [alone]
    assert synthesise(lm, ["What is 3 + 4?"], config, [8], None) != [alone]


# --- the form, and what is lost


def reasons_of(lm: LM, *texts: str, target: str = "What is 1 + 1?") -> list[str]:
    samples = [Sample((1,), text, not text.endswith("…")) for text in texts]
    return [e.rejected for e in judge(lm, target, samples, SynthesisConfig(examples=len(texts)))]


def test_a_text_that_goes_on_after_the_opening_is_read() -> None:
    lm = make_lm(chat=True)
    (example,) = judge(lm, "x", [Sample((1,), " What is 2 + 3?\n\n**Solution:** 5", True)], SynthesisConfig(examples=1))
    assert (example.problem, example.solution, example.rejected) == ("What is 2 + 3?", "5", "")
    assert example.text == " What is 2 + 3?\n\n**Solution:** 5", "the record holds what was sampled"


def test_the_example_in_the_prompt_is_no_practice() -> None:
    lm = make_lm(chat=True)
    shown = f" {lm.prompts.shown_problem.upper()}\nSolution: 4"
    assert reasons_of(lm, shown, " What is 2 + 3?\nSolution: 5") == ["copy of the example in the prompt", ""]


def test_reasons_are_counted_by_their_kind() -> None:
    lm = make_lm(chat=True)
    texts = (" 1 + 2?\nSolution: 3", " 1 + 2?", " 5 + 2? I …", " what is 1 + 1?\nSolution: 2", " 1 + 2?\nSolution: 3")
    samples = [Sample((1,), text, not text.endswith("…")) for text in texts]
    group = judge(lm, "What is 1 + 1?", samples, SynthesisConfig(examples=5))
    assert rejected_shares(group) == {"unparsed": 0.2, "unfinished": 0.2, "copy": 0.2, "repeat": 0.2}
    assert sentence(group) == "20% of 5 practice examples usable (20% unparsed, 20% unfinished, 20% copy, 20% repeat)"
    assert sentence(group[:1]) == "100% of 1 practice examples usable"
    assert sentence([]) == ""


def test_practice_ends_where_a_second_problem_begins_and_answers_do_not() -> None:
    lm = make_lm(chat=True)
    text = " 1 + 2?\nSolution: 3\nProblem: 2 + 2?"
    assert lm.writing().cut(text) == " 1 + 2?\nSolution: 3"
    assert lm.cut(text) is None
    assert lm.writing() is lm.writing()
    assert lm.writing().synthesis_prompt("x") == lm.synthesis_prompt("x")
    plain = make_lm()
    assert plain.writing() is plain


def test_a_text_that_ends_after_its_problem_is_carried_on() -> None:
    lm = make_lm(chat=True)
    end = lm.tokenizer.eos_token_id
    problem = lm.tokenizer(" What is 2 + 3?", add_special_tokens=False)["input_ids"]
    prompts = [lm.solve_prompt("1 + 1?")] * 3
    ended = Sample((*problem, end), " What is 2 + 3?", True)
    cut_off, whole = dataclasses.replace(ended, finished=False), Sample((5, end), " 1?\nSolution: 2", True)
    how = SamplingConfig(max_new_tokens=6, temperature=1.0)
    first, *others = with_solutions(lm, prompts, [ended, cut_off, whole], how, [1, 2, 3], None)
    label, label_ids = lm.solution_label()
    assert label == "\nSolution:"
    assert others == [cut_off, whole]
    assert first.tokens[: len(problem) + len(label_ids)] == (*problem, *label_ids)
    assert first.text.startswith(" What is 2 + 3?\nSolution:")
    (rest,) = lm.sample([[*prompts[0], *problem, *label_ids]], how, [derive(1, "solution")])
    assert first.tokens[len(problem) + len(label_ids) :] == rest.tokens


def test_a_base_model_is_not_carried_on() -> None:
    lm = make_lm()
    end = lm.tokenizer.eos_token_id
    ended = Sample((5, end), " What is 2 + 3?", True)
    assert with_solutions(lm, [[3, 4]], [ended], SamplingConfig(4), [1], None) == [ended]
