"""Bodies of requests, right and wrong, and what is said about the wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.config import ServeConfig
from mass.serving import body, protocol
from mass.serving.errors import RequestError
from mass.serving.protocol import AnswerRequest, MassOptions, Message

BOUNDS = ServeConfig()
USER = {"role": "user", "content": "2 + 3?"}


def chat(**values: Any) -> AnswerRequest:
    return protocol.read_chat({"messages": [USER], **values}, BOUNDS)


def refused(**values: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        chat(**values)
    return caught.value


def test_a_whole_request() -> None:
    found = chat(
        model="m+mass",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": " + 1?"}]},
            {"role": "assistant", "content": "2"},
            {**USER, "name": "ann"},
        ],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        stop=["\n\n", "END"],
        seed=-3,
        n=4,
        logprobs=True,
        mass={"adapt": "always", "steps": 2, "deadline_s": 1.5, "seed": 9, "include": ["practice"]},
    )
    assert found == AnswerRequest(
        "chat",
        "m+mass",
        (
            Message("system", "Be brief."),
            Message("user", "1 + 1?"),
            Message("assistant", "2"),
            Message("user", "2 + 3?"),
        ),
        True,
        True,
        7,
        0.5,
        0.9,
        ("\n\n", "END"),
        -3,
        4,
        True,
        MassOptions("always", (), 2, 1.5, 9, True),
    )
    assert found.problem == "2 + 3?"


def test_without_a_model_the_default_is_meant() -> None:
    assert chat().model == "default"


def test_fields_that_change_nothing_are_ignored() -> None:
    plain = chat()
    assert chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True) == plain
    assert (
        chat(tools=[], tool_choice="none", logit_bias={}, presence_penalty=0.0, response_format={"type": "text"})
        == plain
    )
    assert chat(**dict.fromkeys(("tools", "temperature", "mass", "stop", "n"), None)) == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("top_logprobs", 2),
        ("presence_penalty", False),
        ("reasoning_effort", "high"),
    ],
)
def test_what_would_change_the_answer_is_refused(name: str, value: object) -> None:
    error = refused(**{name: value})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({"tempreature": 1}, "tempreature", "did you mean 'temperature'?"),
        ({"mass": {"stepz": 1}}, "mass.stepz", "did you mean 'steps'?"),
        ({"mass": {"adapt": "allways"}}, "mass.adapt", "did you mean 'always'?"),
        ({"mass": {"adapt": True}}, "mass.adapt", "auto, always, never"),
        ({"mass": {"examples": "turns"}}, "mass.examples", "'messages', or a list"),
        ({"mass": {"examples": [["a"]]}}, "mass.examples[0]", "two texts"),
        ({"mass": {"examples": "messages"}}, "mass.examples", "alternation"),
        ({"mass": {"deadline_s": 0}}, "mass.deadline_s", "above 0"),
        ({"mass": {"steps": 10**30}}, "mass.steps", "0 to 16"),
        ({"mass": []}, "mass", "an object"),
        ({"temperature": 3}, "temperature", "0 to 2"),
        ({"temperature": True}, "temperature", "a number"),
        ({"temperature": 10**400}, "temperature", "huge"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "1 to 16"),
        ({"n": 2.0}, "n", "integer"),
        ({"max_tokens": 10**9}, "max_tokens", "1 to 4096"),
        ({"seed": 1 << 63}, "seed", "integer"),
        ({"stop": ""}, "stop", "1 to 256"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {}}, "stream_options", "without stream"),
        ({"model": ""}, "model", "GET /v1/models"),
        ({"messages": "hi"}, "messages", "a list"),
        ({"messages": []}, "messages", "missing"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "assistant"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages", "empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls", "no field"),
    ],
)
def test_a_wrong_field_is_named(values: dict[str, Any], param: str, said: str) -> None:
    error = refused(**values)
    assert error.status == 400
    assert error.param == param
    assert said in error.message
    assert "\n" not in error.message


def test_turns_become_examples() -> None:
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "q")]
    found = chat(messages=[{"role": r, "content": t} for r, t in turns], mass={"examples": "messages"})
    assert found.mass.examples == (("a", "b"), ("c", "d"))
    assert found.messages == (Message("system", "S"), Message("user", "q"))


def test_completions() -> None:
    found = protocol.read_completions({"prompt": ["2 + 3 ="], "best_of": 1, "echo": False, "logprobs": 0}, BOUNDS)
    assert found.messages == (Message("user", "2 + 3 ="),)
    assert found.logprobs
    for wrong in (["a", "b"], [1, 2], 5, "", None):
        with pytest.raises(RequestError) as caught:
            protocol.read_completions({"prompt": wrong}, BOUNDS)
        assert caught.value.param == "prompt"


def error_of(read: Callable[[], Any]) -> RequestError | None:
    """Return the error that a reader raises; any other exception is passed on."""
    try:
        read()
    except RequestError as error:
        return error
    return None


JSON = "application/json"


def test_a_body_in_any_utf8() -> None:
    assert body.read_object(b'\xef\xbb\xbf{"a": "\xc3\xa9 \\ud83d\\ude00"}', "application/json; charset=UTF-8") == {
        "a": "é 😀"
    }


@pytest.mark.parametrize(
    ("data", "kind", "status", "said"),
    [
        (b"", JSON, 400, "no JSON"),
        (b"[]", JSON, 400, "expected a JSON object"),
        (b'{"a": NaN}', JSON, 400, "NaN"),
        (b'{"a": -Infinity}', JSON, 400, "Infinity"),
        (b'{"a": 1, "a": 2}', JSON, 400, "stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', JSON, 400, "stands twice"),
        (b'{"a": "\\ud800"}', JSON, 400, "surrogate"),
        (b'{"\\udfff": 1}', JSON, 400, "surrogate"),
        (b'{"a": "\xff"}', JSON, 400, "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), JSON, 400, "not UTF-8"),
        (b"[" * 100_000, JSON, 400, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", JSON, 400, "no JSON"),
        (b"{}", None, 415, "missing"),
        (b"{}", "text/plain", 415, "text/plain"),
        (b"{}", "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
        (b"{}", "application/json; charset=latin-1", 415, "charset"),
        (b"{}", "\u00e9\n", 415, "expected"),
    ],
)
def test_a_body_that_is_none(data: bytes, kind: str | None, status: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        body.read_object(data, kind)
    assert caught.value.status == status
    assert said in caught.value.message
    json.dumps(caught.value.body(), ensure_ascii=False).encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from([
    *sorted(protocol.NEUTRAL), *sorted(protocol.IGNORED), "messages", "prompt", "model", "stream", "stream_options",
    "max_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs", "mass",
])  # fmt: skip
mass_field = st.dictionaries(
    st.sampled_from(["adapt", "examples", "steps", "deadline_s", "seed", "include"]) | st.text(max_size=8),
    values,
    max_size=3,
)


@given(st.dictionaries(names, values, max_size=5), mass_field, st.booleans())
def test_any_object_is_read_or_refused(fields: dict[str, Any], options: dict[str, Any], valid_question: bool) -> None:
    if valid_question:
        fields = {**fields, "messages": [USER], "prompt": "2 + 3 =", "mass": options}
    for read in (protocol.read_chat, protocol.read_completions):
        error = error_of(lambda read=read: read(fields, BOUNDS))
        assert error is None or error.status == 400
        json.dumps(error and error.body(), allow_nan=False)


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.none() | st.just(JSON) | st.text(max_size=30)
)
def test_any_bytes_are_read_or_refused(data: bytes, kind: str | None) -> None:
    error = error_of(lambda: body.read_object(data, kind))
    assert error is None or error.status in (400, 415)
