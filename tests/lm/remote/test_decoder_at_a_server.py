"""Rows of many threads at a server: none gets another's adapter, none is lost, and nothing stays there."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest
from vllm_stand_in import Fault, StandIn

from mass.config import EngineConfig, LoraConfig, SamplingConfig
from mass.errors import ConfigError, DataError, EngineError
from mass.lm import LM
from mass.lm.continuous import Ask, Closed, Limits, Piece, QueueFull, share
from mass.lm.lora import repeat
from mass.lm.remote.beside import base_stays_apart
from mass.lm.remote.decoder import RemoteDecoder
from mass.types import Params
from small_lms import random_adapter

SHORT = SamplingConfig(max_new_tokens=8, temperature=0.0)
LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
WAIT_S = 60.0
"""How long a test waits for what must happen."""


def ask(lm: LM, number: int, adapter: Params | None = None, **values: object) -> Ask:
    return Ask(lm.solve_prompt(f"Compute {number} + 1."), SHORT, number, adapter, lm.stops, **values)  # type: ignore[arg-type]


def test_each_row_is_answered_by_its_own_adapter(
    remote: Callable[..., LM], lm: LM, server: StandIn, engine_config: EngineConfig
) -> None:
    adapters = [None, *(random_adapter(lm, seed, scale=0.5) for seed in range(3))]
    pieces = list[Piece]()
    with RemoteDecoder(remote(adapters=2)) as decoder:
        calls = [[ask(lm, n, a, on_piece=pieces.append, with_logprobs=True) for a in adapters] for n in range(4)]
        futures = [decoder.submit_all(call) for call in calls]
        found = [[future.result(WAIT_S) for future in one] for one in futures]
        assert decoder.load().tokens == sum(len(sample.tokens) for one in found for sample in one)
    for call, one in zip(calls, found, strict=True):
        for asked, sample in zip(call, one, strict=True):
            (alone,) = lm.sample([asked.prompt], SHORT, [asked.seed], asked.adapter)
            assert sample.text == alone.text
    assert len({sample.text for one in found for sample in one}) > 4
    assert sorted(piece.text for piece in pieces) == sorted(sample.text for one in found for sample in one)
    assert server.paths == {}
    names = [body["lora_name"] for body in server.asked(LOAD)]
    assert len(set(names)) == len(names) == 12
    assert server.most_adapters <= 2
    assert os.listdir(str(engine_config.lora_dir)) == []


def test_views_sample_through_it(remote: Callable[..., LM], lm: LM, server: StandIn) -> None:
    prompts = [lm.solve_prompt(f"Compute {i} + 2.") for i in range(4)]
    stack, one = random_adapter(lm, 5, count=2), random_adapter(lm, 6)
    there = remote()
    with RemoteDecoder(there) as decoder:
        shared = share(there, decoder)
        for adapter in (None, one, stack, repeat(one, 2)):
            found = shared.writing().sample(prompts, SHORT, [0] * 4, adapter)
            assert [s.text for s in found] == [s.text for s in lm.writing().sample(prompts, SHORT, [0] * 4, adapter)]
        with pytest.raises(DataError, match="the sampling server reads at most 255"):
            shared.sample([[1] * 256], SHORT, [0])
    with pytest.raises(Closed):
        shared.sample(prompts, SHORT, [0] * 4)
    assert server.paths == {}


def test_a_lasting_adapter_is_loaded_once_and_again_by_a_server_that_was_started_anew(
    remote: Callable[..., LM], lm: LM, server: StandIn, engine_config: EngineConfig
) -> None:
    adapter = random_adapter(lm, scale=0.5)
    with RemoteDecoder(remote(), lasting=[adapter]) as decoder:
        first = [future.result(WAIT_S) for future in decoder.submit_all([ask(lm, n, adapter) for n in range(3)])]
        assert decoder.submit(ask(lm, 0, adapter)).result(WAIT_S) == first[0]
        assert len(server.paths) == decoder.load().adapters == 1
        server.paths.clear()
        assert decoder.submit(ask(lm, 0, adapter)).result(WAIT_S) == first[0]
        one, other = (body["lora_name"] for body in server.asked(LOAD))
        assert one != other
        assert os.listdir(str(engine_config.lora_dir)) == [other]
    assert server.paths == {}
    assert os.listdir(str(engine_config.lora_dir)) == []


def test_a_lasting_adapter_has_another_name_before_others_take_it_for_left_behind(
    remote: Callable[..., LM], lm: LM, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_adapter(lm)
    with RemoteDecoder(remote(), lasting=[adapter]) as decoder:
        decoder.submit(ask(lm, 0, adapter)).result(WAIT_S)
        monkeypatch.setattr(decoder._kept, "_longest_s", -1.0)
        decoder.submit(ask(lm, 0, adapter)).result(WAIT_S)
        assert len(server.asked(LOAD)) == 2
        assert list(server.paths) == [server.asked(LOAD)[1]["lora_name"]]


def test_an_adapter_that_cannot_be_loaded_fails_its_own_rows_alone(
    remote: Callable[..., LM], lm: LM, server: StandIn, engine_config: EngineConfig
) -> None:
    server.faults[LOAD] = [Fault(status=400, body='{"error": {"message": "no"}}')]
    with RemoteDecoder(remote(adapters=1)) as decoder:
        bad, good = (decoder.submit(ask(lm, 0, random_adapter(lm, seed))) for seed in (1, 2))
        plain = decoder.submit(ask(lm, 0))
        with pytest.raises(EngineError, match="the server answered 400: no"):
            bad.result(WAIT_S)
        assert good.result(WAIT_S).tokens
        assert plain.result(WAIT_S).tokens
    assert os.listdir(str(engine_config.lora_dir)) == []


@pytest.mark.parametrize("by_future", [True, False])
def test_a_row_that_nobody_wants_is_broken_off_and_its_adapter_unloaded(
    remote: Callable[..., LM], lm: LM, server: StandIn, by_future: bool
) -> None:
    server.faults[COMPLETE] = [Fault(wait_s=WAIT_S)] * 2
    gone, adapter = list[bool](), random_adapter(lm)
    with RemoteDecoder(remote(adapters=1)) as decoder:
        rows = [ask(lm, n, adapter, cancelled=lambda: bool(gone)) for n in range(2)]
        futures = decoder.submit_all(rows)
        waiting = decoder.submit(ask(lm, 0, random_adapter(lm, 2)))  # there is one place for adapters
        while len(server.asked(COMPLETE)) < 2:
            pass
        assert decoder.load().running == 2
        if by_future:
            assert all(future.cancel() for future in futures)
        else:
            gone.append(True)
        assert waiting.result(WAIT_S).tokens
        assert len(server.asked(UNLOAD)) >= 1
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(WAIT_S)
    assert server.paths == {}


def test_closing_fails_what_is_on_its_way(remote: Callable[..., LM], lm: LM, server: StandIn) -> None:
    server.faults[COMPLETE] = [Fault(wait_s=WAIT_S)]
    decoder = RemoteDecoder(remote(), Limits(waiting=1))
    future = decoder.submit(ask(lm, 0, random_adapter(lm)))
    while not server.asked(COMPLETE):
        pass
    with pytest.raises(QueueFull):
        decoder.submit_all([ask(lm, 0)] * 70)
    decoder.close()
    decoder.close()
    with pytest.raises(Closed):
        future.result(0)
    assert server.paths == {}


def test_a_server_that_mixes_adapters_into_the_base_is_found_and_worked_around(
    remote: Callable[..., LM], lm: LM, server: StandIn
) -> None:
    with RemoteDecoder(remote(adapters=2)) as decoder:
        assert base_stays_apart(decoder)
        server.mixes_base = True
        assert not base_stays_apart(decoder)
        decoder.keep_base_apart()
        assert base_stays_apart(decoder)
        assert decoder.submit(ask(lm, 0)).result(WAIT_S).text == lm.sample([ask(lm, 0).prompt], SHORT, [0])[0].text


def test_what_the_server_would_not_load_is_refused_before_anything_is_asked(remote: Callable[..., LM]) -> None:
    with pytest.raises(ConfigError, match=r"model.engine.lora_dir is not set; expected a folder for the adapters of"):
        RemoteDecoder(remote(lora_dir=None))
    with pytest.raises(ConfigError, match=r"lora.r is 32"):
        RemoteDecoder(remote().with_lora(LoraConfig(r=32)))
