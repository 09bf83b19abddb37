"""Bytes that are not UTF-8, and byte-order marks, wherever the command line takes a text or a file."""

from __future__ import annotations

import codecs
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mass.encoding import decode

PROBLEM = "Was ist 3 · 4 in München?"
NOT_UTF8 = [
    (PROBLEM.encode("latin-1"), "is not UTF-8 (byte 0xb7 at 10)"),
    (PROBLEM.encode("utf-16"), "is not UTF-8 but UTF-16"),
    (PROBLEM.encode("utf-16-le"), "is not UTF-8 but UTF-16-LE"),
    (PROBLEM.encode("utf-32"), "is not UTF-8 but UTF-32"),
]


def sent(monkeypatch: pytest.MonkeyPatch, data: bytes, errors: str = "strict") -> None:
    """`data` on standard input, as Python opens it in a locale whose encoding is UTF-8, or POSIX (surrogateescape)."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", errors))


@pytest.mark.parametrize(
    "data",
    [PROBLEM.encode(), codecs.BOM_UTF8 + PROBLEM.encode(), f"\r\n{PROBLEM}\r\n".encode()],
    ids=["plain", "mark", "line ends"],
)
def test_a_mark_on_standard_input_is_no_part_of_the_problem(
    solve: Callable, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    sent(monkeypatch, data)
    assert json.loads(solve("-", "--json").out)["adaptation"]["problem"] == PROBLEM


def test_a_mark_in_an_argument_is_no_part_of_the_problem(solve: Callable) -> None:
    assert json.loads(solve(f"\ufeff{PROBLEM}", "--json").out)["adaptation"]["problem"] == PROBLEM


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize(("data", "said"), NOT_UTF8)
def test_standard_input_that_is_not_utf8_is_named(
    fails: Callable, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str, errors: str
) -> None:
    sent(monkeypatch, data, errors)
    assert fails("solve", "-") == f"error: standard input {said}; send the problem as UTF-8"


def test_a_closed_standard_input_is_no_problem(fails: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "no problem is given" in fails("solve")
    assert "the problem is empty" in fails("solve", "-")


@pytest.mark.parametrize(
    "arguments",
    [
        ["solve", b"Compute 3 \xe9 4"],
        ["solve", "--tasks", b"caf\xe9.jsonl"],
        ["solve", b"--model.prompts=\xff.txt"],
        ["eval", "--tasks.fields", b"problem=\xfcbung"],
        ["train", b"--tasks.source=\x80"],
        ["prompts", "--check", b"\xe9"],
        ["report", b"\xe9"],
        [b"\xe9"],
    ],
)
def test_an_argument_that_is_not_utf8_is_named(fails: Callable, arguments: list[str | bytes]) -> None:
    texts = [a if isinstance(a, str) else a.decode("utf-8", "surrogateescape") for a in arguments]
    assert "is not UTF-8 (byte 0x" in fails(*texts)


def test_a_process_of_its_own_says_the_same() -> None:
    ran = subprocess.run([sys.executable, "-m", "mass", "prompts", b"\xe9t\xe9"], capture_output=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [b"error: the argument '?t?' is not UTF-8 (byte 0xe9 at 0); give it as UTF-8"]


def test_a_text_outside_ascii_is_an_argument_like_any_other(fails: Callable) -> None:
    assert "'é😀½' is one argument too many" in fails("prompts", "é😀½")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "--config"], "r.yaml"),
        (["prompts", "--check"], "p.txt"),
        (["solve", "x", "--model.prompts"], "p.txt"),
        (["solve", "--replay"], "r.json"),
        (["solve", "--tasks"], "t.jsonl"),
        (["eval", "--methods=base", "--tasks"], "t.jsonl"),
        (["eval", "--methods", "base-ttt", "--train_tasks"], "t.jsonl"),
    ],
)
@pytest.mark.parametrize(("data", "said"), NOT_UTF8)
def test_a_file_that_is_not_utf8_is_named(
    fails: Callable, tmp_path: Path, arguments: list[str], name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    line = fails(*arguments, tmp_path / name)
    assert f"is {said[3:]}" in line
    assert name in line


def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(run: Callable, tmp_path: Path) -> None:
    def marked(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        return tmp_path / name

    config = marked("r.yaml", "train: {steps: 7}\r\n")
    assert "steps: 7" in run("train", "--config", config, "--print_config").out
    prompts = marked("p.txt", "=== solve\r\n{problem}\r\n")
    assert "it sets: solve" in run("prompts", "--check", prompts).out
    record = marked("r.json", "[]")
    assert "holds no adaptation" in run("solve", "--replay", record).err
    rows = marked("t.jsonl", '{"problem": ""}\r\n')
    assert "the problem is empty" in run("solve", "--tasks", rows).err


def test_line_ends_are_one_character() -> None:
    assert decode(b"a\r\nb\rc\n") == "a\nb\nc\n"
