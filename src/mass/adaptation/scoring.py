"""(T, examples) -> scores `s_i = s_eta(T, p_i, a_i)` -> weights `w = normalise(s)` over the valid examples.

The scorer is a head on the frozen base's last hidden states of "synthesis prompt of T, then y_i": their value at the
last token and their mean over y_i. With `lora_rank` > 0 the base reads through a LoRA of the scorer's own. With
`likelihood` the head also sees how likely the frozen base finds the tokens of a_i there: their mean log-probability
and the least of them. The head's last layer starts at zero, so an untrained scorer weighs all examples alike; with
`sharpness` the head starts at s_i = sharpness x that mean log-probability, and training goes on from there.

Legend: N examples in a row, B tasks, m examples of a task, d hidden width, F features.
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
    from mass.lm import LM, Row

Normalise = Literal["softmax", "sigmoid", "uniform"]
_LORA = "lora."
LIKELIHOOD = 2
"""Features of likelihood: mean and least log-probability (nats) of the solution's tokens."""
MOST_LOGITS = 1 << 26
"""Of one pass for likelihoods."""


def init_scorer(lm: LM, config: ScoringConfig, seed: int) -> Params:
    """eta: the head's four tensors, and with `lora_rank` > 0 the scorer's LoRA under names that start with `lora.`.

    It scores all examples alike or, with `sharpness` > 0, by their likelihood.
    """
    generator = torch.Generator().manual_seed(seed)
    features = 2 * lm.width
    hidden = torch.randn(config.hidden, features, generator=generator) / features**0.5
    if config.likelihood:  # few beside the states, so their weights start as large as all of theirs together
        likelihood = torch.randn(config.hidden, LIKELIHOOD, generator=generator) / LIKELIHOOD**0.5
        hidden = torch.cat([hidden, likelihood], 1)
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
    """Two units of the head, of weights of opposite sign, make the score `sharpness` times the mean log-probability:
    gelu(x) - gelu(-x) = x. The sharpness is in the first layer, so that a step of either layer changes a score as much
    as one of any other unit."""
    w1, w2 = eta["head.w1"], eta["head.w2"]
    w1[:2] = 0.0
    w1[:2, -LIKELIHOOD] = torch.tensor([sharpness, -sharpness])
    w2[:2] = torch.tensor([1.0, -1.0])


def score(
    lm: LM, eta: Params, problems: Sequence[str], examples: Sequence[Example], micro_batch: int | None = None
) -> Float[Tensor, " N"]:
    """`s_i` of example i for target `problems[i]`. Differentiable in eta. The cost is one forward pass of the base, two
    with features of likelihood.

    `micro_batch` rows pass at a time, of like length; None: all that fit what is free. The scores are the same but for
    rounding.
    """
    if len(problems) != len(examples):
        raise ShapeError(f"{len(problems)} targets for {len(examples)} examples; expected one each")
    rows = [_row(lm, p, e) for p, e in zip(problems, examples, strict=True)]
    places = _passes(lm, eta, rows, micro_batch)
    order = [i for some in places for i in some]
    parts = [(lm.batch([rows[i] for i in some]), [examples[i].solution for i in some]) for some in places]
    features = torch.cat([_features(lm, eta, batch, solutions) for batch, solutions in parts])
    return head(eta, features[torch.tensor(order, device=features.device).argsort()])


def gradient(
    lm: LM,
    eta: Params,
    problems: Sequence[str],
    examples: Sequence[Example],
    cotangents: Float[Tensor, " N"],
    micro_batch: int | None = None,
) -> Params:
    """Of Σ_i cotangent_i s_i with respect to eta, one pass's graph at a time: a scorer with a LoRA is a whole model."""
    rows = [_row(lm, p, e) for p, e in zip(problems, examples, strict=True)]
    leaves, total = {name: t.detach().requires_grad_() for name, t in eta.items()}, dict[str, Tensor]()
    for some in _passes(lm, eta, rows, micro_batch):
        with torch.enable_grad():
            scores = score(lm, leaves, [problems[i] for i in some], [examples[i] for i in some], len(some))
        grads = torch.autograd.grad(scores, list(leaves.values()), cotangents[some], materialize_grads=True)
        total = {name: total[name] + g if name in total else g for name, g in zip(leaves, grads, strict=True)}
    return total


def has_lora(eta: Params) -> bool:
    return any(name.startswith(_LORA) for name in eta)


def _passes(lm: LM, eta: Params, rows: Sequence[Row], micro_batch: int | None) -> list[list[int]]:
    """Numbers of the rows of each pass, from the shortest to the longest."""
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    longest = max((sum(map(len, row)) for row in rows), default=1)
    kind = "gradient" if has_lora(eta) else "forward"
    size = micro_batch or room.rows_that_fit(lm, max(1, len(rows)), longest, kind)
    return [order[at : at + size] for at in range(0, len(rows), size)]


