"""Who is let in, on every route; and what is refused before anything is served."""

from __future__ import annotations

import base64
import hmac
import re
from pathlib import Path

import httpx2
import pytest
from fastapi.routing import APIRoute
from servers import ADAPTING, BASE, KEYS, Running

from mass.config import ServeConfig
from mass.errors import ConfigError
from mass.serving.app import PAGE, create_app
from mass.serving.errors import RequestError
from mass.serving.keys import Keys, is_loopback, keys_of
from mass.serving.records import owner_of
from mass.serving.service import Serving

ROUTES = sorted(
    (method, route.path.replace("{id}", "x").replace("{name:path}", BASE))
    for route in create_app(Serving(), ServeConfig(), Keys()).routes
    for method in (route.methods if isinstance(route, APIRoute) else ("GET",))
)


def test_the_routes_are_those_that_the_documentation_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page[page.index("## Routes") : page.index("## Models")]
    named = {
        path.replace("NAME", BASE).replace("ID", "x") for path in re.findall(r"(?:GET|POST|DELETE) (/\S*?)`", table)
    }
    assert named | set(PAGE) == {path for _, path in ROUTES}


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/v1/none"), ("GET", "//v1/models"), ("GET", "/docs")])
def test_every_route_but_health_needs_a_key(locked: Running, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "Token x"}):
        found = httpx2.request(method, f"{locked.url}{path}", headers=headers)
        if path == "/health":
            assert found.status_code == 200
        else:
            assert found.status_code == 401, (method, path)
            assert found.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["alice-key", "bob-key", "operator-key"])
def test_each_key_is_let_in(locked: Running, key: str) -> None:
    assert locked.get("/v1/models", key).status_code == 200
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    assert httpx2.get(f"{locked.url}/v1/models", headers={"Authorization": f"Basic {basic}"}).status_code == 200


def test_only_the_operator_switches_the_default(locked: Running) -> None:
    before = locked.get("/v1/mass/default", "alice-key").json()
    assert locked.post("/v1/mass/default", "alice-key", model=BASE).status_code == 403
    assert locked.get("/v1/mass/default", "alice-key").json() == before
    assert locked.post("/v1/mass/default", "operator-key", model=BASE).json() == {
        "model": BASE,
        "previous": before["model"],
    }
    assert locked.post("/v1/mass/default", "operator-key", back=True).json()["model"] == before["model"]
    for wrong in ({"model": "other"}, {}, {"model": BASE, "back": True}, {"modle": BASE}, {"model": 5}):
        assert locked.post("/v1/mass/default", "operator-key", **wrong).status_code == 400


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    right = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return right(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = keys_of(ServeConfig(host="0.0.0.0"), KEYS)
    assert keys.caller("Bearer alice-key").owner == owner_of("alice-key")
    assert keys.caller("Bearer operator-key").admin
    with pytest.raises(RequestError):
        keys.caller("Bearer mallory")
    # All three are compared each time, as digests of one length.
    assert len(compared) == 9
    assert {len(part) for pair in compared for part in pair} == {32}


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({"host": "0.0.0.0"}, {}, "MASS_API_KEY holds no key"),
        ({"host": "example.org"}, {"MASS_ADMIN_KEY": "a"}, "MASS_API_KEY holds no key"),
        ({"api_key_env": "MINE"}, {}, "'MINE', which is not set"),
        ({}, {"MASS_API_KEY": ""}, "an empty key"),
        ({}, {"MASS_API_KEY": "a,,b"}, "an empty key"),
        ({}, {"MASS_API_KEY": "a b"}, "printable ASCII"),
        ({}, {"MASS_API_KEY": "schlüssel"}, "printable ASCII"),
        ({}, {"MASS_ADMIN_KEY": "a,b"}, "holds 2 keys"),
        ({}, {"MASS_API_KEY": "a", "MASS_ADMIN_KEY": "a"}, "the same key"),
    ],
)
def test_keys_that_cannot_be_used(settings: dict[str, str], environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        keys_of(ServeConfig(**settings), environment)


def test_an_error_never_repeats_a_key() -> None:
    with pytest.raises(ConfigError) as caught:
        keys_of(ServeConfig(), {"MASS_API_KEY": "top secret"})
    assert "secret" not in str(caught.value)
    assert "alice" not in repr(keys_of(ServeConfig(), KEYS))


def test_which_addresses_are_this_machine() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9")] == [True] * 5
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "", "127.0.0.1.x"))


def test_a_page_of_another_site_cannot_use_a_server_without_keys(server: Running) -> None:
    body = {"model": ADAPTING, "messages": [{"role": "user", "content": "2 + 3?"}]}
    url = f"{server.url}/v1/chat/completions"
    assert httpx2.post(url, json=body, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx2.post(url, json=body, headers={"Host": "evil.example"}).status_code == 403
    assert httpx2.get(f"{server.url}/v1/models", headers={"Host": "rebound.example:80"}).status_code == 403
    # What a form can send without asking: no content type of JSON.
    assert httpx2.post(url, content=b'{"messages": []}', headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx2.get(f"{server.url}/v1/models", headers={"Origin": server.url}).status_code == 200


def test_a_key_in_the_address_is_not_taken(locked: Running) -> None:
    assert locked.get("/v1/models?api_key=alice-key&key=alice-key").status_code == 401
