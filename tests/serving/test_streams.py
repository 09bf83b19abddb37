"""What is sent of a stream, and how time is divided."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.serving.job import Text
from mass.serving.json_reply import Json
from mass.serving.streams import Trimmed
from mass.serving.timeline import Timeline

parts = st.lists(st.tuples(st.integers(0, 1), st.text(" \n\tab", max_size=4)), max_size=12)


@given(parts, st.booleans())
def test_what_is_sent_is_the_answer_without_white_space_around_it(
    given_parts: list[tuple[int, str]], strips: bool
) -> None:
    trimmed, sent = Trimmed(strips=strips), {0: "", 1: ""}
    for index, text in given_parts:
        sent[index] += trimmed.add(Text(index, text))
    for index in (0, 1):
        whole = "".join(text for i, text in given_parts if i == index)
        assert sent[index] == (whole.strip() if strips else whole)


def test_json_is_ascii_whatever_a_model_says() -> None:
    assert Json({"a": "\ud800 é \u2028 </script>"}).body == b'{"a":"\\ud800 \\u00e9 \\u2028 </script>"}'
    with pytest.raises(ValueError, match="Out of range"):
        Json({"a": float("nan")})


def test_overlapping_spans_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timeline = Timeline(0.0)
    now[0] = 1.0
    with timeline.span("answer"):
        now[0] = 2.0
        with timeline.span("unadapted answer"):
            now[0] = 5.0
        now[0] = 6.0
    now[0] = 8.0
    timeline.divided(7.0, {"queue": 0.25, "synthesis": 0.5})
    now[0] = 10.0
    assert timeline.seconds() == {
        "queue": 0.25,
        "synthesis": 0.5,
        "unadapted answer": 3.0,
        "answer": 5.0,
        "other": 4.0,  # 0 to 1, 6 to 7, and 8 to 10
        "total": 10.0,
    }
