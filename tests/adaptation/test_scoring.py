from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mass.adaptation import scoring
from mass.adaptation.scoring import head, init_scorer, normalise, score
from mass.config import ScoringConfig
from mass.errors import ShapeError
from mass.lm import LM
from mass.types import Example
from small_lms import full_logits, make_lm, random_adapter

KINDS = ["softmax", "sigmoid", "uniform"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    b, m = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    numbers = st.floats(-50, 50)
    scores = [[draw(numbers) for _ in range(m)] for _ in range(b)]
    valid = [[draw(st.booleans()) for _ in range(m)] for _ in range(b)]
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(valid)


@given(tables())
def test_softmax_sums_to_1_over_the_valid(table: tuple[Tensor, Tensor]) -> None:
    scores, valid = table
    weights = normalise(scores, valid, "softmax")
    assert bool((weights >= 0).all())
    assert not weights[~valid].any()
    torch.testing.assert_close(weights.sum(1), valid.any(1).double())
    torch.testing.assert_close(normalise(scores + 3.0, valid, "softmax"), weights)
    for row, mask, own in zip(weights, valid, scores, strict=True):
        if mask.any():
            torch.testing.assert_close(row[mask], own[mask].softmax(0))


@given(tables())
def test_sigmoid_is_each_on_its_own(table: tuple[Tensor, Tensor]) -> None:
    scores, valid = table
    weights = normalise(scores, valid, "sigmoid")
    torch.testing.assert_close(weights, valid / (1 + (-scores).exp()) / scores.shape[1])
    assert bool(((weights >= 0) & (weights <= 1 / scores.shape[1])).all())


@given(tables())
def test_uniform_ignores_the_scores(table: tuple[Tensor, Tensor]) -> None:
    scores, valid = table
    expected = valid / valid.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(normalise(scores, valid, "uniform"), expected.double())


@given(tables(), st.sampled_from(KINDS))
def test_gradients_are_finite_and_those_of_rejected_zero(table: tuple[Tensor, Tensor], kind: str) -> None:
    scores, valid = table[0].requires_grad_(), table[1]
    generator = torch.Generator().manual_seed(0)
    weights = normalise(scores, valid, kind)
    assert bool(weights.isfinite().all())
    if weights.requires_grad:
        weights.backward(torch.randn(weights.shape, generator=generator, dtype=torch.float64))
        assert bool(scores.grad.isfinite().all())
        assert not scores.grad[~valid].any()


@given(tables(), st.sampled_from(KINDS), st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_what_a_rejected_example_holds_does_not_matter(table: tuple[Tensor, Tensor], kind: str, filling: float) -> None:
    scores, valid = table
    some = valid.any(1, keepdim=True)
    other = torch.where(valid | ~some, scores, filling)
    if kind != "sigmoid" or filling == filling:
        torch.testing.assert_close(normalise(other, valid, kind), normalise(scores, valid, kind))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"scores \[2, 3\], valid \[2, 4\]"):
        normalise(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="expected both"):
        normalise(torch.zeros(3), torch.ones(3, dtype=torch.bool))


# ------------------------------------------------------------------------------- the scorer


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm()


def candidates(lm: LM) -> list[Example]:
    texts = [" What is 2?\nSolution: 2", " What is 3 + 4 and then 5?\nSolution: 12. Answer: 12", " x\nSolution: y"]
    return [Example("p", "a", text, tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]


def moved(eta: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in eta.items()}


@pytest.mark.parametrize("rank", [0, 2])
def test_an_untrained_scorer_weighs_all_alike(lm: LM, rank: int) -> None:
    eta = init_scorer(lm, ScoringConfig(lora_rank=rank), 0)
    assert not score(lm, eta, ["Q"] * 3, candidates(lm)).any()
    assert any(name.startswith("lora.") for name in eta) == (rank > 0)


@pytest.mark.parametrize("rank", [0, 2])
def test_scores_depend_on_target_and_example_alone(lm: LM, rank: int) -> None:
    """Not on padding, nor on which others are scored beside it."""
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4, lora_rank=rank), 0))
    examples = candidates(lm)
    together = score(lm, eta, ["Q", "A longer question?", "Q"], examples)
    for i, target in enumerate(["Q", "A longer question?", "Q"]):
        torch.testing.assert_close(score(lm, eta, [target], [examples[i]])[0], together[i], rtol=1e-9, atol=1e-9)
    assert len({round(float(s), 6) for s in together}) == 3
    assert score(lm, eta, ["Another"], [examples[0]])[0] != together[0]


def test_features_are_last_and_mean_states_of_the_example(lm: LM) -> None:
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4, likelihood=False), 0))
    example = candidates(lm)[1]
    features = states_of(lm, example)
    torch.testing.assert_close(score(lm, eta, ["Q"], [example])[0], head(eta, features[None])[0])


def states_of(lm: LM, example: Example) -> Tensor:
    prompt = lm.synthesis_prompt("Q")
    states = lm.hidden_states(lm.batch([(prompt, list(example.tokens))]))[0]
    features = torch.cat([states[-1], states[len(prompt) :].mean(0)])
    return (features - features.mean()) / (features.var(correction=0) + 1e-5).sqrt()


def solution_logprobs(lm: LM, example: Example) -> Tensor:
    """Of the tokens of the example's solution, after the synthesis prompt of Q and its problem."""
    prompt, written = lm.synthesis_prompt("Q"), list(example.tokens)
    n = len(lm.target_ids(example.solution))
    assert 0 < n < len(written)
    logits = full_logits(lm, lm.batch([(prompt, written)]))[0]
    return logits.log_softmax(-1)[-n - 1 : -1].gather(1, torch.tensor(written[-n:])[:, None])