def _row(lm: LM, problem: str, example: Example) -> Row:
    """The example's tokens after the synthesis prompt of its target."""
    if example.attempt:
        return lm.attempt_row(problem, example.solution)
    return lm.synthesis_prompt(problem), list(example.tokens)


def _features(lm: LM, eta: Params, batch: Batch, solutions: Sequence[str]) -> Float[Tensor, "N F"]:
    """The last state of each row and the mean state of its example, on one scale; then, where the head has a place for
    them, the features of likelihood."""
    lora = {n.removeprefix(_LORA): t for n, t in eta.items() if n.startswith(_LORA)}
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(lora)):
        states = lm.hidden_states(batch, lora or None).to(eta["head.w1"].dtype)
    last = batch.attention_mask.sum(1) - 1
    mask = batch.target_mask.unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
    features = torch.cat([states[torch.arange(len(batch), device=states.device), last], mean], -1)
    features = layer_norm(features, features.shape[-1:])
    if eta["head.w1"].shape[1] == features.shape[1]:
        return features
    return torch.cat([features, _likelihood(lm, batch, solutions).to(features)], -1)


@torch.no_grad()
def _likelihood(lm: LM, batch: Batch, solutions: Sequence[str]) -> Float[Tensor, "N 2"]:
    """Mean and least log-probability (nats) of each row's last tokens, as many as its solution has.

    What a writer finds unlikely of its own solution is more often wrong, so this tells more of an example than states
    from which a small head would have to learn the same.
    """
    rows = likelihood_rows(batch.input_ids.shape[1], lm.model.config.get_text_config().vocab_size)
    parts = [_part_likelihood(lm, batch, solutions, slice(at, at + rows)) for at in range(0, len(batch), rows)]
    return torch.cat(parts)


def likelihood_rows(length: int, vocabulary: int) -> int:
    """Rows of a length that pass at a time for their likelihood, whose logits are far larger than states: as many as
    have at most 2^26 logits, a quarter of a GiB."""
    return max(1, MOST_LOGITS // (length * vocabulary))


def _part_likelihood(lm: LM, batch: Batch, solutions: Sequence[str], rows: slice) -> Float[Tensor, "n 2"]:
    part = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.target_mask[rows])
    if not part.target_mask.any():
        return torch.zeros(len(part), LIKELIHOOD, device=part.input_ids.device)
    logprobs, counted = lm.token_logprobs(part)
    lengths = torch.tensor([len(lm.target_ids(solution)) for solution in solutions[rows]], device=counted.device)
    from_end = counted.flip(1).cumsum(1).flip(1)
    solution = counted & (from_end <= lengths[:, None])
    mean = (logprobs * solution).sum(1) / solution.sum(1).clamp_min(1)
    return torch.stack([mean, logprobs.masked_fill(~solution, 0.0).min(1).values], 1)


def head(eta: Params, features: Float[Tensor, "N F"]) -> Float[Tensor, " N"]:
    """A two-layer perceptron on the features."""
    return gelu(features @ eta["head.w1"].mT + eta["head.b1"]) @ eta["head.w2"] + eta["head.b2"]


def verdict_losses(
    scores: Float[Tensor, "B m"], right: Bool[Tensor, "B m"], judged: Bool[Tensor, "B m"]
) -> Float[Tensor, " B"]:
    """-log of the share of the weight (softmax over what is judged) that lies on what is right. Differentiable.

    0 for a task where all that is judged is right, or nothing is: there is nothing to choose. Raises ShapeError.
    """
    if scores.dim() != 2 or not scores.shape == right.shape == judged.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (scores, right, judged))
        raise ShapeError(f"scores, right and judged are {shapes}; expected all [tasks, examples]")
    right = right & judged
    choice = right.any(1) & (judged & ~right).any(1)
    right, judged = right | ~choice[:, None], judged | ~choice[:, None]
    every, some = (scores.masked_fill(~mask, float("-inf")).logsumexp(1) for mask in (judged, right))
    return (every - some) * choice


def normalise(
    scores: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"], kind: Normalise = "softmax"
) -> Float[Tensor, "B m"]:
    """Weights; 0 where not valid, and all 0 for a task without a valid example.

    softmax: sum to 1 over the valid ones. sigmoid: sigmoid(s) / m each. uniform: 1 / number of valid ones.
    """
    if scores.shape != valid.shape or scores.dim() != 2:
        raise ShapeError(f"scores {list(scores.shape)}, valid {list(valid.shape)}; expected both [tasks, examples]")
    if kind == "sigmoid":
        return torch.sigmoid(scores) * valid / scores.shape[1]
    logits = scores if kind == "softmax" else torch.zeros_like(scores)
    some = valid.any(1, keepdim=True)
    masked = logits.masked_fill(~(valid | ~some), float("-inf"))
    return torch.softmax(masked, 1) * valid
