"""Score practice examples, `s_i = s_eta(T, p_i, a_i)`, and turn the scores into weights, `w = normalise(s)`.

The scorer is a head on the frozen base's last hidden states of "synthesis prompt of T, then y_i": the state at the
last token and the mean state over y_i. With `lora_rank` > 0 the base runs with a LoRA of the scorer's own. With
`likelihood` the head also sees the likelihood that the frozen base gives to the tokens of a_i there: their mean and
their least log-probability. The head's last layer starts at zero, so an untrained scorer weights all examples equally;
with `sharpness` the head starts at s_i = sharpness x that mean log-probability, and training starts from there.

Legend: T the target problem, y_i an example of problem p_i and solution a_i, N examples, n of them in a pass, B tasks,
m examples of a task, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from mass.config import ScoringConfig
from mass.errors import ShapeError
from mass.lm import room
from mass.types import Batch, Example, Params

if TYPE_CHECKING:
    from mass.lm import LM
    from mass.lm.model import Row

Normalise = Literal["softmax", "sigmoid", "uniform"]
_LORA = "lora."
LIKELIHOOD = 2
"""Number of features of likelihood: mean and least log-probability (nats) of the solution's tokens."""
MOST_LOGITS = 1 << 26
"""Most logits of one pass that computes likelihoods."""


def init_scorer(lm: LM, config: ScoringConfig, seed: int) -> Params:
    """Make eta: the head's four tensors and, with `lora_rank` > 0, the scorer's LoRA, whose names start with `lora.`.

    It scores all examples equally or, with `sharpness` > 0, by their likelihood.
    """
    generator = torch.Generator().manual_seed(seed)
    features = 2 * lm.width
    hidden = torch.randn(config.hidden, features, generator=generator) / features**0.5
    if config.likelihood:  # two features among many states: their weights start larger, so that they count
        likelihood = torch.randn(config.hidden, LIKELIHOOD, generator=generator) / LIKELIHOOD**0.5
        hidden = torch.cat([hidden, likelihood], 1)
    if config.agreement:  # before those of likelihood, which are the last columns
        at = features
        hidden = torch.cat([hidden[:, :at], torch.randn(config.hidden, 1, generator=generator), hidden[:, at:]], 1)
    eta: Params = {
        "head.w1": hidden,
        "head.b1": torch.zeros(config.hidden),
        "head.w2": torch.zeros(config.hidden),
        "head.b2": torch.zeros(()),
    }
    if config.sharpness:
        _start_at_likelihood(eta, config.sharpness)
    if config.lora_rank:
        eta |= {f"{_LORA}{n}": t for n, t in lm.adapters.init(seed + 1, rank=config.lora_rank).items()}
    return {name: tensor.to(lm.device, lm.adapter_dtype) for name, tensor in eta.items()}


def _start_at_likelihood(eta: Params, sharpness: float) -> None:
    """Set two units of the head so that the score is `sharpness` times the mean log-probability.

    The two have weights of opposite sign, and gelu(x) - gelu(-x) = x. The sharpness is in the first layer: an optimiser
    step moves every weight by about the same amount, and with a large last layer one step of the first layer would
    change the score far more than through any other unit (docs/adr/0018).
    """
    w1, w2 = eta["head.w1"], eta["head.w2"]
    w1[:2] = 0.0
    w1[:2, -LIKELIHOOD] = torch.tensor([sharpness, -sharpness])
    w2[:2] = torch.tensor([1.0, -1.0])


def score(
    lm: LM, eta: Params, problems: Sequence[str], examples: Sequence[Example], micro_batch: int | None = None
) -> Float[Tensor, " N"]:
    """Return the score `s_i` of example i for its target `problems[i]`. Differentiable in eta.

    The cost is one forward pass of the base, or two with features of likelihood. `micro_batch` is the number of rows in
    a pass, of similar length; None for as many as fit the free memory. It changes the scores by rounding only. Raises
    ShapeError for numbers of problems and examples that differ.
    """
    if len(problems) != len(examples):
        raise ShapeError(f"{len(problems)} targets for {len(examples)} examples; expected one each")
    rows = [_row(lm, p, e) for p, e in zip(problems, examples, strict=True)]
    places = _passes(lm, eta, rows, micro_batch)
    order = [i for some in places for i in some]
    parts = [(lm.batch([rows[i] for i in some]), [examples[i] for i in some]) for some in places]
    features = torch.cat([_features(lm, eta, batch, some) for batch, some in parts])
    # The passes are in order of length; argsort undoes this order.
    return head(eta, features[torch.tensor(order, device=features.device).argsort()])


