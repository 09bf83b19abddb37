"""The meta-gradients of the real pipeline against a plain differentiable unroll of the same pipeline, in float64.

Ours: `practice_of`, `scoring.score` and `normalise`, `metagrad.meta_gradients`, `outer.gold_losses` over a stack.
Reference: one task at a time, its own LoRA inside the model, `unroll` with `create_graph=True`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from mass.adaptation import scoring
from mass.adaptation.batch import practice_of, valid_mask
from mass.adaptation.checkpoint import MetaState, init_state
from mass.config import AdaptConfig, InnerConfig, OuterConfig, ScoringConfig
from mass.lm import LM
from mass.lm.lora import repeat
from mass.metagrad import SGD, AdamW, recursion
from mass.metagrad.outer import MetaGradients, inner_loop, meta_gradients, optimizer_of
from mass.training import outer
from mass.types import Example, Params, Task
from small_lms import float64_throughout, make_lm, random_adapter
from unroll import Rule, adamw, sgd, unroll

TASKS = [
    Task("Compute 3 + 4.", "3+4=7. Answer: 7", "7"),
    Task("Find the area of a 2 by 5 rectangle.", "2*5=10. Answer: 10", "10"),
    Task("Compute 9 * 8.", "Answer: 72", "72"),
]
VALID = [[True, False, True, True], [False, True, False, False], [True, True, True, True]]
"""Tasks with 3, 1 and 4 valid examples of 4."""
SGD_RATE, ADAM_RATE = 0.05, 0.01


def examples(lm: LM) -> list[tuple[Example, ...]]:
    def one(b: int, j: int) -> Example:
        problem, solution = f"Compute {b} + {j}{' and more' * j}.", f"{b}+{j}={b + j}. Answer: {b + j}"
        tokens = tuple(lm.tokenizer(f" {problem}\nSolution: {solution}", add_special_tokens=False)["input_ids"])
        return Example(problem, solution, "", tokens, "" if VALID[b][j] else "unfinished")

    return [tuple(one(b, j) for j in range(4)) for b in range(len(TASKS))]


@dataclass(frozen=True)
class Case:
    config: InnerConfig
    rule: Rule


def case_of(name: str, steps: int, micro_batch: int | None = None) -> Case:
    if name == "sgd":
        return Case(InnerConfig("sgd", SGD_RATE, steps=steps, micro_batch=micro_batch), sgd())
    config = InnerConfig("adamw", ADAM_RATE, steps=steps, eps_root=1e-6, weight_decay=0.1, micro_batch=micro_batch)
    return Case(config, adamw(config.betas, 1e-8, config.eps_root, config.weight_decay))


def start(lm: LM, case: Case, scorer: ScoringConfig | None = None) -> MetaState:
    """theta, eta and the rates away from their special starting values."""
    generator = torch.Generator().manual_seed(5)
    state = init_state(lm, AdaptConfig(scoring=scorer or ScoringConfig(hidden=6), inner=case.config), 0)
    eta = {n: t + 0.5 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in state.eta.items()}
    rates = {n: t + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in state.log_rates.items()}
    return MetaState(random_adapter(lm, 1, scale=0.2), eta, rates)


# ------------------------------------------------------------------------------- ours


def ours(lm: LM, state: MetaState, case: Case, kind: str = "softmax") -> dict[str, Tensor]:
    groups = examples(lm)
    practice, valid = practice_of(lm, groups), valid_mask(groups, lm.device)
    eta = {name: t.clone().requires_grad_() for name, t in state.eta.items()}
    places = list(zip(practice.owners.tolist(), practice.places.tolist(), strict=True))
    scores_N = scoring.score(lm, eta, [TASKS[b].problem for b, _ in places], [groups[b][j] for b, j in places])
    found = meta_gradients(
        inner_loop(practice.losses, case.config, case.config.micro_batch),
        lambda s, alive: practice.pick(scoring.normalise(s, valid & alive[:, None], kind)),
        practice.spread(scores_N.detach(), *valid.shape),
        state.theta,
        state.log_rates,
        lambda adapted: outer.gold_losses(lm, TASKS, OuterConfig(micro_batch=2), adapted),
    )
    grads = torch.autograd.grad(scores_N, list(eta.values()), practice.pick(found.scores))
    return flat(found.outer_loss, found.scores, found.theta, dict(zip(eta, grads, strict=True)), found.log_rates)


def flat(loss: float | Tensor, scores: Tensor, theta: Params, eta: Params, log_rates: Params) -> dict[str, Tensor]:
    """One vector for each kind of gradient, so that a relative error means something."""
    parts = {"loss": [torch.as_tensor(loss, dtype=torch.float64)], "scores": [scores]}
    parts |= {"theta": list(theta.values()), "log rates": list(log_rates.values())}
    parts |= {f"eta {name}": [t] for name, t in eta.items() if name != "head.b2"}  # softmax does not see it
    return {name: torch.cat([t.detach().flatten() for t in tensors]) for name, tensors in parts.items()}


# ------------------------------------------------------------------------------- the reference


def reference(lm: LM, state: MetaState, case: Case, kind: str = "softmax") -> dict[str, Tensor]:
    theta, eta, log_rates = (
        {n: t.clone().requires_grad_() for n, t in p.items()} for p in (state.theta, state.eta, state.log_rates)
    )
    total, scores_of = torch.zeros((), dtype=torch.float64), []
    for task, group in zip(TASKS, examples(lm), strict=True):
        valid = [e for e in group if e.valid]
        scores = scoring.score(lm, eta, [task.problem] * len(valid), valid)
        scores.retain_grad()
        weights = scores.exp() / scores.exp().sum() if kind == "softmax" else 1 / (1 + (-scores).exp()) / len(group)

        def losses(params: Params, _: None, valid: list[Example] = valid) -> Tensor:
            return torch.stack([nll(lm, params, e.problem, e.solution) for e in valid])

        rates = {name: t.exp() for name, t in log_rates.items()}
        adapted = unroll(losses, theta, weights, case.rule, rates, case.config.steps)
        total = total + nll(lm, adapted, task.problem, task.solution)
        scores_of.append(scores)
    total.backward()
    table = torch.zeros(len(TASKS), 4, dtype=torch.float64)
    for b, scores in enumerate(scores_of):
        table[b, torch.tensor(VALID[b])] = scores.grad
    return flat(total, table, *({n: t.grad for n, t in p.items()} for p in (theta, eta, log_rates)))


def nll(lm: LM, params: Params, problem: str, solution: str) -> Tensor:
    """Mean cross-entropy of the solution's tokens, one sequence, weights merged: W + (alpha / r) B A."""
    context, target = lm.example_row(problem, solution)
    scaling = lm.adapters.config.lora_alpha / lm.adapters.config.r
    merged = {
        f"{site.name}.weight": lm.model.get_parameter(f"{site.name}.weight")
        + scaling * params[f"{site.name}.lora_B"] @ params[f"{site.name}.lora_A"]
        for site in lm.adapters.sites
    }
    ids = torch.tensor([context + target])
    with sdpa_kernel(SDPBackend.MATH):  # "eager" takes its softmax in float32
        logits = torch.func.functional_call(lm.model, merged, kwargs={"input_ids": ids, "use_cache": False}).logits
    return cross_entropy(logits[0, len(context) - 1 : -1], ids[0, len(context) :])


