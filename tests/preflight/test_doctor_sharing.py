"""`mass.preflight.doctor`: what attentions and rows share makes it cheap, and hides no fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from examined import examined, failed, saved
from mass.lm import LM
from mass.metagrad import layerwise
from mass.preflight.doctor.problem import BilevelProblem, Point
from mass.preflight.doctor.weights import SharedWeights
from mass.preflight.doctor.wide import widen
from small_lms import make_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"))


def test_a_second_attention_is_held_against_the_first_which_central_differences_prove(llama: Path) -> None:
    rows = {(c.attention, c.name): c for c in examined(llama, "sdpa", "eager").checks}
    derivatives = ["first derivative", "second derivative", *(f"meta-gradient of {p}" for p in PARTS)]
    for name in derivatives:
        assert "central differences" in rows["sdpa", name].note
        assert rows["eager", name].note == "the same with sdpa, which is proven above"
        assert rows["eager", name].measured < 1e-9


PARTS = ("weights", "start", "rates")


@pytest.mark.parametrize("part", PARTS)
def test_the_part_of_the_meta_gradient_that_is_wrong_is_named(
    llama: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One direction tests all three; one per cent of any shows, and then each is tested alone."""
    right = BilevelProblem.meta_gradients

    def wrong(problem: BilevelProblem, at: Point) -> Point:
        found = right(problem, at)
        return found.moved(part, found.parts()[part], 0.01)

    monkeypatch.setattr(BilevelProblem, "meta_gradients", wrong)
    report = examined(llama)
    assert failed(report) == {("eager", f"meta-gradient of {part}")}
    assert not report.usable


def test_a_fault_of_checkpointed_layers_leaves_micro_batches_safe(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = layerwise._double

    def wrong(*args: Any) -> Any:
        return tuple(None if g is None else 1.01 * g for g in right(*args))

    monkeypatch.setattr(layerwise, "_double", wrong)
    report = examined(llama)
    assert failed(report) == {("eager", "layer checkpointing")}
    assert report.verdict.startswith("Safe in float64: attention eager, micro-batches. ")


def test_copies_of_a_model_share_its_weights_and_not_its_modules() -> None:
    model = make_model("Llama", torch.float32)
    weights = SharedWeights(model, torch.float64)
    one, two = weights.copy(), weights.copy()
    widen(one)
    for (name, a), b, own in zip(one.named_parameters(), two.parameters(), model.parameters(), strict=True):
        assert a is b, name
        assert torch.equal(a, own.double())
    assert one.lm_head.weight is one.model.embed_tokens.weight, "tied as before"
    assert all(b.dtype == torch.float64 for b in one.buffers() if b.is_floating_point())
    assert "forward" not in vars(two.model)
    assert "forward" not in vars(model.model)
    assert all(
        a is b for a, b in zip(SharedWeights(model, torch.float32).copy().parameters(), model.parameters(), strict=True)
    )


def test_an_examination_takes_few_passes(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what it costs on a model of 8 B, where each reads all weights."""
    passes, right = list[str](), LM.losses

    def counted(lm: LM, *args: Any, **kwargs: Any) -> Tensor:
        passes.append(lm.model.config._attn_implementation)
        return right(lm, *args, **kwargs)

    monkeypatch.setattr(LM, "losses", counted)
    examined(llama, "eager", "sdpa", dtype="float32")
    assert len(passes) <= 46
    assert max(Counter(passes).values()) <= 27
