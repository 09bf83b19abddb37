"""No matrix product of a model is handed rows that lie apart, in decoding and in losses."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from family_folders import FAMILIES, make_folder
from mass.config import LoraConfig, ModelConfig, SamplingConfig
from mass.lm import LM, load_lm
from small_lms import ARCHITECTURES, make_lm, make_model, prompt_ids


@contextmanager
def inputs_of_linear_layers(model: Any) -> Generator[list[tuple[str, bool]], None, None]:
    """(layer, whether its input is contiguous) of every call within the block, after all other hooks."""
    seen: list[tuple[str, bool]] = []
    names = {module: name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    handles = [
        module.register_forward_hook(lambda m, args, _: seen.append((names[m], args[0].is_contiguous())), prepend=True)
        for module in names
    ]
    yield seen
    for handle in handles:
        handle.remove()


def assert_contiguous(lm: LM) -> None:
    prompts = prompt_ids(lm)
    batch = lm.batch([(prompt, [3, 4, 5]) for prompt in prompts])
    adapter = {name: t.requires_grad_() for name, t in lm.init_adapter(0).items()}
    with inputs_of_linear_layers(lm.model) as seen:
        lm.sample([*prompts, prompts[0]], SamplingConfig(max_new_tokens=3, temperature=1.0), list(range(7)))
        losses = lm.losses(batch, adapter)
        gradients = torch.autograd.grad(losses.sum(), list(adapter.values()), create_graph=True)
        sum(g.square().sum() for g in gradients).backward()
    head = lm.model.get_output_embeddings()
    assert any(lm.model.get_submodule(name) is head for name, _ in seen)
    assert not {name for name, contiguous in seen if not contiguous}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_in_every_architecture(kind: str) -> None:
    assert_contiguous(make_lm(kind, torch.float32))


@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_family_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    folder = make_folder(name, tmp_path)
    assert_contiguous(load_lm(ModelConfig(name=str(folder), device="cpu", dtype="float32"), LoraConfig(r=2)))


def test_transformers_alone_hands_its_head_a_slice() -> None:
    """What the hook is for; where this no longer holds, it can go."""
    model = make_model("Llama")
    with inputs_of_linear_layers(model) as seen:
        model(input_ids=torch.ones(3, 5, dtype=torch.int64), logits_to_keep=1)
    assert ("lm_head", False) in seen


def test_a_model_gets_the_hook_once() -> None:
    model = make_model("Llama")
    from mass.lm.head_input import use_contiguous_head

    for _ in range(3):
        use_contiguous_head(model)
    assert len(model.lm_head._forward_pre_hooks) == 1
