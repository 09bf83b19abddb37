"""How far work is, said now and then: by a clock that the test moves, and by the commands themselves."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mass.cli import comparing, console, stages
from mass.cli.stages import StageWatch, words
from mass.timing import Decoding, listening, stage, tell_decoding
from small_lms import make_lm, prompt_ids, sample

HALF_WAY = Decoding(tokens=1200, rows_left=3, seconds=20.0, left_s=31.0)


class Recorded:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def stage(self, name: str) -> None:
        self.heard.append(name)

    def decoding(self, state: Decoding) -> None:
        self.heard.append(state)


def test_words() -> None:
    assert words("answer", 20.0, HALF_WAY) == "answer: 1,200 tokens, 60 tokens/s, 3 rows go on, at most 31 s left"
    assert words("", 20.0, Decoding(9, 1, 3.0, 100.0)) == (
        "sampling: 9 tokens, 3.0 tokens/s, 1 row goes on, at most 100 s left"
    )
    assert words("inner loop", 130.0, None) == "inner loop: 2 min"
    assert words("", 12.0, None) == "12 s"


def test_a_stage_is_said_when_it_lasts_and_then_every_ten_seconds() -> None:
    now, said = [0.0], list[tuple[float, str]]()
    watch = StageWatch(lambda text: said.append((now[0], text.split(":")[0])), 10.0, lambda: now[0])

    def until(end: float) -> None:
        while now[0] < end:
            now[0] += 0.5
            watch.look()

    until(9.0)
    assert said == [], "work that nothing is known of: not before the tenth second"
    watch.stage("synthesis")
    until(40.0)
    assert said == [(11.0, "synthesis"), (21.0, "synthesis"), (31.0, "synthesis")]
    watch.stage("scoring")
    until(41.5)
    watch.stage("answer")
    until(45.0)
    assert said[3:] == [(43.5, "answer")], "a stage of a second and a half is not worth a word"
    watch.stage("synthesis")
    until(50.0)
    watch.decoding(HALF_WAY)
    until(60.0)
    assert said[4:] == [(53.5, "synthesis")]


def test_stages_within_stages_and_where_nobody_listens() -> None:
    outer, inner = Recorded(), Recorded()
    tell_decoding(HALF_WAY)
    with listening(outer):
        with stage("meta-gradient"):
            with stage("outer"):
                tell_decoding(HALF_WAY)
            with listening(inner), stage("answer"):
                pass
        with pytest.raises(ValueError, match="broken"), stage("synthesis"):
            raise ValueError("broken")
    assert outer.heard == ["meta-gradient", "outer", HALF_WAY, "meta-gradient", "", "synthesis", ""]
    assert inner.heard == ["answer", "meta-gradient"]


def test_a_thread_hears_its_own_work_only() -> None:
    heard = Recorded()
    with listening(heard):
        thread = threading.Thread(target=tell_decoding, args=(HALF_WAY,))
        thread.start()
        thread.join()
    assert heard.heard == []


def test_sampling_tells_its_tokens_rows_and_time() -> None:
    lm = make_lm()
    lm.decode_rows = 4
    heard = Recorded()
    with listening(heard):
        found = sample(lm, prompt_ids(lm), max_new_tokens=5)
    states: list[Decoding] = heard.heard
    assert states[-1].tokens == sum(len(s.tokens) for s in found)
    assert states[-1].rows_left == 0
    assert states[-1].left_s == 0
    assert states[0].rows_left == 6
    assert all(a.tokens < b.tokens and a.seconds <= b.seconds for a, b in itertools.pairwise(states))
    assert all(state.left_s > 0 for state in states[:-1])


@pytest.mark.parametrize("verb", ["solve", "eval"])
def test_a_command_says_how_far_it_is(
    verb: str, run: Callable[..., Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to a terminal: lines on standard error, and none of it in what is printed."""
    monkeypatch.setattr(stages, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(stages, "LOOK_EVERY_S", 0.002)
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(comparing, "STAGE_EVERY_S", 0.0)
    where = ["--model", tiny_base, "--checkpoint", "untrained"]
    asked = ["What is 1 + 2?", "--adapt.synthesis.sampling.max_new_tokens", "60"]
    tasks = ["--methods", "tt-ss", "--tasks", "minimath", "--tasks.size", "2", "--out", tmp_path / "out"]
    ran = run(verb, *where[: 4 if verb == "solve" else 2], *(asked if verb == "solve" else tasks))
    assert ran.code == 0
    said = [line for line in ran.err.splitlines() if "tokens/s" in line]
    assert any(("practising: synthesis" if verb == "solve" else "tt-ss 0/2: synthesis") in line for line in said)
    assert all("at most" in line for line in said)
    assert "tokens/s" not in ran.out
