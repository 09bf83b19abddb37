from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.errors import ConfigError, DataError
from mass.tasks import content_hash, load, minimath
from mass.tasks.minimath import (
    LEVELS,
    SPLITS,
    SUBJECTS,
    Problem,
    draw,
    problem_split,
    recognise,
    similar,
    task_at,
)
from mass.types import Task
from mass.verify import check

WORDED = minimath.SOURCES["minimath"]
"""The kinds whose statement tells what to do. Those of minimath-terms have tests of their own."""
CELLS = [(kind, level) for kind in WORDED for level in LEVELS]
IDS = [f"{kind.name}-{level}" for kind, level in CELLS]
PER_CELL = 30
SHIPPED_TEST_SET = "f38dbfdc76f5ea1a02dc720663a6597d7c43f6ec98416f5705da1d64823ed5ee"
"""The 1,000 problems that the shipped numbers were measured on (research/models/tiny/profile.json)."""


def problems(kind: minimath.Kind, level: int, count: int = PER_CELL) -> list[Problem]:
    rng = random.Random(f"{kind.name}{level}")
    return [Problem(kind, level, kind.draw(rng, level)) for _ in range(count)]


# ------------------------------------------------------------------------------- answers from the statement alone


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", re.sub(r"([+-]) (\d)", r"\1\2", text))]


def slope(term: str) -> int:
    """`3x`, `x`, `- x`, `+ 4i`"""
    found = term.replace(" ", "")[:-1]
    return int(found) if found.strip("+-") else int(f"{found}1")


def largest_common_divisor(a: int, b: int) -> int:
    return max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0)


def combinations(n: int, k: int) -> int:
    return sum(1 for mask in range(2**n) if mask.bit_count() == k)


def iterated(text: str) -> int:
    a, b = re.search(r"= (-?\d+)x ([+-] \d+)", text).groups()
    x = int(re.search(r"f\((-?\d+)\)", text)[1])
    for _ in range(text.split("Find ")[1].count("f(")):
        x = int(a) * x + int(b.replace(" ", ""))
    return x


def linear(text: str) -> Fraction:
    """p x + q = r x + s, with r perhaps not there."""
    left, right = re.search(r"Solve (.*) = (.*)\. Find x", text).groups()
    p, q = re.match(r"(-?\d*x) (.*)", left).groups()
    r, s = re.match(r"(?:(-?\d*x) )?(.*)", right).groups()
    q, s = int(q.replace(" ", "")), int(s.replace(" ", ""))
    return Fraction(s - q, slope(p) - (slope(r) if r else 0))


def product_real(text: str) -> int:
    pairs = re.findall(r"\((-?\d+) ([+-] \d*i)\)", text)
    first, second = (complex(int(re_), slope(im)) for re_, im in pairs)
    return round((first * second).real)


def root(text: str) -> int:
    b, c = re.search(r"x\^2 ([+-] \d*x) ([+-] \d+)", text).groups()
    b, c = slope(b), int(c.replace(" ", ""))
    return max(x for x in range(-200, 200) if x * x + b * x + c == 0)


def matrix(text: str) -> int:
    a, b, c, d = numbers(text)
    return a * d - b * c


def dot(text: str) -> int:
    a, b, c, d = numbers(text)
    return a * c + b * d


def sequence(text: str) -> int:
    n, first, second, third = numbers(text)
    assert third - second == second - first
    return first + (n - 1) * (second - first)


def sum_difference(text: str) -> Fraction:
    s, d = re.search(r"x \+ y = (-?\d+) and x - y = (-?\d+)", text).groups()
    return Fraction(int(s) + int(d), 2) * Fraction(int(s) - int(d), 2)


def meal_count(text: str) -> int:
    a, b, c, *gone = numbers(text)
    return a * b * c - sum(gone)


def nuts(text: str) -> int:
    a, b, c, *more = numbers(text)
    return a * b - c + sum(more)


def area(text: str) -> int:
    a, b, *hole = numbers(text)
    return a * b - (hole[0] * hole[1] if hole else 0)


def box(text: str) -> int:
    a, b, *c = numbers(text)
    return a * b * c[0] if c else 2 * (a + b)


def choose(text: str) -> int:
    k, a, b = numbers(text)
    return combinations(a + b, k)


def red(text: str) -> Fraction:
    return Fraction(numbers(text)[0], sum(numbers(text)))


def part(text: str) -> Fraction:
    p, q, n = numbers(text)
    return Fraction(p, q) * n


