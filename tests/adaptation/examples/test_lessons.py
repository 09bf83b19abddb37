"""The rows that are learned: which tokens count, in which step, and with which weight."""

from __future__ import annotations

import pytest
import torch

from mass.adaptation.examples.asking import asking_as_is
from mass.adaptation.examples.learning import held_out_losses, learn
from mass.adaptation.examples.lessons import Lessons, Taught, lessons_of
from mass.config import ExamplesConfig
from mass.lm import LM
from mass.lm.lora import pick
from small_lms import make_lm, random_adapter

PAIRS = [("3 + 4", "7"), ("3 + 3", "6"), ("area of 12", "44"), ("4 * 12", "48"), ("1 + 1", "2")]


@pytest.fixture(scope="module")
def lm() -> LM:
    return asking_as_is(make_lm(chat=True))


def made(lm: LM, groups: list[list[Taught]], rows: str = "plain", epochs: int = 2, batch: int = 2) -> Lessons:
    return lessons_of(lm, groups, rows, epochs, batch, 200, [7] * len(groups))  # type: ignore[arg-type]


def taught(count: int = 5) -> list[Taught]:
    return [Taught(pair) for pair in PAIRS[:count]]


def counted(lm: LM, lessons: Lessons, row: int) -> str:
    return lm.tokenizer.decode(lessons.batch.input_ids[row][lessons.batch.target_mask[row]])


def test_each_step_has_rows_of_its_own_and_weights_of_sum_one(lm: LM) -> None:
    lessons = made(lm, [taught(4)])
    assert (lessons.steps, len(lessons.batch)) == (4, 8)
    assert torch.allclose(lessons.weights.sum(1), torch.ones(4, dtype=lessons.weights.dtype))
    assert bool(((lessons.weights != 0).sum(0) == 1).all())


def test_an_epoch_goes_through_all_examples_once(lm: LM) -> None:
    lessons = made(lm, [taught(4)])
    for epoch in (range(4), range(4, 8)):
        found = {tuple(lessons.batch.input_ids[i].tolist()) for i in epoch}
        assert len(found) == 4


def test_only_the_output_counts(lm: LM) -> None:
    lessons = made(lm, [taught(1)], epochs=1)
    assert counted(lm, lessons, 0).startswith("7")
    shown = lm.tokenizer.decode(lessons.batch.input_ids[0])
    assert "3 + 4" in shown


def test_leave_one_out_shows_all_the_others(lm: LM) -> None:
    lessons = made(lm, [taught(3)], "leave-one-out", epochs=1, batch=3)
    for row in range(3):
        shown = lm.tokenizer.decode(lessons.batch.input_ids[row])
        assert all(question in shown for question, _ in PAIRS[:3])
        assert sum(output in counted(lm, lessons, row) for _, output in PAIRS[:3]) == 1


@pytest.mark.parametrize("chat", [True, False])
def test_a_permuted_set_is_one_row_that_predicts_as_its_prompts_do(chat: bool) -> None:
    """One pass over the conversation has the losses of each output after the prompt with the examples before it."""
    lm = asking_as_is(make_lm(chat=chat))
    lessons = made(lm, [taught(3)], "permuted", epochs=1)
    assert len(lessons.batch) == 1
    text = lm.tokenizer.decode(lessons.batch.input_ids[0])
    order = sorted(PAIRS[:3], key=lambda pair: text.index(pair[0]))
    adapter = random_adapter(lm)
    with torch.no_grad():
        logprobs, mask = lm.token_logprobs(lessons.batch, adapter)
        found = logprobs[mask]
        each = []
        for i, (question, output) in enumerate(order):
            context, target = lm.shots_prompt(order[:i], question), lm.target_ids(output)
            values, counts = lm.token_logprobs(lm.batch([(context, target)]), adapter)
            own = values[counts]
            each.append(own if i == 2 else own[:-1])  # here no end token stands between two examples
    assert torch.allclose(found, torch.cat(each), atol=1e-9)


def test_a_set_too_long_for_one_row_becomes_several(lm: LM) -> None:
    lessons = lessons_of(lm, [taught(5)], "permuted", 1, 8, 60, [0])
    assert len(lessons.batch) > 1
    assert int(lessons.batch.attention_mask.sum(1).max()) <= 60
    together = "".join(counted(lm, lessons, row) for row in range(len(lessons.batch)))
    assert all(output in together for _, output in PAIRS)


def test_a_stack_learns_as_each_adapter_alone(lm: LM) -> None:
    """Adapters of other sets and rates side by side, also where one set is smaller."""
    config, start = ExamplesConfig(batch=2), lm.init_adapter(1)
    groups = [taught(4), [Taught(pair) for pair in PAIRS[1:4]]]
    lessons = made(lm, groups)
    both = learn(start, lessons, config, [1e-2, 3e-2], [1, 2])
    assert lessons.steps == 4
    alone = learn(start, made(lm, groups[:1]), config, [1e-2], [2])
    for name, tensor in pick(both[2], 0).items():
        assert torch.allclose(tensor, alone[2][name][0], atol=1e-9)
    assert not torch.allclose(
        both[1]["model.layers.0.mlp.up_proj.lora_B"], both[2]["model.layers.0.mlp.up_proj.lora_B"]
    )


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16])
def test_losses_do_not_depend_on_the_micro_batch(lm: LM, size: int) -> None:
    lessons = made(lm, [taught(4), taught(4)])
    adapter = random_adapter(lm, count=2)
    with torch.no_grad():
        alone = torch.cat([lessons.losses(adapter, torch.tensor([i])) for i in range(16)])
        parts = torch.arange(16).split(size)
        assert torch.allclose(torch.cat([lessons.losses(adapter, part) for part in parts]), alone, atol=1e-9)


@pytest.mark.parametrize("rows", ["plain", "leave-one-out", "permuted"])
def test_what_is_learned_becomes_likelier(lm: LM, rows: str) -> None:
    start = lm.init_adapter(1)
    lessons = made(lm, [taught(4)], rows, epochs=6)
    adapter = pick(learn(start, lessons, ExamplesConfig(), [1e-2], [6])[6], 0)
    asked = [lm.example_row(*pair) for pair in PAIRS[:4]]
    assert float(held_out_losses(lm, asked, adapter).mean()) < float(held_out_losses(lm, asked, start).mean())


def test_losses_do_not_depend_on_how_rows_pass(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = random_adapter(lm, count=2)
    rows, owners = [lm.example_row(*pair) for pair in PAIRS], [0, 1, 1, 0, 1]
    together = held_out_losses(lm, rows, adapter, owners)
    monkeypatch.setattr("mass.adaptation.examples.learning.PASS_TOKENS", 1)
    assert torch.allclose(together, held_out_losses(lm, rows, adapter, owners), atol=1e-6)
    for i, owner in enumerate(owners):
        assert torch.allclose(together[i], held_out_losses(lm, [rows[i]], pick(adapter, owner))[0], atol=1e-6)
