"""What an address may be, what is read from a server's errors, and where a sample ends."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import httpx2
import pytest
from vllm_stand_in import Fault, StandIn

from mass.config import EngineConfig, ModelConfig, SamplingConfig, to_dict
from mass.errors import ConfigError, EngineError
from mass.lm import LM
from mass.lm.remote.connect import sample_at_server
from mass.lm.remote.failures import message_of
from mass.lm.remote.transport import Transport, _retry_after_s
from mass.lm.sampling import StopStrings

COMPLETE = "/v1/completions"
GREEDY = SamplingConfig(max_new_tokens=14, temperature=0.0)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x", "http://", "http:///v1", "http://x?key=1", "http://x:y", "http://[::1", "", " "],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"model.engine.url is .*expected http://HOST:PORT"):
        EngineConfig(url=url)


@pytest.mark.parametrize("url", ["http://me:sk-secret@gpu", "https://sk-secret@gpu:8000/v1", "http://sk-secret@[::1"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"user name or password.*model.engine.key_variable") as caught:
        EngineConfig(url=url)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://gpu:8000", "http://gpu:8000/", "http://gpu:8000/v1", "http://gpu:8000/v1/"])
def test_an_address_may_end_as_openai_clients_have_it(url: str) -> None:
    assert EngineConfig(url=url).root == "http://gpu:8000"


def test_each_process_of_torchrun_may_have_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(url="http://gpu:800{rank}/v1")
    assert config.root == "http://gpu:8000"
    monkeypatch.setenv("RANK", "3")
    assert config.root == "http://gpu:8003"


def test_values_that_cannot_be_are_refused_and_a_configuration_is_json() -> None:
    wrong = {"adapters": 0, "requests": 0, "retries": -1, "timeout_s": 0.0, "deadline_s": float("nan"), "agreement": -1}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=f"engine.{name} is"):
            EngineConfig(**{name: value})
    with pytest.raises(
        ConfigError, match=r"model.engine.orphan_hours is 0.5; expected more than model.engine.deadline_s"
    ):
        EngineConfig(orphan_hours=0.5)
    assert to_dict(ModelConfig())["engine"]["url"] is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "new\\n form", "code": 400}}', "new form"),
        ('{"object": "error", "message": "old form"}', "old form"),
        ('{"error": "a text"}', "a text"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        ("<html><body><h1>Bad &amp; gone</h1></body></html>", "an HTML page, 'Bad & gone'"),
        ("Internal Server Error", "Internal Server Error"),
        ("", "nothing"),
        ("5", "5"),
        ("x" * 1000, "x" * 300 + "..."),
    ],
)
def test_a_server_s_message_is_one_line(body: str, said: str) -> None:
    assert message_of(body) == said


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [("2", 2, 2), ("0.5", 0.5, 0.5), ("-3", 0, 0), ("1e9", 300, 300), ("nan", 0, 0), ("soon", 0, 0), ("x GMT", 0, 0)],
)
def test_retry_after_in_seconds(given: str, least: float, most: float) -> None:
    assert least <= _retry_after_s(httpx2.Response(503, headers={"Retry-After": given})) <= most


def test_retry_after_as_a_date() -> None:
    header = {"Retry-After": formatdate(time.time() + 20, usegmt=True)}
    assert 15 < _retry_after_s(httpx2.Response(503, headers=header)) <= 20


def test_https_brings_certificates() -> None:
    assert Transport(EngineConfig(url="https://gpu"))._ssl is not False


# --- where a sample ends


def more(*extra: int) -> Fault:
    """Tokens after the end, as a server gives them that steps several at a time."""

    def change(answer: dict) -> dict:
        (choice,) = answer["choices"]
        tokens = [*choice["token_ids"], *extra]
        logprobs = {"token_logprobs": [*choice["logprobs"]["token_logprobs"], *[-1.0] * len(extra)]}
        return {**answer, "usage": None, "choices": [{**choice, "token_ids": tokens, "logprobs": logprobs}]}

    return Fault(change=change)


@pytest.fixture
def with_stop(lm: LM) -> LM:
    """`lm`, which stops before the word Answer."""
    stopping = copy.copy(lm)
    stopping.prompts = dataclasses.replace(lm.prompts, stop=("nothing", "Answer"))
    stopping._stop = StopStrings(lm.tokenizer, stopping.prompts.stop)
    return stopping


def test_a_stop_ends_a_sample_as_it_does_here(with_stop: LM, server: StandIn, engine_config: EngineConfig) -> None:
    there, prompts = copy.copy(with_stop), [with_stop.solve_prompt(f"Compute {i} + 1.") for i in (1, 2, 3)]
    sample_at_server(there, engine_config)
    for config in (GREEDY, SamplingConfig(max_new_tokens=14, temperature=0.0, top_p=0.5)):
        here = with_stop.sample(prompts, config, [0] * 3)
        assert all(s.finished and "Answer" not in s.text and s.tokens[-1] not in with_stop.end_ids for s in here)
        assert there.sample(prompts, config, [0] * 3) == here
    assert server.asked(COMPLETE)[0]["stop"] == ["nothing", "Answer"]


@pytest.mark.parametrize("how", ["end", "stop"])
def test_what_follows_the_end_or_a_stop_is_dropped(
    lm: LM, with_stop: LM, server: StandIn, engine_config: EngineConfig, how: str
) -> None:
    there, prompt = copy.copy(lm if how == "end" else with_stop), lm.solve_prompt("Compute 1 + 1.")
    sample_at_server(there, engine_config)
    (before,) = there.sample([prompt], GREEDY, [0], with_logprobs=True)
    assert before.finished
    assert (before.tokens[-1] in lm.end_ids) == (how == "end")
    server.faults[COMPLETE] = [more(5, 6)]
    assert there.sample([prompt], SamplingConfig(16, 0.0), [0], with_logprobs=True) == [before]


def test_an_answer_cut_short_is_none(remote: Callable[..., LM], lm: LM, server: StandIn) -> None:
    def shorter(answer: dict) -> dict:
        (choice,) = answer["choices"]
        tokens = choice["token_ids"][:3]
        text = lm.tokenizer.decode(tokens)
        cut = {**choice, "token_ids": tokens, "text": text, "finish_reason": "length"}
        return {**answer, "usage": None, "choices": [cut]}

    server.faults[COMPLETE] = [Fault(change=shorter)]
    with pytest.raises(EngineError, match="cut off after 3 tokens, expected 14 or an end token"):
        remote(retries=0).sample([lm.solve_prompt("Compute 1 + 1.")], GREEDY, [0])


# --- who calls


def test_threads_share_an_engine_and_a_running_loop_does_not_hinder_it(lm: LM, remote: Callable[..., LM]) -> None:
    there, prompts = remote(), [[lm.solve_prompt(f"Compute {i} + 1.")] for i in (1, 2, 3)]
    expected = [lm.sample(prompt, GREEDY, [0]) for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda prompt: there.sample(prompt, GREEDY, [0]), prompts)) == expected

    async def in_a_notebook() -> object:
        return there.sample(prompts[0], GREEDY, [0])

    assert asyncio.run(in_a_notebook()) == expected[0]
