"""Log-probabilities by chunks against those from all logits: values, derivatives, meta-gradients, bytes."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mass.adaptation import drift as canary
from mass.errors import ConfigError
from mass.lm import LM, logprobs
from mass.lm.head import Head
from mass.lm.logprobs import Predictions, always_chunked, of_logits, of_states
from mass.metagrad import SGD, adapt, traced
from mass.types import Batch, Params
from peak import Peak
from small_lms import ARCHITECTURES, float64_throughout, make_lm, random_adapter

HEADS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"cap": 1.5},
    "scaled and capped": {"scale": 2.5, "cap": 3.0},
}
TOKENS, WIDTH, WORDS = 7, 4, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of the functions below, one to some of the models': the last chunk is not full."""
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": 3 * WORDS})


def made(name: str, *, bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    head = Head(draw(WORDS, WIDTH).to(dtype), draw(WORDS).to(dtype) if bias else None, **HEADS[name])
    return head, draw(TOKENS, WIDTH).to(dtype), torch.randint(WORDS, (TOKENS,), generator=generator)


def plainly(head: Head, states: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, by the formula."""
    z = states @ head.weight.mT + (0 if head.bias is None else head.bias)
    s = head.scale * z if head.cap is None else head.cap * (head.scale * z / head.cap).tanh()
    return s.log_softmax(-1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_two_derivatives_equal_central_differences(name: str, bias: bool) -> None:
    head, states, targets = made(name, bias=bias)
    function = functools.partial(of_states, head, targets=targets)
    assert torch.autograd.gradcheck(function, states.requires_grad_())
    assert torch.autograd.gradgradcheck(function, states)


@pytest.mark.parametrize("name", HEADS)
def test_values_and_derivatives_equal_those_of_all_logits(name: str) -> None:
    head, states, targets = made(name, bias=True)
    states.requires_grad_()
    cotangent, direction = torch.linspace(-1, 2, TOKENS, dtype=torch.float64).requires_grad_(), torch.ones_like(states)
    found: list[list[Tensor]] = []
    for function in (of_states, plainly):
        value = function(head, states, targets)
        (first,) = torch.autograd.grad(value, states, cotangent, create_graph=True)
        found.append([value, first, *torch.autograd.grad((first * direction).sum(), [states, cotangent])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_third_derivative_is_refused() -> None:
    head, states, targets = made("plain", bias=False)
    states.requires_grad_()
    (first,) = torch.autograd.grad(of_states(head, states, targets).sum(), states, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), states, create_graph=True)
    with pytest.raises(ConfigError, match="fewer tokens"):
        second.sum().backward()


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_errs_no_more_than_from_all_logits(name: str) -> None:
    head, states, targets = made(name, bias=False)
    narrow = Head(head.weight.bfloat16(), None, head.scale, head.cap)
    exact = Head(narrow.weight.double(), None, head.scale, head.cap)

    def derivatives(function: Callable[..., Tensor], head: Head, dtype: torch.dtype) -> list[Tensor]:
        leaf = states.bfloat16().to(dtype).requires_grad_()
        value = function(head, leaf, targets)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        return [t.detach().double() for t in (value, first, second)]

    wanted = derivatives(plainly, exact, torch.float64)
    by_logits = derivatives(lambda head, h, t: of_logits(head.logits(h), t), narrow, torch.bfloat16)
    for got, plain, exactly in zip(derivatives(of_states, narrow, torch.bfloat16), by_logits, wanted, strict=True):
        assert (got - exactly).norm() <= 1.2 * (plain - exactly).norm() + 2e-3 * exactly.norm()


def test_sure_tokens_keep_their_digits() -> None:
    states, targets = torch.tensor([[1000.0, 990.0, 3.0]]), torch.tensor([0])
    exact = torch.log_softmax(states.double(), -1)[0, 0]
    found = of_states(Head(torch.eye(3)), states, targets)
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-3, atol=0)


def test_under_autocast_it_multiplies_in_its_precision() -> None:
    head, states, targets = made("plain", bias=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = of_states(head, states, targets)
        expected = of_logits(head.logits(states), targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, of_states(head, states, targets))


# ------------------------------------------------------------------------------- models

FAMILIES: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ARCHITECTURES},
    "Cohere": {"logit_scale": 0.4},
    "Granite": {"logits_scaling": 3.0},
}
MORE = {"num_key_value_heads": 1, "max_position_embeddings": 256, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip


@functools.cache
def family(kind: str) -> LM:
    if kind not in ARCHITECTURES:
        ARCHITECTURES[kind] = MORE
        try:
            return float64_throughout(make_lm(kind, **FAMILIES[kind]))
        finally:
            del ARCHITECTURES[kind]
    return float64_throughout(make_lm(kind))


@functools.cache
def rows_of(lm: LM) -> tuple[Batch, Batch]:
    rows = [lm.example_row(f"Compute {i} + 2{' and more' * i}.", f"{i}+2={i + 2}. Answer: {i + 2}") for i in range(4)]
    return lm.batch(rows[:3]), lm.batch(rows[3:])


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_head_of_every_family_is_found(kind: str) -> None:
    lm = family(kind)
    batch, adapter = rows_of(lm)[0], random_adapter(lm, scale=0.1)
    head = lm.reader.head()
    assert head is not None
    assert (head.cap, round(head.scale, 12)) == {
        "Gemma2": (3.0, 1.0),
        "Cohere": (None, 0.4),
        "Granite": (None, round(1 / 3, 12)),
    }.get(kind, (None, 1.0))
    expected, mask = lm.token_logprobs(batch, adapter)
    with always_chunked():
        found, _ = lm.token_logprobs(batch, adapter)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert mask.any()


def gradients(lm: LM, steps: int = 2, **options: Any) -> Params:
    """Meta-gradients of weights, start and rates, and what was adapted."""
    practice, outer = rows_of(lm)
    start = {name: t.requires_grad_() for name, t in random_adapter(lm, scale=0.1).items()}
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    rates = torch.linspace(0.02, 0.05, len(start), dtype=torch.float64).requires_grad_()
    adapted = adapt(
        lambda params, index: lm.losses(practice.select(index), params), start, weights,
        SGD(dict(zip(start, rates.unbind(), strict=True)), momentum=0.5), steps, **options,
    )  # fmt: skip
    loss = lm.losses(outer, adapted).sum()
    found = torch.autograd.grad(loss, [weights, rates, *start.values()])
    return {"weights": found[0], "rates": found[1], **dict(zip(start, found[2:], strict=True)), "loss": loss.detach()}


def worst(found: Params, expected: Params) -> float:
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp_min(1e-300)) for n in expected)


@pytest.mark.parametrize("kind", ["Qwen2", "Gemma2", "Cohere", "Granite", "GPT2"])
def test_meta_gradients_are_those_of_all_logits(kind: str) -> None:
    lm = family(kind)
    expected = gradients(lm)
    with always_chunked():
        assert worst(gradients(lm), expected) < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch": 1},
        {"memory_gb": 1.0},
        {"memory_gb": 1.0, "micro_batch": 1},
        {"checkpoint": True},
        {"mode": "truncated(1)"},
        {"mode": "truncated(0)"},
        {"mode": "first_order"},
        {"mode": "finite_difference"},
    ],
    ids=str,
)
def test_every_route_of_the_engine_takes_it(options: dict[str, Any]) -> None:
    lm = family("Gemma2")
    expected = gradients(lm, **options)
    with always_chunked():
        found = gradients(lm, **options)
    assert worst(found, expected) < (1e-5 if options.get("mode") == "finite_difference" else 1e-9)


@pytest.mark.parametrize("options", [{"compiled": False}, {"backend": "aot_eager"}], ids=str)
def test_recorded_losses_take_it_and_keep_no_logits(options: dict[str, Any]) -> None:
    lm = family("Qwen2")
    batch, _ = rows_of(lm)

    def function(params: Params, ids: Tensor, attention: Tensor, counted: Tensor) -> Tensor:
        return lm.losses(Batch(ids, attention, counted), params)

    start = random_adapter(lm, scale=0.1)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)

    def found(losses: Any, **more: Any) -> Params:
        params = {name: t.clone().requires_grad_() for name, t in start.items()}
        leaf = weights.clone().requires_grad_()
        adapted = adapt(losses, params, leaf, SGD(0.05), 2, **more)
        grads = torch.autograd.grad(sum(p.sin().sum() for p in adapted.values()), [leaf, *params.values()])
        return dict(zip(["weights", *params], grads, strict=True))

    expected = found(lambda params, index: lm.losses(batch.select(index), params))
    with always_chunked():
        recorded = traced(function, **options)
        losses = recorded.of(batch.input_ids, batch.attention_mask, batch.target_mask)
        assert worst(found(losses), expected) < 1e-9
        assert worst(found(losses, memory_gb=1.0), expected) < 1e-9
    (recording,) = recorded._recordings.values()
    nodes = list(recording._record._module.graph.nodes)
    assert sum("target_logprobs" in str(node.target) for node in nodes) >= 2
    words = lm.vocabulary
    shapes = [tuple(node.meta["val"].shape) for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    assert not [shape for shape in shapes if len(shape) > 1 and shape[-1] == words]


def test_the_drift_keeps_no_distribution_and_is_the_same() -> None:
    lm = family("Gemma2")
    practice, _ = rows_of(lm)
    theta, adapted = random_adapter(lm, 1, scale=0.1), random_adapter(lm, 2, scale=0.1)
    rows = tuple((row[:3].tolist(), row[3:12].tolist()) for row in practice.input_ids)
    answers = canary.Answers(rows, torch.zeros(3, dtype=torch.long), torch.full((3,), 1 / 3, dtype=torch.float64))

    def gradient() -> list[Tensor]:
        leaves = {name: t.clone().requires_grad_() for name, t in adapted.items()}
        total = sum(canary.kl_losses(lm, answers, theta, leaves, None))
        assert isinstance(total, Tensor)
        return [total, *torch.autograd.grad(total, list(leaves.values()))]

    expected = gradient()
    with always_chunked():
        for one, other in zip(gradient(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_alternatives_are_judged_in_parts() -> None:
    head, states, _ = made("capped", bias=True)
    tokens = torch.randint(WORDS, (4, TOKENS), generator=torch.Generator().manual_seed(1))
    tokens[2] = head.logits(states).argmax(-1)
    every = head.logits(states).log_softmax(-1)
    with always_chunked():
        assert [len(part) for part in Predictions(states, head).split()] == [3, 3, 1]
        values, best = Predictions(states, head).of(tokens)
    torch.testing.assert_close(values, every.gather(1, tokens.mT).mT)
    assert best.tolist() == (tokens == tokens[2]).tolist()


# ------------------------------------------------------------------------------- heads that are no such function


class Squared(torch.nn.Module):
    """Makes of a model's logits what no scale or cap does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config
        self.get_output_embeddings, self.get_input_embeddings = model.get_output_embeddings, model.get_input_embeddings

    def forward(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        output.logits = output.logits + 0.1 * output.logits.square()
        return output


def test_a_model_that_bends_its_logits_otherwise_keeps_them() -> None:
    lm = make_lm("Llama")
    expected = lm.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    bent = Squared(lm.model)
    assert logprobs_of(bent, lm).reader.head() is None
    assert torch.equal(lm.model(input_ids=torch.tensor([[1, 2, 3]])).logits, expected), "the hooks left something"


def logprobs_of(model: Any, lm: LM) -> LM:
    return LM(model, lm.tokenizer, "bent", lm.prompts, lm.adapters)


def test_a_head_that_learns_gets_its_gradient() -> None:
    lm = make_lm("Qwen2", tie_word_embeddings=False)
    batch = lm.batch([lm.example_row("Compute 3 + 4.", "3+4=7. Answer: 7")])
    lm.model.lm_head.weight.requires_grad_(True)
    with always_chunked():
        assert lm.reader.head() is None
        lm.losses(batch).sum().backward()
    assert lm.model.lm_head.weight.grad.any()


# ------------------------------------------------------------------------------- bytes

COUNTED, VOCABULARY = 1024, 152_000


@pytest.fixture
def usual_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": 1 << 23})
    return


@pytest.mark.usefixtures("usual_chunks")
def test_a_second_order_pass_holds_a_fraction_of_its_logits() -> None:
    lm = make_lm("Qwen2", torch.float32, vocab_size=VOCABULARY, max_position_embeddings=2048)
    batch = lm.batch([([1] * 4, [5] * COUNTED)])
    params = {name: t.requires_grad_() for name, t in random_adapter(lm).items()}
    with Peak() as peak:
        grads = torch.autograd.grad(lm.losses(batch, params).sum(), list(params.values()), create_graph=True)
        kept = peak.live
        torch.autograd.grad(sum(g.square().sum() for g in grads), list(params.values()))
    one = COUNTED * VOCABULARY * 4
    assert kept < 0.05 * one
    assert peak.peak < 0.6 * one


PROGRAM = """
import sys, torch
sys.path[:0] = {path}
from mass.metagrad import SGD, adapt
from small_lms import make_lm, random_adapter

def high():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

def run(counted):
    batch = lm.batch([([1] * 4, [5] * counted), ([1] * 4, [6] * counted)])
    start = {{name: t.requires_grad_() for name, t in random_adapter(lm).items()}}
    weights = torch.full((2,), 0.5, requires_grad=True)
    adapted = adapt(lambda p, i: lm.losses(batch.select(i), p), start, weights, SGD(0.01), 2, 1)
    lm.losses(batch, adapted).sum().backward()

lm = make_lm("Qwen2", torch.bfloat16, vocab_size={vocabulary}, max_position_embeddings=2048)
run(4)
before = high()
run({counted})
print(high() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_never_holds_the_logits_of_a_meta_gradient() -> None:
    program = PROGRAM.format(path=sys.path, vocabulary=VOCABULARY, counted=COUNTED)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # The logits of one text: autograd keeps several times as much of each. How much of it is the allocator's differs by
    # machine (0.3 to 0.63 of it were seen); what our own tensors hold is bounded closer in the test above.
    assert int(done.stdout) < COUNTED * VOCABULARY * 4
