"""A thousand malformed inputs: each ends in a one-line error or a verdict with its reason, none is taken for right."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mass import tasks
from mass.errors import DataError
from mass.types import Task
from mass.verify import check, check_all, code, math, sandbox

ROWS: list[dict[str, Any]] = [
    {"question": "How many?", "answer": "2*3=<<2*3=6>>6\n#### 6"},
    {"problem": "p", "solution": r"\boxed{\frac{1}{2}}", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 3},
    {"Body": "b", "Question": "q?", "Equation": "( 1.0 + 2.0 )", "Answer": 3.0, "Type": "Sum", "ID": "x"},
    {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "s"},
    {"task_id": "t", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "  return x", "test": "pass"},
    {"task_id": 1, "text": "t", "code": "def f(): pass", "test_list": ["assert f() is None"], "test_setup_code": ""},
]
ODD: list[Any] = [None, True, -1, 1e308, float("nan"), "", " ", "\ud800", "\0", [], [[]], {}, {"a": [1]}, "x" * 9999]
NUMBER = 400


def broken_line(rng: random.Random) -> bytes:
    """A row of a known layout with fields missing, of other types or renamed, or its bytes damaged."""
    row = dict(rng.choice(ROWS))
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(row) or ["problem"])
        change = rng.randrange(4)
        if change == 0:
            row.pop(name, None)
        elif change == 1:
            row[name] = rng.choice(ODD)
        elif change == 2:
            row[name.upper()] = row.pop(name, None)
        else:
            row[name] = [row.get(name), rng.choice(ODD)]
    data = bytearray(json.dumps(row).encode())
    for _ in range(rng.choice([0, 0, 1, 5])):
        if data:
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 3)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 3)))
    return bytes(data[: rng.randint(0, len(data))]) if rng.random() < 0.2 else bytes(data)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    rng = random.Random(0)
    path = tmp_path / f"rows{suffix}"
    messages: list[str] = []
    for _ in range(NUMBER if suffix == ".jsonl" else 50):
        path.write_bytes(broken_line(rng) + b"\n")
        try:
            assert all(task.problem.strip() and task.id for task in tasks.load(path))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 25
    assert [message for message in messages if not message.startswith(str(path)) or "\n" in message] == []


PIECES = [
    *r"017xy-+/=()[]{},.^_$\&%!|<>'#*~é²٣",
    *(r"\frac", r"\boxed{", r"\sqrt", r"\text{", r"\left(", r"\right]", r"\pm", r"\infty", r"\cup", r"\begin{pmatrix}"),
    *(r"\end{pmatrix}", r"\\", r"\le", r"\in", r"\%", r"^\circ", "####", "Answer:", "the answer is", "\n", " ", "\0"),
    *("<answer>", "Final Answer: The final answer is", "I hope it is correct.", "```python\n", "```", "def f(x):"),
]
GOLDS = {
    "math": r"\frac{7919}{104729}",
    "exact": "7919/104729",
    "choice": "J",
    "gsm8k-strict": "104729",
    "gsm8k-flexible": "104729",
    "minerva": r"\left[7919,104729\right)",
    "reasoning-gym": "104729 7919",
}


def broken_answer(rng: random.Random) -> str:
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 30)))
    return rf"\boxed{{{text}}}" if rng.random() < 0.4 else text


@pytest.mark.slow
def test_answers() -> None:
    rng = random.Random(1)
    pairs = [
        (Task("p", answer=gold, verifier=name, id="reasoning_gym:{}"), broken_answer(rng))
        for name, gold in GOLDS.items()
        for _ in range(NUMBER // 4)
    ]
    for (task, text), verdict in zip(pairs, check_all(pairs), strict=True):
        assert verdict.correct is not True, (task.verifier, text, verdict)
        assert verdict.reason
        assert "crashed" not in verdict.reason, (task.verifier, text, verdict)
        assert "\n" not in verdict.reason


PROGRAM = "def add(a, b):\n    total = a\n    for _ in range(b):\n        total += 1\n    return total\n"
ADD = Task("Add.", answer="assert add(2, 3) == 5\nassert add(40, 2) == 42\n", verifier="code")


def broken_program(rng: random.Random) -> str:
    """The program with characters replaced, so that it does not compile, does not run, or is wrong."""
    text = list(PROGRAM)
    for _ in range(rng.randint(3, 12)):
        text[rng.randrange(len(text))] = rng.choice(["", "(", ")", ":", "\n", "x", "0", "\0", "'", "é", "\t", " "])
    return "".join(text)


@pytest.mark.slow
def test_programs() -> None:
    rng = random.Random(2)
    limits = sandbox.Limits(cpu_s=1, wall_s=3)
    assert code.check(ADD, PROGRAM, limits).correct is True
    wrong = 0
    for _ in range(60):
        verdict = code.check(ADD, broken_program(rng), limits)
        assert verdict.correct is not None, verdict
        assert verdict.reason
        wrong += verdict.correct is False
    assert wrong >= 55  # a comment or a space may change nothing


@pytest.mark.parametrize("verifier", ["math", "exact", "choice", "code", "minerva", "gsm8k-strict"])
@pytest.mark.parametrize("gold", ["", " ", "\0", "\ud800", "{" * 1000, r"\frac{", "####", "x" * 5000, "\n", "assert"])
def test_broken_golds(verifier: str, gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math.POOL, "timeout_s", 1.0)
    if verifier == "code" and gold not in ("", "\0", "assert"):
        return  # a program each: three will do
    verdict = check(Task("p", answer=gold, verifier=verifier), "It is 5.")
    assert verdict.correct is not True
    assert verdict.reason
