"""A server that is late, busy, failing or wrong: a further try, or an EngineError of one line; never a wrong sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from vllm_stand_in import Fault, StandIn

from mass.config import EngineConfig, SamplingConfig
from mass.errors import DataError, EngineError, ShapeError
from mass.lm import LM
from mass.lm.remote.transport import Transport, wait_s
from mass.types import Sample

COMPLETE = "/v1/completions"
GREEDY = SamplingConfig(max_new_tokens=14, temperature=0.0)


def ask(lm: LM, count: int = 1, config: SamplingConfig = GREEDY, **options: Any) -> list[Sample]:
    prompts = [lm.solve_prompt(f"Compute {i + 1} + 1.") for i in range(count)]
    return lm.sample(prompts, config, [0] * count, **options)


def choice(**changes: Any) -> Callable[[dict], dict]:
    """The answer with its choice changed; a value that is a function is applied to what was there."""

    def change(answer: dict) -> dict:
        (one,) = answer["choices"]
        new = {name: v(one[name]) if callable(v) else v for name, v in changes.items()}
        return {**answer, "choices": [{**one, **new}]}

    return change


PAGE = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
PASSING = {
    "429": Fault(status=429, body='{"error": {"message": "slow down"}}', headers={"Retry-After": "0.01"}),
    "500": Fault(status=500, body="Internal Server Error"),
    "502 page": Fault(status=502, body=PAGE),
    "503": Fault(status=503, body='{"detail": "starting"}'),
    "dropped": Fault(drop=True),
    "dropped when done": Fault(drop=True, after=True),
    "half an answer": Fault(cut=0.6),
    "half the JSON": Fault(change=lambda answer: json.dumps(answer)[:80]),
    "page with 200": Fault(change=lambda _: PAGE),
    "no JSON object": Fault(change=lambda _: "[1]"),
    "no choices": Fault(change=lambda answer: {**answer, "choices": []}),
    "choices missing": Fault(change=lambda answer: {k: v for k, v in answer.items() if k != "choices"}),
    "choices null": Fault(change=lambda answer: {**answer, "choices": None}),
    "choice doubled": Fault(change=lambda answer: {**answer, "choices": answer["choices"] * 2}),
    "choice no object": Fault(change=lambda answer: {**answer, "choices": ["x"]}),
    "no text": Fault(change=choice(text=None)),
    "no tokens": Fault(change=choice(token_ids=[])),
    "tokens are text": Fault(change=choice(token_ids=["5"])),
    "tokens negative": Fault(change=choice(token_ids=[-1])),
    "tokens true": Fault(change=choice(token_ids=[True])),
    "too many tokens": Fault(change=choice(token_ids=[5] * 15)),
    "a token lost": Fault(change=choice(token_ids=lambda t: t[1:])),
    "aborted": Fault(change=choice(finish_reason="abort")),
    "no reason": Fault(change=choice(finish_reason=None)),
    "error inside": Fault(change=lambda _: {"error": {"message": "EngineCore encountered an issue"}, "model": None}),
}


@pytest.mark.parametrize("fault", PASSING)
def test_it_is_asked_again(lm: LM, remote: Callable[..., LM], server: StandIn, fault: str) -> None:
    server.faults[COMPLETE] = [PASSING[fault]] * 2
    assert ask(remote(retries=2)) == ask(lm)
    assert len(server.asked(COMPLETE)) == 3


@pytest.mark.parametrize("fault", PASSING)
def test_it_is_an_error_when_it_does_not_pass(remote: Callable[..., LM], server: StandIn, fault: str) -> None:
    server.faults[COMPLETE] = [PASSING[fault]] * 20
    with pytest.raises(EngineError) as caught:
        ask(remote(retries=1))
    text = str(caught.value)
    assert "\n" not in text
    assert "<" not in text.replace(server.url, "")
    assert len(text) < 600
    assert "(2 tries)" in text


def test_what_the_page_was_called_is_said(remote: Callable[..., LM], server: StandIn) -> None:
    server.faults[COMPLETE] = [PASSING["502 page"]]
    with pytest.raises(EngineError, match=r"answered 502: an HTML page, '502 Bad Gateway' \(1 tries\)"):
        ask(remote(retries=0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: {**answer, "model": "another"}, "answered with model 'another', asked for was"),
        (choice(text="something else"), "text 'something else' is not that of its tokens here"),
        (choice(text=""), "text '' is not that of its tokens here"),
        (choice(token_ids=None), "returns no token_ids; expected one that knows return_token_ids"),
        (choice(token_ids=lambda t: [999_999, *t[1:]]), "sampled token 999999, the model here has"),
        (choice(prompt_token_ids=lambda t: [1, *t]), "read another prompt than it was sent"),
        (choice(finish_reason="stop", token_ids=lambda t: [20] * len(t), stop_reason=77), "the server stopped at 77"),
    ],
)  # fmt: skip
def test_another_model_or_tokenizer_is_an_error_at_once(
    remote: Callable[..., LM], server: StandIn, change: Callable, said: str
) -> None:
    server.faults[COMPLETE] = [Fault(change=change)] * 9
    with pytest.raises(EngineError, match=said) as caught:
        ask(remote())
    assert len(server.asked(COMPLETE)) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
def test_a_no_is_an_error_at_once(remote: Callable[..., LM], server: StandIn, status: int) -> None:
    body = '{"object": "error", "message": "not\\nthis"}'  # the form of earlier versions
    server.faults[COMPLETE] = [Fault(status=status, body=body, headers={"Location": server.url})] * 9
    with pytest.raises(EngineError, match=f"the server answered {status}: not this"):
        ask(remote())
    assert len(server.asked(COMPLETE)) == 1


def test_log_probabilities_that_are_none(remote: Callable[..., LM], server: StandIn) -> None:
    there = remote(retries=0)
    for given in (None, {}, {"token_logprobs": [0.0]}, {"token_logprobs": [None] * 14}, {"token_logprobs": [5.0] * 14}):
        server.faults[COMPLETE] = [Fault(change=choice(logprobs=given))]
        with pytest.raises(EngineError, match="no log-probability for each of its"):
            ask(there, with_logprobs=True)


# --- time


def test_a_late_answer_and_one_that_drips(lm: LM, remote: Callable[..., LM], server: StandIn) -> None:
    server.faults[COMPLETE] = [Fault(wait_s=5.0), Fault(drip_s=0.05)]
    assert ask(remote(timeout_s=0.4, retries=2)) == ask(lm)
    assert len(server.asked(COMPLETE)) == 3, "two that were too late, and one in time"
    server.faults[COMPLETE] = [Fault(drip_s=0.05)]
    with pytest.raises(EngineError, match=r"no whole answer within 0.3 s \(1 tries\)"):
        ask(remote(timeout_s=0.3, retries=0))


def test_the_deadline_holds_for_all_that_is_asked_at_once(
    remote: Callable[..., LM], server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mass.lm.remote.transport.FIRST_WAIT_S", 0.2)
    server.faults[COMPLETE] = [Fault(status=503, headers={"Retry-After": "60"})] * 50
    with pytest.raises(EngineError, match=r"not all is sampled after 0.5 s; raise model.engine.deadline_s"):
        ask(remote(deadline_s=0.5), 4)
    assert len(server.asked(COMPLETE)) < 50, "it did not go on until the failures ended"


def test_the_wait_doubles_to_a_limit_and_is_not_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mass.lm.remote.transport.FIRST_WAIT_S", 0.5)
    for attempt in range(20):
        whole = min(30.0, 0.5 * 2**attempt)
        waits = [wait_s(attempt) for _ in range(20)]
        assert whole / 2 <= min(waits) < max(waits) <= whole


def test_no_more_are_asked_for_side_by_side_than_said(remote: Callable[..., LM], server: StandIn) -> None:
    server.faults[COMPLETE] = [Fault(wait_s=0.02)] * 12
    ask(remote(requests=3), 12, SamplingConfig(max_new_tokens=1))
    assert server.busiest == 3


def test_one_failure_stops_the_rest(remote: Callable[..., LM], server: StandIn) -> None:
    server.faults[COMPLETE] = [Fault(status=400)] + [Fault(wait_s=2.0)] * 30
    with pytest.raises(EngineError, match="400"):
        ask(remote(requests=2), 12)
    assert len(server.asked(COMPLETE)) < 5


# --- before anything is sampled


def test_no_server_is_one_line(remote: Callable[..., LM]) -> None:
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9/v1/models: ConnectError.*\(2 tries\)"):
        remote(url="http://127.0.0.1:9", retries=1)


def test_another_kind_of_server_is_one_line(remote: Callable[..., LM], server: StandIn) -> None:
    server.faults["/v1/models"] = [Fault(change=lambda _: {"hello": 1}), Fault(status=404, body='{"detail": "?"}')]
    with pytest.raises(EngineError, match="lists no models; expected a server that speaks vLLM's API"):
        remote()
    with pytest.raises(EngineError, match="the server answered 404"):
        remote()


def test_the_base_goes_by_its_name_there(lm: LM, remote: Callable[..., LM], server: StandIn) -> None:
    server.names = ["first", "second"]
    assert ask(remote(model="second")) == ask(lm)  # the answer says "first", as vLLM's does
    assert server.asked(COMPLETE)[-1]["model"] == "second"
    with pytest.raises(EngineError, match=r"does not serve 'secnd'; did you mean 'second'"):
        remote(model="secnd")
    with pytest.raises(EngineError, match=r"set model\.engine\.model"):
        remote()
    server.names = ["only"]
    assert ask(remote()) == ask(lm)


def test_the_server_s_shorter_context_is_kept_to(lm: LM, remote: Callable[..., LM], server: StandIn) -> None:
    server.max_model_len = len(lm.solve_prompt("Compute 1 + 1.")) + 5
    (sample,) = ask(remote(), config=SamplingConfig(max_new_tokens=50, temperature=0.0))
    assert len(sample.tokens) <= 5
    with pytest.raises(DataError, match=r"the server reads at most .*raise its --max-model-len"):
        remote().sample([[5] * server.max_model_len], GREEDY, [0])
    with pytest.raises(ShapeError, match="2 seeds for 1 prompts"):
        remote().sample([[5]], GREEDY, [0, 1])
    assert remote().sample([], GREEDY, []) == []


# --- the key


def test_the_key_is_sent_and_shown_nowhere(
    lm: LM, remote: Callable[..., LM], server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "sk-secret"
    monkeypatch.setenv("MASS_ENGINE_KEY", "sk-wrong")
    with pytest.raises(EngineError, match=r"401: Unauthorized: Bearer \(the key\)") as caught:
        remote()
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.setenv("OTHER_KEY", "sk-secret")
    there = remote(key_variable="OTHER_KEY")
    assert ask(there) == ask(lm)
    assert "sk-secret" not in repr(there.engine_config)


def test_a_proxy_is_not_asked_for_this_machine(engine_config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert Transport(engine_config).session().trust_env is False
    assert Transport(EngineConfig(url="http://gpu-7:8000")).session().trust_env is True
