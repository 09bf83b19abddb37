"""Multiple choice."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.errors import DataError
from mass.types import Task
from mass.verify import check


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. 12 m/s", "B"),
        ("b", "B"),
        ("Answer: B", "B"),
        ("Answer: b", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** **B**", "B"),
        ("The answer is (B).", "B"),
        ("the correct answer is: B) 12", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"$\boxed{\mathrm{B}}$", "B"),
        ("#### B", "B"),
        ("The answer is option B because 2 + 2 = 4", "B"),
        ("The answer is A because of friction.", "A"),
        ("The answer is A gene.", None),
        ("Answer: c is the speed of light", None),
        ("The answer is I think unclear", None),
        ("A. no\nB. yes\nSo it is (B)", "B"),
        ("It is 4, so (B) holds and not (C)? No: (B)", "B"),
        ("Answer: Because", None),
        ("nothing here", None),
        ("", None),
        ("Answer: B\nAnswer: C", "C"),
        ("The answer is J", "J"),
        ("The answer is K", None),
        ("I'd say (D)", "D"),
        ("42", None),
    ],
)
def test_letter(text: str, letter: str | None) -> None:
    verdict = check(Task("p", answer=letter or "E", verifier="choice"), text)
    assert verdict.extracted == letter
    assert verdict.correct is (letter is not None)
    wrong = "A" if letter != "A" else "C"
    assert check(Task("p", answer=wrong, verifier="choice"), text).correct is False


PROBLEM = "Which one?\nA. the cell wall\nB. 5 meters\nC. The enzyme\nD. none"
CHOSEN = [
    *("Option C is correct", "Option C", "option c is correct", "C is the right answer.", "(C) is the best answer"),
    *(
        "Therefore, C.",
        "Hence C.",
        "Let us see. So (C) it is.",
        "Thus **C**.",
        "A and B are wrong, so C",
        "C because it is hot",
    ),
    *(
        "The correct option is (C).",
        "So the correct choice is **C**.",
        "My choice: C",
        "The letter is C",
        "It must be C.",
    ),
    *(
        "I would go with C",
        "I'd pick C, a safe one.",
        "We choose (C).",
        "I would select C because A is wrong",
        "It's C.",
    ),
    *(
        "Answer: <C>",
        "<answer>C</answer>",
        "<answer>\nC\n</answer>",
        "Answer: [C]",
        "Answer=C",
        'Answer: "C"',
        "The answer: `C`",
    ),
    *(
        "Final answer - C",
        "## Answer\n\n**C. The enzyme**",
        "Answer\nC",
        '{"answer": "C"}',
        "C is the answer",
        "#### C",
    ),
    *(
        "The answer would be C.",
        "The answer seems to be C",
        "The answer is therefore (C) The enzyme",
        "Answer: c",
        "(c)",
    ),
    *(
        "The answer is not A but C.",
        "The answer isn't A; it's C.",
        "Neither A nor B is correct, leaving C.",
        "answer: c)",
    ),
    *(
        "A is wrong. B is wrong. D too. This leaves C.",
        "A) no\nB) no\nC) yes\nD) no\n\nSo C.",
        "It is not (A); it is (C).",
    ),
    *(
        "答案：C",
        "答案是C。",
        "正确答案为（Ｃ）",
        "故选C。",
        "选C",
        "答えはCです。",
        "정답: C",
        "Ответ: C",
        "Réponse : C",
    ),
    *(
        "La réponse est C",
        "La respuesta correcta es C.",
        "Antwort:\n\nAntwort: C",
        "Die richtige Antwort ist C.",
        "Resposta: C",
    ),
    *(
        "The enzyme",
        "Answer: the enzyme.",
        r"\boxed{\text{The enzyme}}",
        "The answer is enzyme",
        "The answer is: the enzyme (C)",
    ),
    *(
        r"\boxed{\text{C}}",
        r"\boxed{\text{(C)}}",
        r"$\boxed C$",
        r"\fbox{C}",
        "C - The enzyme",
        "C: The enzyme",
        "C)",
        "[C]",
    ),
    *("<think>It could be \\boxed{A}.</think>\n\nC", "Out of the options, C is the most appropriate.", "ANSWER: $C$"),
    *(
        "The answer is C. Note that A is a distractor.",
        "I say A is true? No. Hence, (C)",
        "So the best option here is C.",
    ),
]


@pytest.mark.parametrize("text", CHOSEN)
def test_what_chooses_a_letter(text: str) -> None:
    verdict = check(Task(PROBLEM, answer="C", verifier="choice"), text)
    assert (verdict.correct, verdict.extracted) == (True, "C")


@pytest.mark.parametrize(
    "text",
    [
        *("A triangle has three sides", "I think", "A car moves", "So A vector is needed", "I would say A triangle"),
        *(
            "Answer: A gene",
            "The answer is a vector.",
            "The answer is I think unclear",
            "Answer: E = mc^2",
            "Answer: C + D",
        ),
        *("Answer: A, B, C, D", "either A or B", "The answer is either A or C.", "A or C", "Both A and C are correct."),
        *(
            "Answer: A/C",
            "Answer: C and D",
            r"\boxed{A, C}",
            r"\boxed{A} or \boxed{C}",
            "The options are A, B, C and D.",
        ),
        *(
            "It is not C.",
            "C is wrong.",
            "C isn't right",
            "If C is correct, then we fail",
            "Neither A nor C is correct",
        ),
        *("A. cell\nB. meters\nC. enzyme\nD. none", "(C) is incorrect.", "Vitamin C", "nothing", "I don't know"),
    ],
)
def test_what_chooses_none(text: str) -> None:
    assert check(Task(PROBLEM, answer="C", verifier="choice"), text).extracted is None


def test_letters_are_those_of_the_options() -> None:
    problem = "Which?\n" + "\n".join(f"({letter}) shape {letter}" for letter in "ABCDEFGHIJKL")
    assert check(Task(problem, answer="(K)", verifier="choice"), "So the answer is (K).").correct is True
    assert check(Task(problem, answer="(K)", verifier="choice"), "So the answer is (L).").correct is False


def test_words_of_two_options_choose_none() -> None:
    problem = "Which?\nA. red\nB. red\nC. blue"
    assert check(Task(problem, answer="A", verifier="choice"), "Answer: red").extracted is None
    assert check(Task(problem, answer="C", verifier="choice"), "Answer: **Blue**.").extracted == "C"


@pytest.mark.parametrize(
    "unit", ["A ", "(A) ", "A is correct ", "so B. ", "not A ", "I choose ", "A, ", "A.\nB.\n", "option "]
)
def test_time_is_linear_in_the_text(unit: str) -> None:
    begin = time.process_time()
    check(Task(PROBLEM, answer="C", verifier="choice"), unit * (500_000 // len(unit)))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(("gold", "expected"), [("(b)", True), ("12 m/s", None), ("", None), ("K", None)])
def test_gold(gold: str, expected: bool | None) -> None:
    assert check(Task("p", answer=gold, verifier="choice"), "Answer: B").correct is expected


MANY = "Which?\nOptions:\n" + "\n".join(f"({letter}) option {letter}" for letter in "ABCDEFGHIJKLMNOPQR")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(R)", "R"),
        ("Answer: K", "K"),
        (r"\boxed{(Q)}", "Q"),
        ("The answer is M, as seen.", "M"),
        ("(B)", "B"),
        ("(S)", None),
    ],
)
def test_letters_go_as_far_as_the_problem_lists(text: str, letter: str | None) -> None:
    assert check(Task(MANY, answer=letter or "L", verifier="choice"), text).extracted == letter
    assert check(Task(MANY, answer=letter or "L", verifier="choice"), text).correct is (letter is not None)
    assert check(Task(MANY, answer="A", verifier="choice"), text).correct is False
    assert check(Task(MANY, answer="S", verifier="choice"), text).correct is None


@given(st.text())
def test_any_text_has_a_verdict(text: str) -> None:
    verdict = check(Task("p", answer="B", verifier="choice"), text)
    assert verdict.correct is not None
    assert verdict.extracted is None or verdict.extracted in "ABCDEFGHIJ"


def test_an_unknown_verifier_is_the_users_error() -> None:
    with pytest.raises(DataError, match=r"'choise'; did you mean 'choice'\?"):
        check(Task("p", answer="B", verifier="choise"), "B")
