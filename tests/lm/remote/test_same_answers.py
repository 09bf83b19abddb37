"""One model, one saved adapter, three ways to sample: transformers here, PEFT's own loading, and the HTTP engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from vllm_stand_in import StandIn

from mass.config import SamplingConfig
from mass.lm import LM
from mass.lm.lora import pick, repeat, save_peft
from mass.types import Params
from small_lms import random_adapter, small_sums

GREEDY = SamplingConfig(max_new_tokens=14, temperature=0.0)


def prompts_of(lm: LM, count: int = 6) -> list[list[int]]:
    return [lm.solve_prompt(task.problem) for task in small_sums()[:count]]


def by_peft(base: Path, folder: Path, lm: LM, adapter: Params, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Greedy tokens of transformers' `generate`, with the adapter as PEFT loads it."""
    save_peft(adapter, lm.adapters, folder, "base")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder))
    found = list[tuple[int, ...]]()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False,
            stop_strings=list(lm.prompts.stop), tokenizer=lm.tokenizer,
        )  # fmt: skip
        found.append(tuple(out[0, len(prompt) :].tolist()))
    return found


def test_transformers_peft_and_http_give_the_same_greedy_answers(
    lm: LM, remote: Callable[..., LM], taught_base: Path, tmp_path: Path
) -> None:
    there, adapter, prompts = remote(), random_adapter(lm, scale=0.4), prompts_of(lm)
    seeds = [0] * len(prompts)
    here = lm.sample(prompts, GREEDY, seeds, adapter, with_logprobs=True)
    plain = lm.sample(prompts, GREEDY, seeds)
    answered = there.sample(prompts, GREEDY, seeds, adapter, with_logprobs=True)
    assert [s.tokens for s in here] == by_peft(taught_base, tmp_path / "peft", lm, adapter, prompts)
    assert [dataclasses.replace(s, logprobs=()) for s in answered] == [
        dataclasses.replace(s, logprobs=()) for s in here
    ]
    for ours, theirs in zip(here, answered, strict=True):
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)
    assert [s.tokens for s in here] != [s.tokens for s in plain]
    assert any(s.finished for s in here + plain)
    assert there.sample(prompts, GREEDY, seeds) == plain


def test_each_adapter_of_a_stack_answers_its_own_prompts(lm: LM, remote: Callable[..., LM], server: StandIn) -> None:
    stack, prompts = random_adapter(lm, count=4, scale=0.4), prompts_of(lm, 2) * 4
    here = lm.sample(prompts, GREEDY, [0] * 8, stack)
    assert remote(adapters=3).sample(prompts, GREEDY, [0] * 8, stack) == here
    assert len({s.tokens for s in here[::2]}) > 1
    assert server.most_adapters == 3
    assert server.paths == {}
    names = [body["lora_name"] for body in server.asked("/v1/load_lora_adapter")]
    assert len(set(names)) == 4


def test_names_are_never_used_twice_so_nothing_stale_is_answered(
    lm: LM, remote: Callable[..., LM], server: StandIn
) -> None:
    there, prompts = remote(), prompts_of(lm, 3)
    for seed in range(3):  # what was computed for a prompt is kept by the server under the adapter's name
        adapter = random_adapter(lm, seed=seed, scale=0.4)
        assert there.sample(prompts, GREEDY, [0] * 3, adapter) == lm.sample(prompts, GREEDY, [0] * 3, adapter)
    names = [body["lora_name"] for body in server.asked("/v1/load_lora_adapter")]
    assert len(set(names)) == 3
    assert all(name.startswith("mass-") for name in names)


def test_what_changes_nothing_is_the_base_and_what_is_repeated_is_loaded_once(
    lm: LM, remote: Callable[..., LM], server: StandIn
) -> None:
    there, prompts = remote(lora_dir=None), prompts_of(lm, 2)
    fresh = repeat(lm.init_adapter(0), 2)
    assert there.sample(prompts, GREEDY, [0] * 2, fresh) == lm.sample(prompts, GREEDY, [0] * 2)
    assert server.asked("/v1/load_lora_adapter") == []
    one = random_adapter(lm)
    assert remote().sample(prompts, GREEDY, [0] * 2, repeat(one, 2)) == lm.sample(prompts, GREEDY, [0] * 2, one)
    assert len(server.asked("/v1/load_lora_adapter")) == 1
    stack = random_adapter(lm, count=1)
    assert remote().sample(prompts, GREEDY, [0] * 2, stack) == lm.sample(prompts, GREEDY, [0] * 2, pick(stack, 0))


def test_samples_follow_their_seeds_and_stop_where_they_would_here(lm: LM, remote: Callable[..., LM]) -> None:
    there, warm = remote(), SamplingConfig(max_new_tokens=30, temperature=1.0)
    prompts = prompts_of(lm, 1) * 12
    seeds = list(range(12))
    found = there.sample(prompts, warm, seeds, with_logprobs=True)
    assert found == there.sample(prompts, warm, seeds, with_logprobs=True)
    assert len({s.tokens for s in found}) > 3
    assert [s for s in there.sample(prompts[:3], warm, [7, 0, 7])][::2] == [
        dataclasses.replace(found[7], logprobs=())
    ] * 2
    for sample in found:
        assert len(sample.logprobs) == len(sample.tokens)
        ended = sample.tokens[-1] in lm.end_ids or lm.cut(lm.tokenizer.decode(sample.tokens)) is not None
        assert sample.finished == ended
        assert ended or len(sample.tokens) == 30
        assert not any(stop in sample.text for stop in lm.prompts.stop)


def test_every_setting_that_a_model_s_own_configuration_could_change_is_sent(
    lm: LM, remote: Callable[..., LM], server: StandIn
) -> None:
    (prompt,) = prompts_of(lm, 1)
    remote().sample([prompt], SamplingConfig(max_new_tokens=9, temperature=0.5, top_p=0.9), [2**63 - 1])
    (body,) = server.asked("/v1/completions")
    sent = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    assert [body[name] for name in sent] == [0.5, 0.9, -1, 0.0, 1.0, 0.0, 0.0]
    assert body["prompt"] == prompt
    assert body["seed"] == 2**63 - 1
    assert body["n"] == 1
    assert body["max_tokens"] == 9
    assert set(body["stop_token_ids"]) == lm.end_ids
    assert body["stop"] == list(lm.prompts.stop)