SOLVERS = {
    "order_of_operations": lambda text: eval(text.removeprefix("Compute ").removesuffix(".")),
    "fraction_of": part,
    "bags": nuts,
    "linear_equation": linear,
    "iterate_function": iterated,
    "two_sided_equation": linear,
    "remainder": lambda text: numbers(text)[0] % numbers(text)[1],
    "greatest_common_divisor": lambda text: largest_common_divisor(*numbers(text)),
    "units_digit": lambda text: int(str(numbers(text)[0] ** numbers(text)[1])[-1]),
    "choose": choose,
    "red_ball": red,
    "menu": meal_count,
    "rectangle_area": area,
    "triangle_angle": lambda text: 180 - sum(numbers(text)),
    "perimeter_or_volume": box,
    "larger_root": root,
    "sum_and_difference": sum_difference,
    "sequence_term": sequence,
    "dot_product": dot,
    "determinant": matrix,
    "real_part": product_real,
}


def test_every_kind_is_checked() -> None:
    assert SOLVERS.keys() == {kind.name for kind in WORDED}
    assert len(WORDED) == 21
    assert set(SUBJECTS) == {
        "Prealgebra",
        "Algebra",
        "Number Theory",
        "Counting & Probability",
        "Geometry",
        "Intermediate Algebra",
        "Precalculus",
    }


@pytest.mark.parametrize(("kind", "level"), CELLS, ids=IDS)
def test_answers_follow_from_the_statement(kind: minimath.Kind, level: int) -> None:
    for problem in problems(kind, level):
        assert Fraction(problem.answer) == SOLVERS[kind.name](problem.text), problem.text


# ------------------------------------------------------------------------------- worked steps


def steps_of(solution: str) -> tuple[list[str], str]:
    *steps, last = solution.split(". ")
    assert last.startswith("Answer: ")
    return steps, last.removeprefix("Answer: ")


def wrong_steps(solution: str) -> list[str]:
    """The written equalities that do not hold. After a slip a division may not come out even: it is rounded down."""
    wrong: list[str] = []
    for step in steps_of(solution)[0]:
        if "=" in step:
            left, right = step.split("=")
            assert re.fullmatch(r"[-+*/()\d]+", left), step
            if eval(left.replace("/", "//")) != int(right):
                wrong.append(step)
    return wrong


@pytest.mark.parametrize(("kind", "level"), CELLS, ids=IDS)
def test_worked_solutions(kind: minimath.Kind, level: int) -> None:
    for problem in problems(kind, level):
        steps, answer = steps_of(problem.solution())
        assert answer == problem.answer
        assert wrong_steps(problem.solution()) == []
        assert all(eval(s.split("=")[0]) == int(s.split("=")[1]) for s in steps if "=" in s), "a division with a rest"
        assert steps or kind.name in ("greatest_common_divisor", "units_digit")
        task = problem.task("an id")
        assert (task.subject, task.level, task.verifier, task.id) == (kind.subject, level, "exact", "an id")
        assert check(task, task.solution).correct is True
        assert check(task, problem.solution("bare")).correct is True
        assert problem.solution("bare") == f"Answer: {problem.answer}"


@pytest.mark.parametrize(("kind", "level"), CELLS, ids=IDS)
def test_slips_have_one_wrong_step_and_a_wrong_answer(kind: minimath.Kind, level: int) -> None:
    rng = random.Random(0)
    for problem in problems(kind, level):
        slip = problem.solution("slip", rng)
        assert check(problem.task(), slip).correct is False, (problem.text, slip)
        steps, answer = steps_of(slip)
        assert Fraction(answer) != Fraction(problem.answer)
        if any("=" in step for step in steps):
            assert len(wrong_steps(slip)) == 1, (problem.text, slip)


def test_the_first_set_is_what_it_was_when_the_shipped_numbers_were_measured() -> None:
    names = {recognise(task.problem).kind.name for task in load("minimath", size=300)}
    assert names == {kind.name for kind in WORDED}
    assert content_hash(load("minimath", size=1000)) == SHIPPED_TEST_SET
    assert task_at("train", 0, 5).id == "minimath-train-0-5"


def test_slips_are_a_function_of_their_generator() -> None:
    problem = problems(WORDED[0], 5, 1)[0]
    slips = {problem.solution("slip", random.Random(seed)) for seed in range(20)}
    assert len(slips) > 3
    assert problem.solution("slip", random.Random(3)) == problem.solution("slip", random.Random(3))
    assert problem.solution("slip") == problem.solution("slip")


# ------------------------------------------------------------------------------- splits, streams, sets


def test_splits_are_disjoint_whatever_the_seed() -> None:
    texts = {split: {task_at(split, seed, i).problem for seed in (0, 1) for i in range(150)} for split in SPLITS}
    for split, found in texts.items():
        assert {problem_split(text) for text in found} == {split}
        assert all(found.isdisjoint(other) for name, other in texts.items() if name != split)


def test_four_fifths_of_all_problems_are_for_training() -> None:
    rng = random.Random(1)
    splits = Counter(problem_split(f"problem {rng.random()}") for _ in range(5000))
    assert 0.77 < splits["train"] / 5000 < 0.83
    assert 0.08 < splits["test"] / 5000 < 0.12


