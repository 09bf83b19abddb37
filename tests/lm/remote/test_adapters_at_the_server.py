"""Adapters at a server: loaded, used, unloaded and deleted, whatever happens between; and those of killed processes."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm_stand_in import Fault, StandIn

from mass.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig
from mass.errors import ConfigError, EngineError
from mass.lm import LM, load_lm
from mass.lm.remote.connect import sample_at_server
from mass.lm.remote.folder import fresh_name, older_than
from small_lms import make_lm, random_adapter
from waiting import until

SHORT = SamplingConfig(max_new_tokens=6, temperature=0.0)
LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


def ask(lm: LM, count: int = 2, stack: int | None = None) -> None:
    prompts = [lm.solve_prompt(f"Compute {i} + 1.") for i in range(count)]
    lm.sample(prompts, SHORT, [0] * count, random_adapter(lm, count=stack))


def left(config: EngineConfig) -> list[str]:
    return os.listdir(str(config.lora_dir))


def test_it_is_gone_after_use(remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig) -> None:
    ask(remote(), 4, stack=4)  # more than the server holds at once: it reads some folders again
    assert server.paths == {}
    assert left(engine_config) == []
    assert len(server.asked(UNLOAD)) == 4


def test_it_is_gone_after_an_error(remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig) -> None:
    server.faults[COMPLETE] = [Fault(), Fault(status=400, body='{"error": {"message": "no"}}')]
    with pytest.raises(EngineError, match="the server answered 400: no"):
        ask(remote(), 4, stack=2)
    assert server.paths == {}
    assert left(engine_config) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_answer_to_the_loading_is_asked_for_again(
    remote: Callable[..., LM], server: StandIn, after: bool
) -> None:
    server.faults[LOAD] = [Fault(drop=True, after=after)]
    ask(remote())
    one, other = server.asked(LOAD)
    assert one == other
    assert server.paths == {}


def test_a_folder_that_is_not_there_yet_is_asked_for_again(remote: Callable[..., LM], server: StandIn) -> None:
    late = '{"error": {"message": "Loading lora x failed: No adapter found for /y"}}'
    server.faults[LOAD] = [Fault(status=404, body=late)] * 2
    ask(remote())
    assert len(server.asked(LOAD)) == 3


def test_samples_count_although_the_unloading_fails(
    remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig
) -> None:
    server.faults[UNLOAD] = [Fault(status=400)]
    ask(remote())
    assert len(server.paths) == 1
    assert left(engine_config) == []


def test_ctrl_c_unloads_and_deletes(remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig) -> None:
    there, seen = remote(), list[int]()
    server.faults[COMPLETE] = [Fault(wait_s=1e6)] * 4  # until the server is closed

    def interrupt() -> None:
        until(lambda: len(server.asked(COMPLETE)) == 4)
        seen.extend([len(server.paths), len(left(engine_config))])
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            ask(there, 4, stack=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [2, 2]
    assert server.running == 4, "no answer was waited for"
    assert server.paths == {}
    assert left(engine_config) == []


def test_those_of_killed_processes_are_removed_when_they_are_old(
    remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig
) -> None:
    old, new, here = (
        f"mass-{int(time.time()) - 7300:08x}-{uuid.uuid4().hex}",
        fresh_name(),
        Path(str(engine_config.lora_dir)),
    )
    for name in (old, new, "mass-mine", "mass-00000000", "theirs"):
        (here / name).mkdir()
        (here / name / "adapter_config.json").write_text("{}")
        server.paths[name] = here / name
    remote(orphan_hours=2.0)
    assert sorted(left(engine_config)) == sorted(server.paths) == sorted([new, "mass-mine", "mass-00000000", "theirs"])


def test_names_tell_their_age() -> None:
    names = [fresh_name() for _ in range(50)]
    assert len(set(names)) == 50
    assert older_than(names, 0.001) == []
    assert older_than(names, -0.001) == names
    assert older_than(["mass-00000000-" + "0" * 31, "x-mass-00000000-" + "0" * 32], 1) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runtime_updating": False}, "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"enable_lora": False}, "LoRA is not enabled"),
        (
            {"max_lora_rank": 1},
            r"LoRA rank 2 is greater than max_lora_rank 1\..*in /.*/adapters, which.*--max-lora-rank",
        ),
        ({"unsupported_modules": {"down_proj"}}, "but received.*lora.target_modules"),
    ],
)
def test_what_the_server_says_of_an_adapter_is_passed_on(
    remote: Callable[..., LM], server: StandIn, engine_config: EngineConfig, change: dict, said: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(EngineError, match=said) as caught:
        ask(remote(retries=1))
    assert "\n" not in str(caught.value)
    assert left(engine_config) == []


def test_a_folder_that_the_server_sees_elsewhere(remote: Callable[..., LM], server: StandIn, tmp_path: Path) -> None:
    (tmp_path / "mount").symlink_to(tmp_path / "adapters")
    ask(remote(lora_dir_on_server=f"{tmp_path}/mount"))
    assert server.asked(LOAD)[0]["lora_path"].startswith(f"{tmp_path}/mount/mass-")
    with pytest.raises(
        EngineError, match=r"No adapter found for /nowhere/mass-.*change model.engine.lora_dir_on_server"
    ):
        ask(remote(lora_dir_on_server="/nowhere", retries=1))


def test_a_folder_that_cannot_be_written_or_is_not_given(remote: Callable[..., LM], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.engine.lora_dir is not set; expected a folder that the server"):
        ask(remote(lora_dir=None))
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot be written to .*file.*model.engine.lora_dir"):
        ask(remote(lora_dir=str(tmp_path / "file")))


def test_what_vllm_does_not_load_is_refused_before_anything_is_asked(
    taught_base: Path, engine_config: EngineConfig, server: StandIn
) -> None:
    with pytest.raises(ConfigError, match=r"lora.r is 32.*at most 16; start it with --max-lora-rank 32"):
        load_lm(ModelConfig(name=str(taught_base), engine=engine_config), LoraConfig(r=32))
    with pytest.raises(ConfigError, match=r"transformer.h.0.attn.c_attn stores its weight transposed"):
        sample_at_server(make_lm("GPT2"), engine_config)
    assert server.requests == []


def test_another_replica_s_404_says_so(remote: Callable[..., LM], server: StandIn) -> None:
    server.faults[COMPLETE] = [Fault(status=404, body='{"error": {"message": "The model `x` does not exist."}}')]
    with pytest.raises(EngineError, match=r"does not exist.*one server at model.engine.url, not a load balancer"):
        ask(remote())