def gradient(
    lm: LM,
    eta: Params,
    problems: Sequence[str],
    examples: Sequence[Example],
    cotangents: Float[Tensor, " N"],
    micro_batch: int | None = None,
) -> Params:
    """Return the gradient of Σ_i cotangent_i s_i with respect to eta, with one pass's graph alive at a time.

    The scores of a scorer with a LoRA depend on all layers of the model, so their graphs would be large together.
    """
    rows = [_row(lm, p, e) for p, e in zip(problems, examples, strict=True)]
    leaves, total = {name: t.detach().requires_grad_() for name, t in eta.items()}, dict[str, Tensor]()
    for some in _passes(lm, eta, rows, micro_batch):
        with torch.enable_grad():
            scores = score(lm, leaves, [problems[i] for i in some], [examples[i] for i in some], len(some))
        grads = torch.autograd.grad(scores, list(leaves.values()), cotangents[some], materialize_grads=True)
        total = {name: total[name] + g if name in total else g for name, g in zip(leaves, grads, strict=True)}
    return total


def has_lora(eta: Params) -> bool:
    """Return True for a scorer with a LoRA of its own."""
    return any(name.startswith(_LORA) for name in eta)


def _passes(lm: LM, eta: Params, rows: Sequence[Row], micro_batch: int | None) -> list[list[int]]:
    """Return the indices of the rows of each pass, from the shortest to the longest."""
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    longest = max((sum(map(len, row)) for row in rows), default=1)
    kind = "gradient" if has_lora(eta) else "forward"
    size = micro_batch or room.rows_that_fit(lm, max(1, len(rows)), longest, kind)
    return [order[at : at + size] for at in range(0, len(rows), size)]


def _row(lm: LM, problem: str, example: Example) -> Row:
    """Return the example's tokens after the synthesis prompt of its target."""
    if example.attempt:
        return lm.attempt_row(problem, example.solution)
    if example.resolved:  # its solution is not the one that was written with the problem
        return lm.synthesis_prompt(problem), lm.written_ids(example.problem, example.solution)
    return lm.synthesis_prompt(problem), list(example.tokens)


def _features(lm: LM, eta: Params, batch: Batch, examples: Sequence[Example]) -> Float[Tensor, "N F"]:
    """Return the last state of each row and the mean state of its example, normalised together.

    Agreement and the features of likelihood follow, in this order, if the head has inputs for them.
    """
    lora = {n.removeprefix(_LORA): t for n, t in eta.items() if n.startswith(_LORA)}
    # The base is frozen: without a LoRA the states need no graph, and the gradient in eta stops at the head.
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(lora)):
        states = lm.hidden_states(batch, lora or None).to(eta["head.w1"].dtype)
    last = batch.attention_mask.sum(1) - 1
    mask = batch.target_mask.unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
    features = torch.cat([states[torch.arange(len(batch), device=states.device), last], mean], -1)
    features = layer_norm(features, features.shape[-1:])
    beside = eta["head.w1"].shape[1] - features.shape[1]
    if beside in (1, 1 + LIKELIHOOD):
        shares = [1.0 if example.agreement is None else example.agreement for example in examples]
        features = torch.cat([features, features.new_tensor(shares)[:, None]], -1)
    if beside >= LIKELIHOOD:
        likelihood = _likelihood(lm, batch, [example.solution for example in examples])
        features = torch.cat([features, likelihood.to(features)], -1)
    return features


@torch.no_grad()
def _likelihood(lm: LM, batch: Batch, solutions: Sequence[str]) -> Float[Tensor, "N 2"]:
    """Return mean and least log-probability (nats) of each row's last tokens, as many as its solution has.

    A solution that its own writer finds unlikely is more often wrong. A small head would have to learn this from the
    states; the two numbers give it directly (docs/adr/0015).
    """
    rows = likelihood_rows(batch.input_ids.shape[1], lm.model.config.get_text_config().vocab_size)
    parts = [_part_likelihood(lm, batch, solutions, slice(at, at + rows)) for at in range(0, len(batch), rows)]
    return torch.cat(parts)


