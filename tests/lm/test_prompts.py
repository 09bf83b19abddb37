"""Prompts by kind of problem, and the files that users write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mass.adaptation.synthesis.reading import read as read_practice
from mass.errors import ConfigError
from mass.lm.prompts import (
    CHAT,
    CHATS,
    KINDS,
    PLAIN,
    PLAINS,
    Prompts,
    PromptSet,
    common_kind,
    from_json,
    kind_of,
    to_json,
)
from mass.lm.prompts_file import complete, parse, read, write
from mass.types import Task
from mass.verify import check


def test_only_maths_asks_for_a_box_and_each_kind_for_its_own_end() -> None:
    assert {kind: r"\boxed" in p.solve + p.synthesis for kind, p in CHATS.items()} == {
        "math": True, "code": False, "choice": False, "other": False,
    }  # fmt: skip
    for text in (CHATS["code"].solve, CHATS["code"].synthesis):
        assert "```python" in text
    for text in (CHATS["choice"].solve, CHATS["choice"].synthesis):
        assert "'Answer: X'" in text
        assert "letter" in text
    assert CHATS["math"] == CHAT
    assert set(PLAINS.values()) == {PLAIN}


@pytest.mark.parametrize(
    ("verifier", "kind"),
    [
        ("math", "math"),
        ("exact", "math"),
        ("code", "code"),
        ("choice", "choice"),
        ("reasoning-gym", "other"),
        ("a:b", "other"),
    ],
)
def test_the_verifier_says_the_kind(verifier: str, kind: str) -> None:
    task = Task("p", verifier=verifier)
    assert kind_of(task) == kind == common_kind([task, task])
    assert common_kind([task, Task("p", verifier="choice" if kind != "choice" else "code")]) == "other"
    assert common_kind([]) == "math"


def test_json_round_trip() -> None:
    for prompts in (CHATS, PLAINS):
        assert from_json(json.loads(json.dumps(to_json(prompts)))) == prompts
    with pytest.raises(KeyError):
        from_json({"math": to_json(CHATS)["math"]})


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize("prompts", [CHATS, PLAINS])
@pytest.mark.parametrize("chat", [True, False])
def test_what_is_printed_reads_back(prompts: PromptSet, chat: bool) -> None:
    assert complete(parse(write(prompts)), chat=chat) == prompts


TEXT = st.text(st.sampled_from(' a"\\\n\t=#{}é\r'), max_size=12)


@settings(max_examples=60)
@given(TEXT, TEXT, st.lists(TEXT.filter(bool), max_size=3), st.booleans())
def test_any_text_survives_its_file(one: str, two: str, stop: list[str], thinking: bool) -> None:
    changed = dataclasses.replace(
        CHAT, solve=f"{one}{{problem}}{two}", system=two, stop=tuple(stop), thinking=thinking, answer_prefix=one
    )
    prompts = {**CHATS, "code": changed}
    assert complete(parse(write(prompts)), chat=True) == prompts


def test_a_file_changes_what_it_names_and_nothing_else() -> None:
    text = (
        "# mine\n\n=== solve\n\nDo {problem}\n\nnow.\n\n=== solve code ===\nCode {problem}\n"
        '=== thinking\nyes\n=== stop\n"\\nQ"\nEnd\n'
    )
    found = complete(parse(text), chat=True)
    assert found["math"].solve == found["other"].solve == "Do {problem}\n\nnow."
    assert found["code"].solve == "Code {problem}"
    assert all(p.thinking and p.stop == ("\nQ", "End") for p in found.values())
    assert all(found[kind].synthesis == CHATS[kind].synthesis for kind in KINDS)
    assert complete(parse("=== chat\nno\n"), chat=True) == PLAINS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no heading; expected lines like '=== solve'"),
        ("hello", "line 1: text before the first heading"),
        ("=== slove\n{problem}", "line 1: 'slove' is not a part of the prompts; did you mean 'solve'?"),
        ("=== solve maths\n{problem}", "'solve maths' names no kind of problem; expected one of math, code"),
        ("=== solve code math\n{problem}", "names no kind of problem"),
        ("=== solve\n{problem}\n=== solve\n{problem}", "line 3: 'solve' stands there twice"),
        ("=== solve\n{probelm}", "'solve' has no {problem}; expected it"),
        ("=== synthesis\nWrite one.", "'synthesis' has no {problem}"),
        ("=== example\nP: {problem}", "'example' has no {solution}; expected it once"),
        ("=== example\n{problem} {problem} {solution}", "has no {problem}; expected it once"),
        ("=== example\n{solution} {problem}", "has {solution} before {problem}"),
        ("=== thinking\nmaybe", "is 'maybe'; expected yes or no"),
        ("=== chat code\nyes", "'chat' holds for all kinds of problems; leave 'code' out"),
        ("=== date\ntoday", "is 'today'; expected a day, as in 2024-07-26"),
        ('=== system\n"a" and "b"', "is not text in double quotes"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "mine.txt")
    assert said in str(error.value)
    assert str(error.value).startswith("mine.txt")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"=== solve\n\xe4 {problem}")
    with pytest.raises(ConfigError, match=r"\(it is not UTF-8 \(byte 0xe4 at 10\)\)"):
        read(tmp_path / "latin.txt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf=== solve\r\nDo {problem}\r\n")
    assert read(tmp_path / "bom.txt") == {("solve", ""): "Do {problem}"}


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["=== ", "solve", "stop", " code", "\n", '"', "{problem}", "#", "x", "="]), max_size=20
    ).map("".join)
)
def test_any_file_is_read_or_refused(text: str) -> None:
    said = ""
    try:
        found = complete(parse(text), chat=True)
    except ConfigError as error:
        said, found = str(error), CHATS
    assert "\n" not in said
    assert all(isinstance(p, Prompts) for p in found.values())


# --- the form of written practice


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_in_the_form_that_is_asked_for(kind: str) -> None:
    prompts = CHATS[kind]
    (_, asked), (_, written) = prompts.shown_turns()
    assert prompts.shown_target in asked
    found = read_practice(written, prompts.opens + prompts.render_written("{problem}", "{solution}"))
    assert (found.problem, found.solution, found.reason) == (prompts.shown_problem, prompts.shown_solution, "")


@pytest.mark.parametrize("kind", ["math", "code", "choice"])
def test_what_is_shown_is_right(kind: str) -> None:
    prompts = CHATS[kind]
    answers = {
        "math": "320",
        "choice": "B",
        "code": prompts.shown_problem.partition("tests:")[2] + "\nassert longest_word(['a']) == 'a'",
    }
    task = Task(prompts.shown_problem, answer=answers[kind], verifier=kind)
    assert kind_of(task) == kind
    assert check(task, prompts.shown_solution).correct is True


def test_a_form_of_ones_own_is_shown_no_other() -> None:
    asked = complete(parse("=== synthesis\nAs JSON, another one like {problem}"), chat=True)["math"]
    assert (asked.opens, asked.shown_turns(), asked.synthesis_stop) == ("", [], ())
    assert asked.render_written("p", "s") == "Problem: p\nSolution: s"
    only_code = complete(parse("=== synthesis code\nAnother {problem}"), chat=True)
    assert not only_code["code"].opens
    assert only_code["math"] == CHATS["math"]
    own = complete(parse("=== synthesis\nOne like {problem}\n=== opening\nTask:\n"), chat=True)["math"]
    assert (own.opens, own.shown_turns()) == ("Task:", [])


def test_a_model_that_thinks_first_begins_by_itself() -> None:
    thinking = dataclasses.replace(CHAT, thinking=True)
    assert thinking.opens == ""
    assert thinking.render_written("p", "s") == CHAT.opens + CHAT.render_written("p", "s") == "Problem: p\nSolution: s"


def test_a_base_model_is_shown_nothing() -> None:
    odd = dataclasses.replace(PLAIN, opening="Problem:", shown_target="x")
    assert (odd.opens, odd.shown_turns()) == ("", [])
