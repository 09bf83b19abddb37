"""Malformed requests over HTTP: an error of the client in OpenAI's form, never one of the server."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import BASE, WAIT_S, Running

from mass.serving import protocol

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/mass/default", "/v1/mass/adaptations/x/verdict",
         "/v1/mass/adaptations/x/replay", "/v1/models", "/v1/chat", "/", "/health"]  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    | st.sampled_from([1e308, -1e308, 1 << 63, 10**40, "\ud800", "\x00", "x" * 3000])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = [
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature", "top_p", "stop", "seed"),
    *("n", "logprobs", "mass", "right", "back", *protocol.NEUTRAL, *protocol.IGNORED),
]
bodies = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), values, max_size=5)
valid = st.just({"model": BASE, "max_tokens": 1, "messages": [{"role": "user", "content": "1"}]})
encoded = (
    st.tuples(bodies, valid, st.booleans()).map(lambda t: json.dumps({**(t[1] if t[2] else {}), **t[0]}).encode())
    | st.binary(max_size=100)
    | st.tuples(bodies, st.sampled_from(["utf-16", "utf-32", "latin-1", "utf-8-sig"])).map(
        lambda t: json.dumps(t[0]).encode(t[1])
    )
    | st.sampled_from(
        [b"[" * 50_000, b'{"a":' * 5_000, b'{"seed": ' + b"7" * 10_000 + b"}", b'{"n": 1e999}', b"\x00", b""]
    )
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
headers = st.dictionaries(
    st.sampled_from([b"Accept", b"Authorization", b"X-Request-Id", b"Idempotency-Key", b"Origin", b"Cookie", b"Range"]),
    header_text.map(lambda t: t.encode("latin-1").strip()),
    max_size=3,
)
kinds = st.sampled_from(
    [b"application/json"] * 8 + [b"application/json; charset=utf-16", b"text/plain", b"", b"\xff/;="]
)
methods = st.sampled_from(["POST"] * 8 + ["PUT", "GET", "PATCH", "DELETE"])


client = httpx2.Client(timeout=WAIT_S, trust_env=False)  # one for all: to make one takes longer than a request


def check(
    server: Running, method: str, path: str, data: bytes, sent: dict[bytes, bytes], kind: bytes, chunked: bool
) -> None:
    content: Any = iter([data[:7], data[7:]]) if chunked else data
    found = client.request(method, f"{server.url}{path}", content=content, headers={**sent, b"Content-Type": kind})
    assert found.status_code < 500, (found.status_code, found.text, method, path, data)
    if found.status_code >= 400:
        error = found.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert "Traceback" not in found.text
        assert "/src/mass" not in found.text


SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=150, suppress_health_check=SHARED)
@given(methods, st.sampled_from(PATHS), encoded, headers, kinds, st.booleans())
def test_malformed_requests(
    server: Running, method: str, path: str, data: bytes, sent: dict[bytes, bytes], kind: bytes, chunked: bool
) -> None:
    check(server, method, path, data, sent, kind, chunked)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=SHARED)
@given(methods, st.sampled_from(PATHS), encoded, headers, kinds, st.booleans())
def test_a_thousand_malformed_requests(
    server: Running, method: str, path: str, data: bytes, sent: dict[bytes, bytes], kind: bytes, chunked: bool
) -> None:
    check(server, method, path, data, sent, kind, chunked)
    assert server.get("/health").status_code == 200


def test_a_body_of_ten_megabytes(server: Running) -> None:
    found = httpx2.post(
        f"{server.url}/v1/chat/completions",
        content=b'{"messages": [' + b'"x",' * 2_600_000 + b'"x"]}',
        headers={"Content-Type": "application/json"},
        timeout=WAIT_S,
    )
    assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")
