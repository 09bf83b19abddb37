"""Sampling, against transformers' own `generate` and against itself one row at a time."""

from __future__ import annotations

import pytest
import torch

from mass.config import SamplingConfig
from mass.errors import DataError, ShapeError
from mass.lm import LM
from mass.lm.drawing import draw
from mass.lm.lora import pick
from mass.lm.prefill import left_pad
from mass.lm.sampling import LOOP_CHECK_EVERY, StopStrings, repeats_itself, sample_rows
from mass.types import Params, Sample
from small_lms import ARCHITECTURES, make_lm, prompt_ids, random_adapter, sample


def end_likely(lm: LM, boost: float = 2.0) -> LM:
    """The end token comes at different places: rows leave the batch one after another."""
    head = torch.nn.Linear(lm.width, len(lm.tokenizer), dtype=torch.float64).requires_grad_(False)
    head.weight.copy_(lm.model.get_output_embeddings().weight)
    head.bias.zero_()
    head.bias[lm.tokenizer.eos_token_id] = boost
    lm.model.set_output_embeddings(head)
    return lm


def generated(lm: LM, prompts: list[list[int]], adapter: Params | None, tokens: int) -> list[list[int]]:
    ids, mask = left_pad(prompts, lm.tokenizer.pad_token_id, lm.device)
    with lm.adapters.use(adapter):
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=lm.tokenizer.pad_token_id,
        )
    new = out[:, ids.shape[1] :].tolist()
    end = lm.tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in new]


# ------------------------------------------------------------------------------- the right tokens


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_equals_generate(kind: str, adapted: bool) -> None:
    lm = make_lm(kind, torch.float32 if kind == "Gemma2" else torch.float64)
    adapter = random_adapter(lm) if adapted else None
    prompts = prompt_ids(lm)
    ours = sample(lm, prompts, adapter, temperature=0.0, max_new_tokens=16)
    assert [list(s.tokens) for s in ours] == generated(lm, prompts, adapter, 16)
    assert len({s.tokens for s in ours}) > 2


def test_greedy_equals_generate_when_rows_end() -> None:
    lm = end_likely(make_lm(), 4.0)
    prompts = prompt_ids(lm) * 2
    ours = sample(lm, prompts, temperature=0.0, max_new_tokens=24)
    assert [list(s.tokens) for s in ours] == generated(lm, prompts, None, 24)
    assert len({len(s.tokens) for s in ours}) > 2


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logprobs_are_those_of_the_tokens_at_temperature_1(kind: str) -> None:
    lm = make_lm(kind, torch.float32 if kind == "Gemma2" else torch.float64)
    adapter, prompts = random_adapter(lm), prompt_ids(lm)
    config = SamplingConfig(max_new_tokens=16, temperature=1.7, top_p=0.9)
    samples = lm.sample(prompts, config, list(range(len(prompts))), adapter, with_logprobs=True)
    assert all(len(s.logprobs) == len(s.tokens) for s in samples)
    batch = lm.batch([(p, list(s.tokens)) for p, s in zip(prompts, samples, strict=True)])
    logprobs, mask = lm.token_logprobs(batch, adapter)
    for i, s in enumerate(samples):
        torch.testing.assert_close(
            torch.tensor(s.logprobs).double(), logprobs[i][mask[i]].double(), rtol=1e-4, atol=1e-4
        )


def test_samples_follow_the_distribution() -> None:
    """First tokens of 1,500 seeds against the model's probabilities, by temperature and nucleus."""
    lm = make_lm()
    prompt = prompt_ids(lm)[0]
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt])).logits[0, -1]
    for temperature, top_p in [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)]:
        probs = (logits / temperature).softmax(-1)
        if top_p < 1:
            ordered, order = probs.sort(descending=True)
            kept = order[: int((ordered.cumsum(0) < top_p).sum()) + 1]
            probs = torch.zeros_like(probs).index_copy(0, kept, probs[kept])
            probs = probs / probs.sum()
        found = sample(lm, [prompt] * 1500, max_new_tokens=1, temperature=temperature, top_p=top_p)
        counts = torch.zeros_like(probs).index_add(
            0, torch.tensor([s.tokens[0] for s in found]), torch.ones(1500, dtype=probs.dtype)
        )
        assert not counts[probs == 0].any()
        big = probs * 1500 > 8
        chi = ((counts - 1500 * probs)[big].square() / (1500 * probs)[big]).sum()
        assert chi < int(big.sum()) + 5 * (2 * int(big.sum())) ** 0.5


