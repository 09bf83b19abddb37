"""A model with given examples: chosen, learned, saved and restored, and what it records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mass
from mass.adaptation.gate import EXPLODING, NOT_FINITE
from mass.config import ExamplesConfig, LoraConfig
from mass.errors import ConfigError, DataError, ModelError
from mass.lm import LM
from mass.model import Mass
from mass.types import Task

PAIRS = [(f"Compute {a} + {b}.", f"{a + b}") for a in (1, 2, 3) for b in (1, 2)]
FAST = ExamplesConfig(epochs=(2,), folds=2, learning_rates=(1e-2,))


@pytest.fixture(scope="module")
def model(taught_base: Path) -> Mass:
    return mass.load(str(taught_base), lora=LoraConfig(r=2, lora_alpha=4.0))


def test_what_was_tried_and_chosen_is_recorded(model: Mass) -> None:
    adapted = model.adapt(PAIRS, config=FAST)
    choice, record = adapted.choice, adapted.adaptation
    assert choice is not None
    assert [one.method for one in choice.tried] == ["zero-shot", "in-context", "adapted", "adapted-in-context"]
    assert all(len(one.right) == 6 and one.loss is not None for one in choice.tried)
    assert choice.chosen in choice.tried
    assert set(record.seconds) >= {"trying zero-shot", "trying in-context", "trying adapted"}
    assert record.tokens["choosing"] > 0
    assert [(e.problem, e.solution) for e in record.examples] == PAIRS


def test_learning_lowers_the_losses_of_the_examples_and_leaves_the_model_alone(model: Mass) -> None:
    before = {name: tensor.clone() for name, tensor in model.state.theta.items()}
    adapted = model.adapt(PAIRS, config=replace(FAST, method="adapted", epochs=(8,)))
    for one in adapted.adaptation.examples:
        assert one.loss_before is not None
        assert one.loss_after is not None
        assert one.loss_after < one.loss_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state.theta.items())
    assert adapted.shots == ()
    assert adapted.adaptation.update_norm > 0


def test_the_same_seed_learns_the_same_and_another_order_does_not(model: Mass) -> None:
    config = replace(FAST, method="adapted")
    one, two = (model.adapt(PAIRS, config=config, seed=3).adaptation.adapter_hash for _ in range(2))
    assert one == two
    assert model.adapt(PAIRS, config=config, seed=4).adaptation.adapter_hash != one


def test_in_context_learns_nothing_and_shows_the_examples(model: Mass) -> None:
    adapted = model.adapt(PAIRS, config=replace(FAST, method="in-context"))
    assert adapted.shots == tuple(PAIRS)
    assert all(torch.equal(tensor, model.state.theta[name]) for name, tensor in adapted.adapter.items())
    shown = adapted.lm.tokenizer.decode(adapted._prompts(["Compute 3 + 3."])[0])
    assert all(f"Input: {question}\nOutput: {output}" in shown for question, output in PAIRS)


@pytest.mark.parametrize("method", ["adapted", "in-context"])
def test_a_saved_model_answers_as_before(model: Mass, tmp_path: Path, method: str) -> None:
    adapted = model.adapt(PAIRS, config=replace(FAST, method=method), instruction="Add.")
    adapted.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() == (method == "adapted")
    restored = model.restore(tmp_path)
    asked = ["Compute 3 + 3.", "Compute 2 + 2."]
    assert restored.sample(asked) == adapted.sample(asked)
    assert (restored.choice, restored.shots) == (adapted.choice, adapted.shots)


def test_a_folder_that_was_not_saved_or_is_damaged_is_one_line(model: Mass, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no examples\.json"):
        model.restore(tmp_path)
    (tmp_path / "examples.json").write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        model.restore(tmp_path)


def test_one_example_is_shown_and_that_is_said(model: Mass) -> None:
    adapted = model.adapt(PAIRS[:1])
    assert adapted.shots == (PAIRS[0],)
    assert adapted.choice is not None
    assert "nothing can be held out" in adapted.choice.reason


def test_without_time_nothing_is_learned_and_that_is_said(model: Mass) -> None:
    adapted = model.adapt(PAIRS, config=FAST, budget_s=1e-3)
    assert adapted.choice is not None
    assert not adapted.choice.chosen.adapts
    assert "time does not suffice" in adapted.choice.reason


def test_an_update_that_explodes_is_discarded_for_the_prompt(model: Mass) -> None:
    adapted = model.adapt(PAIRS, config=replace(FAST, method="adapted", learning_rates=(1e6,), epochs=(3,)))
    assert adapted.choice is not None
    assert adapted.choice.chosen.method == "in-context"
    assert adapted.shots == tuple(PAIRS)
    assert adapted.adaptation.fallback in (EXPLODING, NOT_FINITE)
    assert all(torch.equal(tensor, model.state.theta[name]) for name, tensor in adapted.adapter.items())


def test_solve_learns_examples_given_or_of_the_task_and_judges(model: Mass) -> None:
    given = model.solve("Compute 3 + 3.", examples=PAIRS)
    task = Task("Compute 3 + 3.", answer="6", verifier="exact", examples=tuple(PAIRS))
    of_task, learned = model.solve(task, return_adapted=True)
    assert given.adaptation is not None
    assert of_task.adaptation is not None
    assert of_task.adaptation.verdict is not None
    assert learned.choice is not None
    assert of_task.text == learned.solve_all([task])[0].text
    with pytest.raises(ConfigError, match="adapt"):
        model.solve("Compute 3 + 3.", adapt=False, examples=PAIRS)


def test_an_empty_question_is_one_line(model: Mass) -> None:
    adapted = model.adapt(PAIRS[:1])
    with pytest.raises(DataError, match="problem 2 is empty"):
        adapted.solve_all(["Compute 1 + 1.", " "])


def test_written_examples_have_their_share_of_the_weight_or_a_reason(
    model: Mass, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "Compute 3 + 3.\nOutput: 6", "Compute 1 + 1.\nOutput: 2", "nothing", "Compute 9 + 9.\nOutput: 18"
    real, texts = LM.sample, iter(written)

    def sample(self: LM, prompts, config, seeds, adapter=None, **options):  # type: ignore[no-untyped-def]
        found = real(self, prompts, config, seeds, adapter, **options)
        if config.temperature == 0:  # the answers that written examples have to agree with: the second one differs
            return [replace(one, text=text) for one, text in zip(found, ["6", "19"], strict=True)]
        return [replace(one, text=f" {next(texts)}", finished=True) for one in found]

    monkeypatch.setattr(LM, "sample", sample)
    adapted = model.adapt(PAIRS, config=replace(FAST, method="adapted", written=4, written_share=0.25))
    taught = {one.problem: one for one in adapted.adaptation.examples}
    assert taught["Compute 3 + 3."].weight == pytest.approx(0.25)
    assert sum(one.weight for one in adapted.adaptation.examples) == pytest.approx(1.0)
    reasons = [one.rejected.partition(":")[0] for one in adapted.adaptation.examples if one.rejected]
    assert sorted(reasons) == ["answered otherwise with the set in context", "copy", "unparsed"]