def worst(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert got.keys() == expected.keys()
    errors = {name: float((got[name] - expected[name]).norm() / expected[name].norm()) for name in expected}
    return max(errors.values())


# ------------------------------------------------------------------------------- they agree


@pytest.fixture(scope="module")
def lm() -> LM:
    return float64_throughout(make_lm(initializer_range=0.25))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_the_plain_unroll(lm: LM, name: str, steps: int) -> None:
    case = case_of(name, steps)
    state = start(lm, case)
    got, expected = ours(lm, state, case), reference(lm, state, case)
    assert worst(got, expected) < 1e-9
    assert all(float(t.norm()) > 1e-6 for t in expected.values()), "a gradient that is zero proves nothing"


def test_with_sigmoid_weights_and_micro_batches(lm: LM) -> None:
    case = case_of("sgd", 2, micro_batch=3)
    state = start(lm, case, ScoringConfig(hidden=6, likelihood=False))  # else scores lie where a sigmoid has no slope
    expected = reference(lm, state, case, "sigmoid")
    assert worst(ours(lm, state, case, "sigmoid"), expected) < 1e-9
    assert float(expected["scores"].norm()) > 1e-6


def test_with_a_scorer_that_has_a_lora_of_its_own(lm: LM) -> None:
    case = case_of("sgd", 2)
    state = start(lm, case, ScoringConfig(hidden=6, lora_rank=1))
    assert any(name.startswith("lora.") for name in state.eta)
    assert worst(ours(lm, state, case), reference(lm, state, case)) < 1e-9


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_from_a_fresh_adapter(lm: LM, name: str) -> None:
    """B = 0: the gradient of A is exactly zero at the first step."""
    case = case_of(name, 2)
    state = dataclasses.replace(start(lm, case), theta=lm.init_adapter(0))
    got = ours(lm, state, case)
    assert all(bool(t.isfinite().all()) for t in got.values())
    assert worst(got, reference(lm, state, case)) < 1e-9


# ------------------------------------------------------------------------------- planted errors are caught


def first_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recursion.second_order_pass

    def wrong(*args, **kwargs):
        products, weights = right(*args, **kwargs)
        return {name: torch.zeros_like(p) for name, p in products.items()}, weights

    monkeypatch.setattr(recursion, "second_order_pass", wrong)


def neighbour_s_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LM.losses
    monkeypatch.setattr(
        LM,
        "losses",
        lambda self, batch, adapter=None, rows=None: right(
            self, batch, adapter, None if rows is None else rows.roll(1, 0)
        ),
    )


def weights_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from mass.adaptation.batch import Practice

    monkeypatch.setattr(Practice, "pick", lambda self, table: table[self.owners, self.places].flip(0))


@pytest.mark.parametrize("fault", [first_order, neighbour_s_adapter, weights_in_another_order])
def test_a_planted_error_is_far_above_the_tolerance(
    lm: LM, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("sgd", 2)
    state = start(lm, case)
    expected = reference(lm, state, case)
    assert worst(ours(lm, state, case), expected) < 1e-9
    fault(monkeypatch)
    assert worst(ours(lm, state, case), expected) > 1e-3


# ------------------------------------------------------------------------------- without a language model


def toy(scores: Tensor, centres: Tensor, scale: Tensor, steps: int, power: int = 2) -> MetaGradients:
    """Two examples for each of B tasks, l = |t - c|^power / 2; outer loss: scale (t - 7)^2 / 2 of each task."""
    owners = torch.arange(len(centres)) // 2

    def losses(p: Params, _: Tensor | None) -> Tensor:
        return 0.5 * (p["t"][owners, 0] - centres).abs() ** power

    return meta_gradients(
        inner_loop(losses, InnerConfig(steps=steps), None),
        lambda s, alive: (s.sigmoid() * alive[:, None]).flatten(),
        scores,
        {"t": torch.tensor([3.0]).double()},
        {"t": torch.tensor(0.25).double().log()},
        lambda p: (0.5 * scale[b] * (p["t"][b, 0] - 7.0) ** 2 for b in range(len(scale))),
    )


def test_the_inner_update_is_as_configured() -> None:
    rates = {"t": torch.tensor(0.25)}
    assert optimizer_of(InnerConfig(momentum=0.5, clip_norm=2.0), rates) == SGD(rates, momentum=0.5, clip_norm=2.0)
    config = InnerConfig("adamw", betas=(0.8, 0.9), eps_root=1e-5, weight_decay=0.1, clip_norm=3.0)
    expected = AdamW(rates, betas=(0.8, 0.9), eps_root=1e-5, weight_decay=0.1, clip_norm=3.0)
    assert optimizer_of(config, rates) == expected


@pytest.mark.parametrize("where", ["outer loss", "outer gradient", "inner loop"])
def test_a_task_that_is_not_finite_adds_nothing(where: str) -> None:
    """For the inner loop: the steps of the second task overflow, so that its tape itself is not finite."""
    centres, scale = torch.tensor([1.0, 2.5, 4.0, 5.0, 2.8, 1.5]).double(), torch.ones(3).double()
    alone = toy(torch.zeros(2, 2).double(), centres[[0, 1, 4, 5]], scale[:2], 4, power=3)
    assert all(float(g.abs().sum()) > 0 for g in (alone.theta["t"], alone.log_rates["t"], alone.scores))
    if where == "inner loop":
        centres[2] = 1e120
    else:
        scale[1] = torch.nan if where == "outer loss" else torch.inf
    got = toy(torch.zeros(3, 2).double(), centres, scale, 4, power=3)
    assert got.finite.tolist() == [True, False, True]
    torch.testing.assert_close(got.theta["t"], alone.theta["t"])
    torch.testing.assert_close(got.log_rates["t"], alone.log_rates["t"])
    torch.testing.assert_close(got.scores[[0, 2]], alone.scores)
    assert not got.scores[1].any()


def test_gradients_of_a_stack_sum_over_its_tasks() -> None:
    centres, ones = torch.tensor([1.0, -2.0, 4.0, 5.0]).double(), torch.ones(2).double()
    both = toy(torch.zeros(2, 2).double(), centres, ones, 2)
    parts = [toy(torch.zeros(1, 2).double(), centres[i : i + 2], ones[:1], 2) for i in (0, 2)]
    torch.testing.assert_close(both.theta["t"], sum(p.theta["t"] for p in parts))
    torch.testing.assert_close(both.log_rates["t"], sum(p.log_rates["t"] for p in parts))
    torch.testing.assert_close(both.scores, torch.cat([p.scores for p in parts]))
    assert both.outer_loss == pytest.approx(sum(p.outer_loss for p in parts))


def test_without_steps_theta_gets_the_outer_gradient_alone(lm: LM) -> None:
    case = case_of("sgd", 0)
    state = start(lm, case)
    got = ours(lm, state, case)
    stack = {n: t.requires_grad_() for n, t in repeat(state.theta, 3).items()}
    leaves = {n: t.detach().requires_grad_() for n, t in stack.items()}
    sum(outer.gold_losses(lm, TASKS, OuterConfig(), leaves)).backward()
    expected = torch.cat([t.grad.sum(0).flatten() for t in leaves.values()])
    torch.testing.assert_close(got["theta"], expected, rtol=1e-10, atol=1e-13)
    assert not got["scores"].any()
    assert not got["log rates"].any()
