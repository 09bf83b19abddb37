"""Turn a row with options into a multiple-choice problem and the letter of the right option.

| fields | as in |
| --- | --- |
| `choices` or `options`, a list of texts; `answer`, `answer_index` or `correct` | MMLU, MMLU-Pro, AQuA-RAT |
| `choices`, {"text": [...], "label": [...]} or a list of {"text", "label"}; `answerKey` | ARC, CommonsenseQA |
| `options`, {"A": ..., "B": ...}; `answer_idx` | MedQA |
| `A`, `B`, `C`, ...; `answer` | C-Eval, CMMLU |
| `Correct Answer`, `Incorrect Answer 1`, ...; `correct_answer`, `distractor1`, ... | GPQA; SciQ |

Options in any other layout are an error: a problem without its options would be a different problem.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mass.errors import DataError
from mass.tasks.values import Row, is_list, is_object, kind, text_of

LETTERS = string.ascii_uppercase
GOLDS = ("answerKey", "answer_index", "answer_idx", "correct")
"""Fields besides the answer that say which option is right. All those in a row must agree."""

_ALSO = {
    "subject": ("category", "High-level domain"),
    "id": ("question_id", "Record ID"),
    "solution": ("rationale", "cot_content", "Explanation"),
}
"""Our name -> names that these layouts use."""
_WRONG = re.compile(r"(?:incorrect_answer|wrong_answer|distractor)s?_?[0-9]*")
_OPTIONS = re.compile(
    r"(?:answer_|multiple_)?(?:choices|options|endings|alternatives)(?:_list|_text)?|(?:choice|option|ending)_?[0-9a-f]"
    r"|mc[0-9]?_targets|op[a-e]|sol[0-9]|answer_?[a-e]"
)
"""Names that other data sets give to options: HellaSwag, MedMCQA, PIQA, COPA, WinoGrande, SocialIQA, TruthfulQA."""
_MARKED = re.compile(r"\(?([A-Z])[).:]\s*(.*)", re.S)


@dataclass(frozen=True)
class Options:
    """The options that a row lists."""

    texts: Sequence[str]
    labels: Sequence[str] = ()
    """The row's own labels for them; empty where it has none."""
    right: int | None = None
    """The index of the right option, where the layout itself says so."""


def multiple_choice(row: Row, values: Row, mapped: bool = False) -> Row:
    """Return our fields for a row with options, given those found so far; empty for a row without options.

    Args:
        mapped: The user mapped a field to the answer, so no other field is consulted.

    Raises:
        DataError: The options cannot be read, or the right one cannot be told.
    """
    options = _options(row, values)
    if options is None:
        return {}
    letters = LETTERS[: len(options.texts)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options.texts, strict=True)]
    found: Row = {ours: row[other] for ours, names in _ALSO.items() for other in names if _given(row, other)}
    found |= {name: value for name, value in values.items() if _given(values, name)}
    place = _right(row, values, options, mapped)
    answer = "" if place is None else letters[place]
    solution = text_of(found, "solution").removeprefix("A: ").strip()
    # A worked solution has to end with the letter: it is what the model learns to answer.
    if answer and not re.search(rf"\b{answer}\b\W*$", solution):
        solution = f"{solution}\nAnswer: {answer}".strip()
    problem = "\n".join([text_of(found, "problem"), *lines])
    return found | {"problem": problem, "answer": answer, "solution": solution, "verifier": "choice"}


def _options(row: Row, values: Row) -> Options | None:
    """Return the row's options, or None. Raises DataError for options that cannot be read."""
    for name in ("choices", "options"):
        if _given(row, name):
            return _listed(name, row[name])
    labels = list(itertools.takewhile(lambda letter: _given(row, letter), LETTERS))
    if len(labels) > 1:
        return Options([text_of(row, label) for label in labels], labels)
    named = {name: re.sub(r"[\s_]+", "_", name.strip()).lower() for name in row if _given(row, name)}
    right = next((row[name] for name in named if named[name] == "correct_answer"), None)
    wrong = [name for name in named if _WRONG.fullmatch(named[name])]
    options = [option for name in wrong for option in _texts(name, row[name])]
    if len(options) > (right is None):  # one wrong answer next to an answer is a rejected sample, not an option
        return _apart(
            text_of({wrong[0]: values.get("answer") if right is None else right}, wrong[0]), options, wrong[0]
        )
    for name in named:
        if _OPTIONS.fullmatch(named[name]):
            raise DataError(
                f"the field {name!r} holds options in a layout that is not known; expected a list of texts in "
                "'choices' and the letter, index or text of the right one in 'answer'; store them so, or leave it out"
            )
    return None


