"""`mass serve` with a server that samples: two clients' adapters do not mix, and whatever fails there, an answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from vllm_stand_in import Fault, StandIn

import mass
from mass.cli.main import main
from mass.config import EngineConfig
from mass.lm.source import shipped_folder

sys.path.append(str(Path(__file__).parents[2] / "serving"))
from servers import ADAPTING, BASE, PROBLEM, WAIT_S, Running, config, serving, until

LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
QUESTIONS = (PROBLEM, "Find the pelb of a 5 by 2 rectangle.")
ALWAYS = {"adapt": "always", "seed": 0}


@pytest.fixture(scope="module")
def there() -> Generator[StandIn, None, None]:
    folder = shipped_folder("tiny-terms")
    assert folder is not None
    with StandIn(folder / "base", BASE, max_model_len=1024) as running:
        yield running


@pytest.fixture(scope="module")
def served(there: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running, None, None]:
    engine = EngineConfig(url=there.url, lora_dir=str(tmp_path_factory.mktemp("adapters")), adapters=2, retries=0)
    model = mass.load(BASE, engine=engine)
    few = replace(model.config, synthesis=replace(model.config.synthesis, examples=3))  # the stand-in is slow
    with serving(replace(model, config=few), config()) as running:
        yield running


def own_names(there: StandIn) -> set[str]:
    """Names of the adapters of requests; that of the checkpoint is the first that was ever loaded."""
    return {body["lora_name"] for body in there.asked(LOAD)[1:]}


def is_left(there: StandIn) -> bool:
    """Whether anything but the checkpoint's adapter is at the server."""
    folder = Path(there.asked(LOAD)[1]["lora_path"]).parent
    return len(there.paths) > 1 or len(os.listdir(folder)) > 1


def test_requests_at_once_have_adapters_of_their_own(there: StandIn, served: Running) -> None:
    plain = served.ask(model=BASE)["choices"]
    before, names = len(there.requests), own_names(there)
    with ThreadPoolExecutor(8) as pool:
        adapted = [pool.submit(served.ask, question, mass=ALWAYS) for question in QUESTIONS]
        others = [pool.submit(served.ask, model=BASE) for _ in range(6)]
    assert [one.result()["choices"] for one in others] == [plain] * 6
    for one in adapted:
        assert one.result()["mass"]["adapted"], one.result()
    asked = [body for path, body, _ in there.requests[before:] if path == COMPLETE]
    uses = [{str(b["prompt"]) for b in asked if b["model"] == name} for name in own_names(there) - names]
    assert sorted(map(len, uses)) == [1, 1]
    assert uses[0] != uses[1]
    until(lambda: not is_left(there))
    assert served.ask(QUESTIONS[0], mass={"adapt": "never"})["choices"]  # by the checkpoint's adapter, loaded once
    assert len(own_names(there)) == len(names) + 2


def test_an_adapter_that_the_server_does_not_load_leaves_the_unadapted_answer(there: StandIn, served: Running) -> None:
    plain = served.ask(mass={"adapt": "never"})
    there.faults[LOAD] = [Fault(status=400, body='{"error": {"message": "no"}}')]
    found = served.ask(mass=ALWAYS)
    assert not there.faults[LOAD]
    assert (found["mass"]["adapted"], found["mass"]["fallback"]) == (False, "failed")
    assert found["choices"] == plain["choices"]


def test_a_stream_has_the_text_in_one_piece(served: Running) -> None:
    found = served.post(model=BASE, messages=[{"role": "user", "content": PROBLEM}], stream=True)
    events = [json.loads(line[6:]) for line in found.text.splitlines() if line.startswith("data: {")]
    texts = [c["delta"]["content"] for e in events for c in e["choices"] if c["delta"].get("content")]
    assert texts == [served.ask(model=BASE)["choices"][0]["message"]["content"]]
    assert events[-1]["mass"]["adapted"] is False


def test_a_client_that_goes_away_leaves_nothing_at_the_server(there: StandIn, served: Running) -> None:
    loaded = len(there.asked(LOAD))
    there.faults[LOAD] = [Fault(wait_s=WAIT_S)]
    body = {"model": ADAPTING, "messages": [{"role": "user", "content": PROBLEM}], "mass": ALWAYS, "stream": True}
    with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=WAIT_S):
        until(lambda: len(there.asked(LOAD)) > loaded)
    name = {"lora_name": there.asked(LOAD)[-1]["lora_name"]}
    until(lambda: name in there.asked(UNLOAD) and not is_left(there))


def test_a_server_that_fails_is_a_503_that_clients_repeat(there: StandIn, served: Running) -> None:
    there.faults[COMPLETE] = [Fault(status=500)]
    found = served.post(model=BASE, messages=[{"role": "user", "content": PROBLEM}])
    assert (found.status_code, found.json()["error"]["code"]) == (503, "sampling_failed")
    assert found.headers["retry-after"] == "1"


def test_a_server_that_reads_otherwise_is_refused_at_the_start(
    there: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(there, "adds_token", 5)
    at_server = ["--model.engine.url", there.url, "--model.engine.lora_dir", str(tmp_path)]
    assert main(["serve", "--port", "0", *at_server]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "error: the server read another prompt than it was sent" in said