def test_inversion_takes_no_impossible_token() -> None:
    """At the very ends of the unit interval too."""
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    config = SamplingConfig(temperature=1.0)
    for value, token in [(0.0, 1), (0.73, 1), (0.74, 3), (1 - 1e-16, 3), (1.0, 3)]:
        assert draw(logits, config, torch.tensor([value], dtype=torch.float64)).tolist() == [token]


def test_a_nucleus_is_the_fewest_tokens_with_that_much_probability() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    for top_p, last in [(0.4, 1), (0.6, 2), (0.79, 2), (0.81, 0)]:
        config = SamplingConfig(temperature=1.0, top_p=top_p)
        assert draw(logits, config, torch.tensor([0.999], dtype=torch.float64)).tolist() == [last]
    config = SamplingConfig(temperature=1.0, top_p=0.6)
    for value, token in [(0.62, 1), (0.63, 2)]:  # 0.5 / 0.8 = 0.625
        assert draw(logits, config, torch.tensor([value], dtype=torch.float64)).tolist() == [token]


# ------------------------------------------------------------------------------- a row is its own


def alone(lm: LM, prompts: list[list[int]], adapter: Params | None = None, **config) -> list[Sample]:
    return [sample(lm, [prompt], adapter, seed=i, **config)[0] for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Mistral"])
def test_a_row_does_not_depend_on_its_company(kind: str, temperature: float) -> None:
    lm = make_lm(kind)
    lm = end_likely(lm, 3.5) if kind == "Llama" else lm
    prompts = prompt_ids(lm) * 2
    together = sample(lm, prompts, temperature=temperature)
    assert [s.tokens for s in together] == [s.tokens for s in alone(lm, prompts, temperature=temperature)]
    if kind == "Llama":  # rows left while others ran: the batch was compacted
        assert sum(len(s.tokens) < 12 for s in together) >= 4
        assert max(len(s.tokens) for s in together) >= 12
    backwards = lm.sample(
        prompts[::-1],
        SamplingConfig(max_new_tokens=16, temperature=temperature),
        list(range(len(prompts)))[::-1],
    )
    assert [s.tokens for s in backwards[::-1]] == [s.tokens for s in together]


def test_nor_on_how_many_are_decoded_at_a_time() -> None:
    lm = end_likely(make_lm(), 3.5)
    prompts, stack = (prompt_ids(lm) * 2)[:8], random_adapter(lm, count=4, scale=0.1)
    expected = [s.tokens for s in sample(lm, prompts)]
    stacked = [s.tokens for s in sample(lm, prompts, stack)]
    for rows in (1, 5):
        lm.decode_rows = rows
        assert [s.tokens for s in sample(lm, prompts)] == expected
        assert [s.tokens for s in sample(lm, prompts, stack)] == stacked


def test_nor_on_a_neighbour_at_the_end_of_the_context() -> None:
    """Each row may use the whole context, for learned positions as for rotary ones."""
    for lm in (make_lm(max_position_embeddings=16), make_lm("GPT2", n_positions=16)):
        prompts = [[5] * 13, [6] * 3, [7] * 15, [8] * 10, [9] * 2, [5] * 2, [6] * 2]
        together = sample(lm, prompts, max_new_tokens=64)
        assert [len(s.tokens) for s in together] == [3, 13, 1, 6, 14, 14, 14]
        assert not any(s.finished for s in together[:3])
        assert [s.tokens for s in together] == [s.tokens for s in alone(lm, prompts, max_new_tokens=64)]
        with pytest.raises(DataError, match=r"prompt of 16 tokens; .* reads at most 15"):
            sample(lm, [[5] * 16, [6]])


@pytest.mark.parametrize("height", [1, 3])
def test_stacked_adapters_equal_separate_runs(height: int) -> None:
    lm = end_likely(make_lm(), 3.5)
    prompts = (prompt_ids(lm) * 2)[: 4 * height]
    stack = random_adapter(lm, count=4, scale=0.1)
    together = sample(lm, prompts, stack, max_new_tokens=20)
    assert len({len(s.tokens) for s in together}) > 1
    for i, prompt in enumerate(prompts):
        (expected,) = sample(lm, [prompt], pick(stack, i // height), seed=i, max_new_tokens=20)
        assert together[i].tokens == expected.tokens


def test_seeds() -> None:
    lm = make_lm()
    prompt = prompt_ids(lm)[0]
    config = SamplingConfig(max_new_tokens=12)
    one, two, other = lm.sample([prompt] * 3, config, [1, 1, 2])
    assert one == two
    assert one.tokens != other.tokens
    (longer,) = lm.sample([prompt], SamplingConfig(max_new_tokens=31), [1])
    assert longer.tokens[:12] == one.tokens
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert lm.sample([prompt], config, [1]) == [one]
    assert torch.equal(torch.get_rng_state(), state), "the global generator took part"


# ------------------------------------------------------------------------------- where it ends


def test_max_tokens_and_the_end_token() -> None:
    lm = end_likely(make_lm(), 3.0)
    end = lm.tokenizer.eos_token_id
    samples = sample(lm, prompt_ids(lm) * 4, max_new_tokens=10)
    ended = [s for s in samples if s.finished]
    cut = [s for s in samples if not s.finished]
    assert ended
    assert cut
    assert all(s.tokens[-1] == end and end not in s.tokens[:-1] and "<eos>" not in s.text for s in ended)
    assert all(len(s.tokens) == 10 and end not in s.tokens for s in cut)
    assert not any(s.logprobs for s in samples), "a softmax over the vocabulary for each token, unless asked for"


def test_a_stop_string_ends_a_row_and_is_cut_off() -> None:
    lm = make_lm()
    free = sample(lm, prompt_ids(lm), max_new_tokens=24)
    text = lm.tokenizer.decode(free[0].tokens)
    stop = text[4:6]
    lm._stop = StopStrings(lm.tokenizer, (stop, "never to be seen"))
    stopped = sample(lm, prompt_ids(lm), max_new_tokens=24)
    assert stopped[0].finished
    assert stopped[0].text == text[: text.index(stop)]
    assert free[0].tokens[: len(stopped[0].tokens)] == stopped[0].tokens
    assert stop in lm.tokenizer.decode(stopped[0].tokens)
    assert stop not in lm.tokenizer.decode(stopped[0].tokens[:-1])
    for before, after in zip(free, stopped, strict=True):
        assert after.finished == (stop in before.text)
        assert after.text == before.text.split(stop)[0]


def test_seeds_and_stacks_that_do_not_fit() -> None:
    lm = make_lm()
    with pytest.raises(ShapeError, match="1 seeds for 6 prompts"):
        lm.sample(prompt_ids(lm), SamplingConfig(), [0])
    with pytest.raises(ShapeError, match="6 prompts for a stack of 4"):
        sample(lm, prompt_ids(lm), random_adapter(lm, count=4))


# ------------------------------------------------------------------------------- loops


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He has 2 apples. " * 4, True),
        ("x" * 48, True),
        ("x" * 47, False),
        ("He has 2 apples. " * 3, False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21", False),
        ("0." + "3" * 30, False),
        ("He has 2 apples. " * 9 + "So he is rich.", False),
        ("", False),
    ],
)
def test_a_text_that_ends_in_a_loop_is_told_from_one_that_counts(text: str, expected: bool) -> None:
    assert repeats_itself(text) is expected


def test_a_row_in_a_loop_is_given_up_where_that_is_asked_for_and_the_others_go_on() -> None:
    lm = end_likely(make_lm(), 0.0)
    word = next(i for i in range(len(lm.tokenizer)) if lm.tokenizer.decode([i]).strip().isalpha())
    lm.model.get_output_embeddings().bias[word] = 40.0
    prompts = prompt_ids(lm)[:2]
    config, seeds = SamplingConfig(max_new_tokens=100, temperature=1.0), [1, 2]
    on = sample_rows(lm, prompts, config, seeds, None, StopStrings(lm.tokenizer, ()))
    assert [(len(s.tokens), s.finished) for s in on] == [(100, False)] * 2
    off = sample_rows(lm, prompts, config, seeds, None, StopStrings(lm.tokenizer, (), loops=True))
    for whole, cut in zip(on, off, strict=True):
        assert not cut.finished
        assert len(cut.tokens) % LOOP_CHECK_EVERY == 0
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert len(cut.tokens) < 100