@given(st.sampled_from(SPLITS), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_task_is_a_function_of_split_seed_and_index(split: str, seed: int, index: int) -> None:
    random.seed(0)
    first = task_at(split, seed, index)
    random.seed(1)
    assert task_at(split, seed, index) == first
    assert first.id == f"minimath-{split}-{seed}-{index}"
    assert isinstance(first, Task)


def test_streams_of_other_seeds_and_indices_differ() -> None:
    stream = [task_at("train", 0, i).problem for i in range(50)]
    assert len(set(stream)) > 40
    assert stream != [task_at("train", 1, i).problem for i in range(50)]


def test_a_set_is_balanced_distinct_and_seeded() -> None:
    tasks = load("minimath", split="test", size=210, seed=3)
    assert Counter((t.subject, t.level) for t in tasks) == {(s, lv): 6 for s in SUBJECTS for lv in LEVELS}
    assert len({t.problem for t in tasks}) == len({t.id for t in tasks}) == 210
    assert {problem_split(t.problem) for t in tasks} == {"test"}
    assert content_hash(tasks) == content_hash(load("minimath", split="test", size=210, seed=3))
    assert content_hash(tasks) != content_hash(load("minimath", split="test", size=210, seed=4))
    assert [t.problem for t in load("minimath", split="test", size=70, seed=3)] == [t.problem for t in tasks[:70]]


def test_a_cell_that_is_used_up_leaves_its_turn_to_the_others() -> None:
    """Some cells of the easiest levels hold few test problems."""
    counts = Counter((t.subject, t.level) for t in load("minimath", split="test", size=700, seed=3))
    assert counts.total() == 700
    full = {cell: n for cell, n in counts.items() if n < max(counts.values()) - 1}
    assert full
    assert {level for _, level in full} <= {1, 2}


def test_subjects_and_levels_can_be_chosen() -> None:
    tasks = minimath.load("train", 12, 0, ["Algebra", "Geometry"], [2, 5])
    assert Counter((t.subject, t.level) for t in tasks) == {
        (subject, level): 3 for subject in ("Algebra", "Geometry") for level in (2, 5)
    }


def test_levels_get_harder() -> None:
    """In steps, or in the size of the numbers they hold."""

    def effort(level: int) -> float:
        found = [p.solution() for kind in WORDED for p in problems(kind, level)]
        return sum(map(len, found)) / len(found)

    efforts = [effort(level) for level in LEVELS]
    assert efforts == sorted(efforts)
    assert efforts[-1] > 1.2 * efforts[0]


@pytest.mark.parametrize("split", SPLITS)
def test_a_similar_problem_is_another_of_its_kind(split: str) -> None:
    rng = random.Random(2)
    for _ in range(60):
        problem = draw(rng, split, levels=[2, 3, 4, 5])
        other = similar(rng, problem, split)
        assert other.kind is problem.kind
        assert other.text != problem.text
        assert abs(other.level - problem.level) <= 1
        assert problem_split(other.text) == split


# ------------------------------------------------------------------------------- text -> problem


@pytest.mark.parametrize(("kind", "level"), CELLS, ids=IDS)
def test_a_text_of_minimath_is_recognised(kind: minimath.Kind, level: int) -> None:
    for problem in problems(kind, level, 4):
        found = recognise(f" {problem.text}\n")
        assert found is not None
        assert (found.kind, found.text, found.answer) == (kind, problem.text, problem.answer)
        assert found.level <= level + 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How are you?",
        "Compute 3 + 4 * 5",
        "Boxes hold 9 nuts each. How many boxes hold 109 nuts?",
        "Find the larger root of x^2 + 3x + 7 = 0.",
        "Find the larger root of x^2 - 4x + 2 = 0.",
        "What is 1/0 of 8?",
        "What is 2/3 of 10?",
        "A rectangle has perimeter 8 and area 100. Find the shorter side.",
        "Find the sequence term 5.",
        "Find term 5 of the sequence 1, 2, 4, ...",
    ],
)
def test_other_texts_and_problems_without_an_answer_are_not(text: str) -> None:
    assert recognise(text) is None


def test_what_cannot_be_had_is_a_one_line_error() -> None:
    for arguments, kind, match in [
        (("tset", 5, 0), ConfigError, "split 'tset' is unknown; did you mean 'test'?"),
        (("test", 5, 0, ["Algbra"]), ConfigError, "subject 'Algbra' is unknown; did you mean 'Algebra'?"),
        (("test", 5, 0, None, [6]), ConfigError, "level 6 is unknown; levels are 1 to 5"),
        (
            ("test", 10**4, 0, ["Precalculus"], [1]),
            DataError,
            "minimath: 10000 distinct problems asked for, .* ask for fewer",
        ),
    ]:
        with pytest.raises(kind, match=match.replace("?", r"\?")) as error:
            minimath.load(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="size is 0"):
        load("minimath", size=0)
    with pytest.raises(DataError, match="minimath is built in"):
        load("minimath", fields={"problem": "q"})
