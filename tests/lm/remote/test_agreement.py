"""A server is compared with the model here before it samples: what it must not get past."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm_stand_in import StandIn

from mass.errors import EngineError
from mass.lm import LM
from mass.lm.remote import agreement
from mass.lm.remote.answers import mean_difference
from mass.lm.remote.connect import _local  # pyright: ignore[reportPrivateUsage]


def perturbed(base: Path, amount: float) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + amount * torch.randn_like(parameter))
    return model


def test_the_same_model_is_accepted_and_nothing_is_left(remote: Callable[..., LM], server: StandIn) -> None:
    assert remote(check=True).engine is not None
    assert server.paths == {}
    assert [body["temperature"] for body in server.asked("/v1/completions")] == [1.0, 1.0]
    assert len(server.asked("/v1/load_lora_adapter")) == 1


def test_so_are_rounding_and_a_base_without_adapters(
    remote: Callable[..., LM], server: StandIn, taught_base: Path
) -> None:
    server.model = AutoModelForCausalLM.from_pretrained(taught_base, dtype=torch.bfloat16).eval()
    server.runtime_updating = False
    remote(check=True, lora_dir=None)
    assert server.asked("/v1/load_lora_adapter") == []


def test_other_weights_are_refused(remote: Callable[..., LM], server: StandIn, taught_base: Path) -> None:
    server.model = perturbed(taught_base, 0.3)
    with pytest.raises(EngineError, match=r"other log-probabilities than .* nats per token; expected at most 0.25"):
        remote(check=True)
    assert remote(check=False).engine is not None


def test_an_adapter_that_is_loaded_but_not_applied_is_refused(remote: Callable[..., LM], server: StandIn) -> None:
    server.ignores_adapters = True
    with pytest.raises(EngineError, match=r"does not apply a test adapter that it loaded"):
        remote(check=True)
    assert server.paths == {}


def test_an_adapter_that_is_applied_with_another_scale_is_refused(
    remote: Callable[..., LM], server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = server._place, list[object]()

    def louder(name: str, folder: Path) -> object:
        model = place(name, folder)
        if model not in seen:
            seen.append(model)
            for module in model.modules():
                if isinstance(getattr(module, "scaling", None), dict):
                    module.scaling = {key: value * 1.4 for key, value in module.scaling.items()}
        return model

    monkeypatch.setattr(server, "_place", louder)
    with pytest.raises(EngineError, match=r"applies a test adapter in another way"):
        remote(check=True)


def test_a_prompt_with_a_token_added_is_refused(remote: Callable[..., LM], server: StandIn) -> None:
    server.adds_token = 1
    with pytest.raises(EngineError, match=r"read another prompt than it was sent"):
        remote(check=True)


def test_the_test_adapter_is_as_strong_as_it_says(lm: LM) -> None:
    local = _local(lm)
    tokens = tuple(lm.target_ids("1+1=2. Answer: 2"))
    adapter = agreement.strong_adapter(local, tokens)
    with_it, without = (local.logprobs(local.prompt, tokens, one) for one in (adapter, None))
    assert 1.0 <= mean_difference(with_it, without) < 30
    assert all(bool(t.any()) for t in adapter.values())