def likelihood_rows(length: int, vocabulary: int) -> int:
    """Return the number of rows of `length` tokens in one pass for likelihoods: those with at most 2^26 logits.

    That is a quarter of a GiB in float32. Logits are far larger than states, so these passes are smaller than others.
    """
    return max(1, MOST_LOGITS // (length * vocabulary))


def _part_likelihood(lm: LM, batch: Batch, solutions: Sequence[str], rows: slice) -> Float[Tensor, "n 2"]:
    part = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.target_mask[rows])
    if not part.target_mask.any():
        return torch.zeros(len(part), LIKELIHOOD, device=part.input_ids.device)
    logprobs, counted = lm.token_logprobs(part)
    lengths = torch.tensor([len(lm.target_ids(solution)) for solution in solutions[rows]], device=counted.device)
    # The solution's tokens are taken to be the last that count in the row, as many as the solution has by itself.
    from_end = counted.flip(1).cumsum(1).flip(1)
    solution = counted & (from_end <= lengths[:, None])
    mean = (logprobs * solution).sum(1) / solution.sum(1).clamp_min(1)
    return torch.stack([mean, logprobs.masked_fill(~solution, 0.0).min(1).values], 1)


def head(eta: Params, features: Float[Tensor, "N F"]) -> Float[Tensor, " N"]:
    """Return the scores that a two-layer perceptron computes from the features."""
    return gelu(features @ eta["head.w1"].mT + eta["head.b1"]) @ eta["head.w2"] + eta["head.b2"]


def verdict_losses(
    scores: Float[Tensor, "B m"], right: Bool[Tensor, "B m"], judged: Bool[Tensor, "B m"]
) -> Float[Tensor, " B"]:
    """Return -log of the share of the weight that lies on right examples, by softmax over the judged ones.

    Differentiable. It is 0 for a task whose judged examples are all right or all wrong, or which has none: there is
    nothing to choose. Raises ShapeError.
    """
    if scores.dim() != 2 or not scores.shape == right.shape == judged.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (scores, right, judged))
        raise ShapeError(f"scores, right and judged are {shapes}; expected all [tasks, examples]")
    right = right & judged
    choice = right.any(1) & (judged & ~right).any(1)
    # Tasks without a choice get all examples, so that no logsumexp runs over an empty set: -inf - -inf is NaN.
    right, judged = right | ~choice[:, None], judged | ~choice[:, None]
    every, some = (scores.masked_fill(~mask, float("-inf")).logsumexp(1) for mask in (judged, right))
    return (every - some) * choice


def normalise(
    scores: Float[Tensor, "B m"],
    valid: Bool[Tensor, "B m"],
    kind: Normalise = "softmax",
    trust: Float[Tensor, "B m"] | None = None,
) -> Float[Tensor, "B m"]:
    """Turn scores into weights: 0 for invalid examples, and all 0 for a task without a valid one. Differentiable.

    softmax: the weights of the valid examples sum to 1. sigmoid: each weight is sigmoid(s) / m, so the scorer can give
    a low weight to all. uniform: each weight is 1 / number of valid examples. `trust`, numbers above 0, multiplies the
    weights, which then sum to 1 again, except with sigmoid. Raises ShapeError.
    """
    if scores.shape != valid.shape or scores.dim() != 2:
        raise ShapeError(f"scores {list(scores.shape)}, valid {list(valid.shape)}; expected both [tasks, examples]")
    if kind == "sigmoid":
        return torch.sigmoid(scores) * valid / scores.shape[1] * (1 if trust is None else trust)
    logits = scores if kind == "softmax" else torch.zeros_like(scores)
    if trust is not None:
        logits = logits + trust.log()
    some = valid.any(1, keepdim=True)
    # A task without a valid example is left unmasked, as softmax over -inf alone is NaN; the product below zeroes it.
    masked = logits.masked_fill(~(valid | ~some), float("-inf"))
    return torch.softmax(masked, 1) * valid