def test_features_of_likelihood_are_of_the_solution_s_tokens_alone(lm: LM) -> None:
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4), 0))
    example = candidates(lm)[1]
    every = solution_logprobs(lm, example)
    features = torch.cat([states_of(lm, example), every.mean()[None], every.min()[None]])
    torch.testing.assert_close(score(lm, eta, ["Q"], [example])[0], head(eta, features[None])[0])


@pytest.mark.parametrize("hidden", [2, 5])
def test_a_scorer_with_sharpness_starts_at_the_mean_log_probability_times_it(lm: LM, hidden: int) -> None:
    examples, sharpness = candidates(lm), 7.0
    scores = score(lm, init_scorer(lm, ScoringConfig(hidden=hidden, sharpness=sharpness), 0), ["Q"] * 3, examples)
    for example, found in zip(examples, scores, strict=True):
        torch.testing.assert_close(found, sharpness * solution_logprobs(lm, example).mean())
    assert len({round(float(s), 6) for s in scores}) == 3


def test_sharpness_changes_two_units_of_the_start_alone(lm: LM) -> None:
    flat = init_scorer(lm, ScoringConfig(hidden=5, lora_rank=1), 0)
    sharp = init_scorer(lm, ScoringConfig(hidden=5, lora_rank=1, sharpness=7.0), 0)
    assert sharp.keys() == flat.keys()
    assert all(torch.equal(sharp[name], flat[name]) for name in flat if not name.startswith("head.w"))
    assert all(torch.equal(sharp[name][2:], flat[name][2:]) for name in ("head.w1", "head.w2"))
    assert not sharp["head.w1"][:2, : 2 * lm.width].any()


def test_an_example_without_tokens_is_scored_too(lm: LM) -> None:
    """Practice that was given, not written: there is nothing whose likelihood could be told."""
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4), 0))
    bare = [Example("P", "S"), Example("P", "S")]
    assert score(lm, eta, ["Q"] * 2, bare).isfinite().all()
    together = score(lm, eta, ["Q"] * 3, [bare[0], *candidates(lm)[:2]])
    assert together.isfinite().all()
    torch.testing.assert_close(together[0], score(lm, eta, ["Q"], bare[:1])[0])


def test_a_scorer_without_likelihood_still_scores(lm: LM) -> None:
    """As one that was trained before there was such a feature."""
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4, likelihood=False), 0))
    assert eta["head.w1"].shape[1] == 2 * lm.width
    assert score(lm, eta, ["Q"] * 3, candidates(lm)).shape == (3,)


@pytest.mark.parametrize("rank", [0, 2])
def test_micro_batches_change_nothing_but_the_memory(lm: LM, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the scores nor their gradient; and no pass is wider than asked for."""
    eta = {n: t.requires_grad_() for n, t in moved(init_scorer(lm, ScoringConfig(hidden=4, lora_rank=rank), 0)).items()}
    examples, targets = candidates(lm), ["A longer question?", "Q", "Q, and more"]
    passed: list[tuple[int, int]] = []
    whole = type(lm).hidden_states
    monkeypatch.setattr(
        type(lm),
        "hidden_states",
        lambda self, batch, *a: (passed.append((*batch.input_ids.shape,)), whole(self, batch, *a))[1],
    )
    found: list[tuple[Tensor, ...]] = []
    for micro_batch in (None, 1, 2):
        scores = score(lm, eta, targets, examples, micro_batch)
        grads = torch.autograd.grad(scores.square().sum(), list(eta.values()))
        found.append((scores, *grads))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)
    assert [rows for rows, _ in passed] == [3, 1, 1, 1, 2, 1]
    lengths = [length for _, length in passed[1:4]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_pass_at_a_time_gives_the_gradient_of_all(lm: LM, rank: int, micro_batch: int | None) -> None:
    eta = moved(init_scorer(lm, ScoringConfig(hidden=4, lora_rank=rank), 0))
    leaves = {n: t.clone().requires_grad_() for n, t in eta.items()}
    examples, targets = candidates(lm), ["A longer question?", "Q", "Q, and more"]
    cotangents = torch.tensor([0.3, -2.0, 1.5], dtype=lm.adapter_dtype)
    expected = torch.autograd.grad(score(lm, leaves, targets, examples), list(leaves.values()), cotangents)
    with torch.no_grad():
        found = scoring.gradient(lm, eta, targets, examples, cotangents, micro_batch)
    assert list(found) == list(eta)
    torch.testing.assert_close(tuple(found.values()), expected, rtol=1e-9, atol=1e-12)


def test_gradients_reach_all_of_eta_and_nothing_else(lm: LM) -> None:
    eta = {n: t.requires_grad_() for n, t in moved(init_scorer(lm, ScoringConfig(hidden=4, lora_rank=1), 0)).items()}
    scores = score(lm, eta, ["Q"] * 3, candidates(lm))
    grads = torch.autograd.grad(scores.square().sum(), list(eta.values()))
    assert all(bool(g.any()) for g in grads)
    batch = lm.batch([([1, 2], [3])])
    before = full_logits(lm, batch)
    assert torch.equal(full_logits(lm, batch), before)
    with lm.adapters.use(random_adapter(lm)):  # the scorer reads the base, whatever adapter is in use
        torch.testing.assert_close(score(lm, eta, ["Q"] * 3, candidates(lm)), scores)


def test_a_target_for_each_example(lm: LM) -> None:
    with pytest.raises(ShapeError, match="1 targets for 3 examples"):
        score(lm, init_scorer(lm, ScoringConfig(), 0), ["Q"], candidates(lm))
