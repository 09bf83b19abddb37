"""Records of adaptations over HTTP: list, show, replay, judge, delete; and what is kept without them."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from servers import ADAPTING, BASE, PROBLEM, Running, config, serving

from mass.adaptation.gate import PASSED
from mass.model import Mass
from mass.serving import practice, replaying

ROOT = "/v1/mass/adaptations"
ALWAYS = {"adapt": "always"}
MARKER = "zebra-quartz"


def delete(server: Running, id: str, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.delete(f"{server.url}{ROOT}/{id}", headers=headers).status_code


def asked(server: Running, key: str | None = None, problem: str = PROBLEM, **more: Any) -> dict[str, Any]:
    body = {"model": ADAPTING, "messages": [{"role": "user", "content": problem}], "mass": ALWAYS, **more}
    found = server.post("/v1/chat/completions", key, **body)
    assert found.status_code == 200, found.text
    return found.json()


def test_an_adaptation_is_there_as_soon_as_it_is_answered(server: Running) -> None:
    reply = asked(server, seed=3)
    found = server.get(f"{ROOT}/{reply['id']}").json()
    record = found["record"]
    assert record["text"] == reply["choices"][0]["message"]["content"]
    assert record["problem"] == found["problem"] == PROBLEM
    assert (record["model"], record["checkpoint"], record["seed"]) == (BASE, "mass", 3)
    assert found["checkpoint_hash"] == reply["mass"]["checkpoint"]["hash"]
    assert found["adapted"] == reply["mass"]["adapted"]
    assert found["gate"] == reply["mass"]["gate"]["reason"]
    assert found["request"]["messages"] == [{"role": "user", "text": PROBLEM}]
    assert [one["text"] for one in record["examples"]]
    assert "owner" not in found
    listed = server.get(f"{ROOT}?limit=1").json()
    assert listed["data"] == [{k: found[k] for k in listed["data"][0]}]


@pytest.mark.parametrize(
    "more",
    [
        {"seed": 3},
        {"seed": 4, "n": 3, "temperature": 0.9, "max_tokens": 20, "stop": ["Answer"]},
        {"seed": 5, "mass": {"adapt": "always", "seed": 8, "steps": 2}},
        {"mass": {"adapt": "always", "deadline_s": 0.001}},
        {
            "messages": [
                {"role": "system", "content": "Short."},
                {"role": "user", "content": "Find the malk of the vector (1, 2)."},
                {"role": "assistant", "content": "1*2=2. 2+2=4. Answer: 4"},
                {"role": "user", "content": PROBLEM},
            ]
        },
    ],
)
def test_a_replay_gives_the_same_text(server: Running, more: dict[str, Any]) -> None:
    reply = asked(server, **more)
    again = server.post(f"{ROOT}/{reply['id']}/replay").json()
    assert again == {
        "id": reply["id"],
        "same": True,
        "text": reply["choices"][0]["message"]["content"],
        "recorded": reply["choices"][0]["message"]["content"],
    }


def test_weights_are_learned_in_one_thread(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, right = list[str](), practice.practise

    def practise(*arguments: Any, **more: Any) -> Any:
        threads.append(threading.current_thread().name)
        return right(*arguments, **more)

    monkeypatch.setattr(practice, "practise", practise)
    monkeypatch.setattr(replaying, "practise", practise)
    with ThreadPoolExecutor(4) as clients:
        replies = [*clients.map(lambda seed: asked(server, seed=seed, max_tokens=4), range(4))]
    stacks = len(threads)
    assert stacks >= 1
    server.post(f"{ROOT}/{replies[0]['id']}/replay")
    # Each further thread would keep an arena and buffers of the size of its largest stack, for as long as it lives.
    assert threads == ["inner loops_0"] * (stacks + 1)


def test_a_replay_says_where_the_text_differs(server: Running) -> None:
    reply = asked(server, seed=3)
    records = server.service.records
    assert records is not None
    with records._changing() as db:
        (extra,) = db.execute("SELECT extra FROM adaptations WHERE id = ?", [reply["id"]]).fetchone()
        changed = json.dumps({**json.loads(extra), "texts": ["something else"]})
        db.execute("UPDATE adaptations SET extra = ? WHERE id = ?", [changed, reply["id"]])
    assert not server.post(f"{ROOT}/{reply['id']}/replay").json()["same"]


@pytest.mark.parametrize("column", ["record", "extra"])
def test_a_record_of_another_version_is_said_to_be_one(server: Running, column: str) -> None:
    id, records = asked(server, seed=3)["id"], server.service.records
    assert records is not None
    with records._changing() as db:
        (text,) = db.execute(f"SELECT {column} FROM adaptations WHERE id = ?", [id]).fetchone()
        data = json.loads(text)
        (data if column == "record" else data["request"])["of_tomorrow"] = 1
        db.execute(f"UPDATE adaptations SET {column} = ? WHERE id = ?", [json.dumps(data), id])
    found = server.post(f"{ROOT}/{id}/replay")
    assert (found.status_code, found.json()["error"]["code"]) == (409, "other_version")
    assert server.get(f"{ROOT}/{id}").status_code == (409 if column == "record" else 200)
    assert httpx2.delete(f"{server.url}{ROOT}/{id}").status_code == 200


def test_a_checkpoint_that_is_not_served_cannot_be_replayed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = asked(server, seed=3)
    monkeypatch.setattr(server.service.models, "of", lambda _: None)
    found = server.post(f"{ROOT}/{reply['id']}/replay")
    assert (found.status_code, found.json()["error"]["code"]) == (400, "checkpoint_not_served")


def test_a_client_sees_its_own_records_and_the_operator_all(locked: Running) -> None:
    alice, bob = asked(locked, "alice-key")["id"], asked(locked, "bob-key")["id"]

    def ids(key: str) -> set[str]:
        return {one["id"] for one in locked.get(ROOT, key).json()["data"]}

    assert alice in ids("alice-key")
    assert bob not in ids("alice-key")
    assert {alice, bob} <= ids("operator-key")
    for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        headers = {"Authorization": "Bearer bob-key"}
        assert httpx2.request(method, f"{locked.url}{ROOT}/{alice}{path}", headers=headers).status_code == 404
    assert locked.post(f"{ROOT}/{alice}/verdict", "bob-key", right=False).status_code == 404
    assert locked.get(f"{ROOT}/{alice}", "alice-key").json()["right"] is None
    assert delete(locked, alice, "alice-key") == 200
    assert delete(locked, alice, "alice-key") == 404
    assert delete(locked, bob, "operator-key") == 200


def test_a_verdict_is_kept_and_counted(server: Running) -> None:
    id = asked(server, seed=3)["id"]
    counted = server.service.metrics.verdicts.labels(ADAPTING, "yes", "yes")._value
    before = counted.get()
    assert server.post(f"{ROOT}/{id}/verdict", right=True).json()["right"] is True
    assert server.post(f"{ROOT}/{id}/verdict", right=True).json()["right"] is True
    assert counted.get() == before + 1
    assert id in {one["id"] for one in server.get(f"{ROOT}?right=true").json()["data"]}
    assert server.post(f"{ROOT}/{id}/verdict", right=None).json()["right"] is None
    assert server.post(f"{ROOT}/{id}/verdict", right="yes").status_code == 400
    assert server.post(f"{ROOT}/{id}/verdict").status_code == 400


def test_lists_are_filtered_and_paged(server: Running) -> None:
    made = [asked(server, problem=f"Find the malk of the vector ({i}, 7).", seed=i)["id"] for i in range(3)]
    found, cursor = list[str](), None
    while True:
        page = server.get(f"{ROOT}?limit=2&text=the+MALK{f'&cursor={cursor}' if cursor else ''}").json()
        found += [one["id"] for one in page["data"]]
        cursor = page["cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert [id for id in found if id in made] == made[::-1]
    assert len(found) == len(set(found))
    assert server.get(f"{ROOT}?adapted=true&gate={PASSED}&model=tiny-terms%2Bmass").json()["data"]
    assert server.get(f"{ROOT}?fallback=nothing").json()["data"] == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=%C2%B2", "cursor=x", "since=nan", "until=1e999", "adapted=yes",
     "right=1", "filter=x", "gat=passed", "limit=" + "9" * 5000],
)  # fmt: skip
def test_a_query_that_cannot_be_used(server: Running, query: str) -> None:
    found = server.get(f"{ROOT}?{query}")
    assert found.status_code == 400, found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_without_records_no_text_is_written_anywhere(
    model: Mass, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    problem = f"Find the {MARKER} of the vector (9, 7)."
    with serving(model, config()) as server:
        found = asked(server, problem=problem)
        assert found["mass"]["id"]
        server.post(model=BASE, messages=[{"role": "user", "content": problem * 2000}])
        server.post(model=problem, messages=[])
        off = server.get(ROOT)
        assert (off.status_code, off.json()["error"]["code"]) == (404, "records_off")
        assert server.get(f"{ROOT}?text={MARKER}").status_code == 404
        monkeypatch.setattr("mass.serving.answering.practised", lambda *_: json.loads(problem))
        assert asked(server, problem=problem)["mass"]["fallback"] == "failed"
        assert MARKER not in server.get("/metrics").text
    logged = [one.getMessage() for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    assert any("an adaptation failed: JSONDecodeError at" in line for line in logged)
    assert not [line for line in logged if MARKER in line]
    assert list(tmp_path.rglob("*")) == []


def test_a_record_that_cannot_be_written_costs_nobody_an_answer(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(server.service.records, "add", fail)
    before = server.service.metrics.records_failed._value.get()
    assert asked(server, seed=3)["choices"]
    assert server.service.metrics.records_failed._value.get() == before + 1