def _given(row: Row, name: str) -> bool:
    value = row.get(name)
    return bool(value) if isinstance(value, str | list | dict) else value is not None


def _texts(name: str, value: object) -> list[str]:
    return [text_of({name: option}, name).strip() for option in (value if is_list(value) else [value])]


def _listed(name: str, value: object) -> Options:
    """Return the options of a field that lists them all, with or without labels."""
    labels: list[str] = []
    if is_list(value) and all(is_object(option) and {"text", "label"} <= option.keys() for option in value):
        value = {key: [option[key] for option in value if is_object(option)] for key in ("text", "label")}
    if is_object(value):
        if is_list(value.get("text")) and is_list(value.get("label")):
            labels, value = _texts(name, value["label"]), value["text"]
        elif all(len(key) == 1 for key in value):
            given = {key: option for key, option in value.items() if option is not None}
            labels, value = list(given), list(given.values())
    options = [text_of({name: option}, name) for option in value] if is_list(value) else []
    if not 2 <= len(options) <= len(LETTERS) or (labels and len(labels) != len(options)):
        raise DataError(f"the field {name!r} is {kind(value)}; expected a list of 2 to {len(LETTERS)} texts")
    marked = [_MARKED.fullmatch(option) for option in options]
    if all(
        match and match[1] == letter for match, letter in zip(marked, LETTERS, strict=False)
    ):  # AQuA-RAT writes "A)21"
        options = [match[2] for match in marked if match]
    return Options(options, labels)


def _apart(right: str, wrong: Sequence[str], name: str) -> Options:
    """Return a right option and wrong ones in an order that depends on their texts only, so that it is the same in
    every run."""
    if not right.strip():
        raise DataError(f"the field {name!r} is a wrong answer, and there is no right one; add 'correct_answer'")
    texts = sorted([right.strip(), *wrong], key=lambda option: hashlib.sha256(f"{right}\0{option}".encode()).digest())
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"the row has {len(texts)} options; expected 2 to {len(LETTERS)}")
    return Options(texts, right=texts.index(right.strip()))


def _right(row: Row, values: Row, options: Options, mapped: bool) -> int | None:
    """Return the index of the right option; None where the row does not say. Raises DataError where its fields
    differ."""
    if options.right is not None:
        return options.right
    found = {name: place for name, place in _places(row, values, options, mapped)}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name!r} {LETTERS[place]}" for name, place in found.items())
        raise DataError(f"the row names several right options: {said}; expected one; correct the row")
    return next(iter(found.values()), None)


def _places(row: Row, values: Row, options: Options, mapped: bool) -> Iterator[tuple[str, int]]:
    """Yield (field, index of the right option) for each field that names one."""
    golds = {} if mapped else {name: row[name] for name in GOLDS if _given(row, name)}
    if _given(values, "answer"):
        golds["answer"] = values["answer"]
    for name, value in golds.items():
        gold = text_of(golds, name).strip()
        if gold:
            yield name, _place(gold, not isinstance(value, str), options)


def _place(gold: str, is_number: bool, options: Options) -> int:
    """Return the index of an option given by its label, its letter, its index from 0, or its text.

    `is_number` means that the row holds a number, which is more likely an index than an option that looks like one.
    """
    count = len(options.texts)
    key = gold.strip("().: ").upper()
    labels = [label.strip("().: ").upper() for label in options.labels]
    if key in labels:
        return labels.index(key)
    if len(key) == 1 and key in LETTERS[:count]:
        return LETTERS.index(key)
    same = [i for i, option in enumerate(options.texts) if " ".join(option.split()) == " ".join(gold.split())]
    index = int(gold[:9]) if gold.isdecimal() and not any(label.isdecimal() for label in labels) else count
    if index < count and (is_number or same in ([], [index])):
        return index
    if len(same) == 1 and index >= count:
        return same[0]
    raise DataError(
        f"the answer is {gold[:40]!r}; expected an index from 0 to {count - 1}, a letter from A to "
        f"{LETTERS[count - 1]}, or the text of one option"
    )
