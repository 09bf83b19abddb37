"""Losses after a shared beginning equal those of the rows as a batch."""

from __future__ import annotations

import pytest
import torch

from mass.lm import target_losses as module
from mass.lm.lora import pick
from mass.lm.target_losses import target_losses
from small_lms import make_lm, prompt_ids, random_adapter


@pytest.mark.parametrize("most_logits", [1 << 25, 1])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("kind", ["Llama", "Gemma3", "GPT2"])
def test_they_are_the_losses_of_the_rows(
    kind: str, blocks: int, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mass.lm.prefill.WASTE", 8)
    monkeypatch.setattr(module, "MOST_LOGITS", most_logits)
    lm = make_lm(kind)
    adapter = random_adapter(lm, count=blocks or None, scale=0.1)
    short = prompt_ids(lm)
    head = short[4] + short[5]
    prompts = [head + short[1], head + short[2], head + short[3], head + short[1]]
    targets = [short[2][:3], short[4][:1], short[1][:5], short[3][:2]]
    found = target_losses(lm, prompts, targets, adapter)
    for i, row in enumerate(zip(prompts, targets, strict=True)):
        own = adapter if blocks == 0 else pick(adapter, i * blocks // 4)
        with torch.no_grad():
            expected = lm.losses(lm.batch([row]), own)[0]
        assert found[i].item() == pytest.approx(float(expected), rel=1e-5)
