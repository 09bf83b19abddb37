"""Prompts, log-probabilities and hidden states of a language model with an adapter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mass.errors import DataError
from mass.lm.logprobs import of_logits
from mass.lm.prompts import CHAT, KINDS
from mass.types import Batch
from small_lms import ARCHITECTURES, full_logits, make_lm, random_adapter


def rows_of(lm):
    texts = [("Compute 3 + 4.", "3+4=7. Answer: 7"), ("x", "5"), ("A longer problem of 12 words", "Answer: 12 34")]
    return [lm.example_row(*pair) for pair in texts]


# ------------------------------------------------------------------------------- prompts


def test_a_plain_prompt_is_continued() -> None:
    lm = make_lm()
    context, target = lm.example_row(" What? ", " 4*12=48 ")
    assert lm.tokenizer.decode(context, skip_special_tokens=True) == "Problem: What?\nSolution:"
    assert context[0] == lm.tokenizer.bos_token_id
    assert lm.tokenizer.decode(target) == " 4*12=48<eos>"
    assert lm.tokenizer.decode(lm.synthesis_prompt("What?")[1:]) == "Problem: What?\nSimilar problem:"
    assert lm.example_tokens(" What? ", " 4*12=48 ") == len(context) + len(target)


def test_a_chat_model_is_asked_through_its_template() -> None:
    lm = make_lm(chat=True)
    context, target = lm.example_row("What?", "4")
    text = lm.tokenizer.decode(context)
    assert text == (
        "<user>What?\n\nReason step by step, and put your final answer within \\boxed{}.</user><assistant>"
    ), "the template writes its own special tokens: none is added before it"
    assert lm.tokenizer.decode(target) == "4<eos>"
    assert "<user>Here is a problem:\n\nWhat?\n\n" in lm.tokenizer.decode(lm.synthesis_prompt("What?"))
    assert lm.tokenizer.decode(lm.synthesis_prompt("What?")).endswith("<assistant>Problem:")
    assert lm.example_tokens("What?", "4") == len(context) + len(target)


def test_a_chat_model_is_shown_the_form_and_begins_in_it() -> None:
    shown = dataclasses.replace(
        CHAT, synthesis="Another: {problem}", shown_target="1+1?", shown_problem="1+2?", shown_solution="3"
    )
    lm = make_lm(chat=True).with_prompts(dict.fromkeys(KINDS, shown))
    earlier = "<user>Another: 1+1?</user><assistant>Problem: 1+2?\nSolution: 3"
    asked = lm.tokenizer.decode(lm.synthesis_prompt("What?"))
    assert asked.startswith(earlier)
    assert asked.endswith("<user>Another: What?</user><assistant>Problem:")
    assert lm.tokenizer.decode(lm.written_ids("2+2?", "4")) == " 2+2?\nSolution: 4<eos>"
    thinking = lm.with_prompts(dict.fromkeys(KINDS, dataclasses.replace(shown, thinking=True)))
    assert lm.tokenizer.decode(thinking.synthesis_prompt("What?")).endswith("<assistant>")
    assert lm.tokenizer.decode(thinking.written_ids("2+2?", "4")) == "Problem: 2+2?\nSolution: 4<eos>"


def test_nothing_is_shown_where_it_would_fill_half_of_the_context() -> None:
    lm = make_lm(chat=True)
    few = dataclasses.replace(CHAT, synthesis="Another: {problem}", shown_target="1+1? " * 60)
    text = lm.tokenizer.decode(lm.with_prompts(dict.fromkeys(KINDS, few)).synthesis_prompt("What?"))
    assert text == "<user>Another: What?</user><assistant>Problem:"


def test_braces_in_a_problem_are_its_own() -> None:
    lm = make_lm()
    assert "a {problem} {x}\n" in lm.tokenizer.decode(lm.solve_prompt("a {problem} {x}"))


def test_an_overlong_problem_is_a_one_line_error() -> None:
    lm = make_lm()
    for prompt in (lm.solve_prompt, lm.synthesis_prompt):
        with pytest.raises(DataError, match="tokens with its prompt; 'small Llama' reads at most 255") as error:
            prompt("word " * 300)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"sequence of \d+ tokens; 'small Llama' reads at most 256"):
        lm.batch([lm.example_row("short", "5 " * 300)])
    assert lm.example_tokens("word " * 300, "5") > 256


def test_end_tokens_are_those_of_the_generation_config_too() -> None:
    lm = make_lm()
    end = lm.tokenizer.eos_token_id
    assert lm.end_ids == {end}
    lm.model.generation_config.eos_token_id = [end, 7]
    assert lm.end_ids == {end, 7}


# ------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logprobs_equal_a_hand_computation(kind: str, adapted: bool) -> None:
    """Row by row, without padding, from all logits."""
    dtype, error = (torch.float32, 1e-4) if kind == "Gemma2" else (torch.float64, 1e-11)
    lm = make_lm(kind, dtype)
    adapter = random_adapter(lm) if adapted else None
    rows = rows_of(lm)
    logprobs, mask = lm.token_logprobs(lm.batch(rows), adapter)
    losses = lm.losses(lm.batch(rows), adapter)
    assert logprobs.dtype == dtype
    assert not logprobs[~mask].any()
    for i, (context, target) in enumerate(rows):
        alone = lm.batch([(context, target)])
        assert bool(alone.attention_mask.all())
        probs = full_logits(lm, alone, adapter)[0].softmax(-1)
        places = range(len(context), len(context) + len(target))
        expected = torch.stack([probs[at - 1, token].log() for at, token in zip(places, target, strict=True)])
        torch.testing.assert_close(logprobs[i][mask[i]], expected, rtol=error, atol=error)
        torch.testing.assert_close(losses[i], -expected.mean(), rtol=error, atol=error)


def test_padding_and_company_change_nothing() -> None:
    lm = make_lm()
    rows = rows_of(lm)
    batch = lm.batch(rows)
    wider = Batch(
        torch.nn.functional.pad(batch.input_ids, (0, 9), value=5),
        torch.nn.functional.pad(batch.attention_mask, (0, 9)),
        torch.nn.functional.pad(batch.target_mask, (0, 9)),
    )
    expected = lm.losses(batch)
    torch.testing.assert_close(lm.losses(wider), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lm.losses(lm.batch(rows[::-1])), expected.flip(0), rtol=1e-12, atol=1e-12)
    some = batch.select(torch.tensor([2, 1]))
    torch.testing.assert_close(lm.losses(some), expected[[2, 1]], rtol=1e-12, atol=1e-12)
    assert batch.select(torch.tensor([1])).input_ids.shape[1] == sum(map(len, rows[1]))


def test_a_target_in_the_middle_counts_alone() -> None:
    lm = make_lm()
    batch = lm.batch(rows_of(lm))
    mask = torch.zeros_like(batch.target_mask)
    mask[0, 3] = mask[0, 5] = mask[2, 4] = True
    logprobs, counted = lm.token_logprobs(Batch(batch.input_ids, batch.attention_mask, mask))
    all_probs = torch.log_softmax(full_logits(lm, batch), -1)
    assert counted.sum(1).tolist() == [2, 0, 1]
    for i, at in [(0, 3), (0, 5), (2, 4)]:
        torch.testing.assert_close(logprobs[i, at - 3], all_probs[i, at - 1, batch.input_ids[i, at]])
    losses = lm.losses(Batch(batch.input_ids, batch.attention_mask, mask))
    torch.testing.assert_close(losses[0], -(logprobs[0, 0] + logprobs[0, 2]) / 2)
    assert losses[1] == 0


def test_half_precision_logits_are_widened() -> None:
    lm = make_lm(dtype=torch.bfloat16)
    assert lm.adapter_dtype == torch.float32
    assert lm.losses(lm.batch(rows_of(lm)), random_adapter(lm)).dtype == torch.float32


def test_only_the_logits_of_tokens_that_count_are_kept_for_the_gradient() -> None:
    lm = make_lm(dtype=torch.bfloat16)
    rows = [([1] * 2, [5] * 30), ([1] * 30, [5, 6])]
    kept: list[torch.Tensor] = []
    adapter = {name: t.requires_grad_() for name, t in random_adapter(lm).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        lm.losses(lm.batch(rows), adapter)
    words = lm.model.config.vocab_size
    sizes = [t.numel() // words for t in kept if t.is_floating_point() and t.dim() > 1 and t.shape[-1] == words]
    assert max(sizes) == 32


def test_log_probabilities_of_sure_tokens_keep_their_digits() -> None:
    logits = torch.tensor([[1000.0, 990.0, 3.0]])
    exact = torch.log_softmax(logits.double(), -1)[0, 0]
    torch.testing.assert_close(of_logits(logits, torch.tensor([0]))[0].double(), exact, rtol=1e-3, atol=0)


def test_no_switch_of_the_whole_process_is_touched() -> None:
    lm = make_lm(dtype=torch.float32)
    batch, fast = lm.batch(rows_of(lm)), list[bool]()
    lm.model.base_model.register_forward_pre_hook(lambda *_: fast.append(torch.backends.cuda.flash_sdp_enabled()))
    lm.hidden_states(batch)
    with_graph = lm.losses(batch, random_adapter(lm))
    with torch.no_grad():
        lm.hidden_states(batch)
        torch.testing.assert_close(lm.losses(batch, random_adapter(lm)), with_graph, rtol=1e-5, atol=1e-5)
    assert fast == [True] * 4


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_losses_can_be_differentiated_twice(kind: str) -> None:
    lm = make_lm(kind, torch.float32)
    adapter = {name: t.requires_grad_() for name, t in random_adapter(lm, scale=0.1).items()}
    loss = lm.losses(lm.batch(rows_of(lm)), adapter).sum()
    grads = torch.autograd.grad(loss, list(adapter.values()), create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), list(adapter.values()))
    assert all(bool(g.isfinite().all()) for g in again)
    assert any(bool(g.any()) for g in again)


def test_hidden_states_are_those_before_the_head() -> None:
    for kind in ("Llama", "GPT2"):
        lm = make_lm(kind)
        batch, adapter = lm.batch(rows_of(lm)), random_adapter(lm)
        states = lm.hidden_states(batch, adapter)
        assert states.shape == (*batch.input_ids.shape, lm.width)
        head = lm.model.get_output_embeddings()
        torch.testing.assert_close(head(states), full_logits(lm, batch, adapter), rtol=1e-11, atol=1e-11)


def test_a_special_token_in_a_problem_is_text() -> None:
    lm = make_lm("Llama")
    end = lm.tokenizer.eos_token
    assert lm.tokenizer.eos_token_id not in lm.solve_prompt(f"Compute 1 + 1.{end}")
    assert lm.target_ids(f"1+1=2{end}. Answer: 2").count(lm.tokenizer.eos_token_id) == 1
