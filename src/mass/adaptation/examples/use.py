"""Given examples -> what a model with them is: an adapter, examples to show, a record, and the choice.

Legend: B = 1 adapter at the end.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mass.adaptation.adapt import update_norms, why_fall_back
from mass.adaptation.checkpoint import MetaState
from mass.adaptation.examples.asking import asking_as_is, fitting
from mass.adaptation.examples.choosing import Chooser
from mass.adaptation.examples.given import ExampleSet, clean
from mass.adaptation.examples.learning import held_out_losses, inner_config, learn
from mass.adaptation.examples.lessons import Taught, lessons_of
from mass.adaptation.examples.writing import write
from mass.config import ExamplesConfig, SamplingConfig, ScoringConfig, config_hash, to_dict
from mass.lm.lora import adapter_hash, pick
from mass.lm.prompts import kind_of, to_json
from mass.seeds import derive
from mass.tasks.few_shot import Examples
from mass.timing import Clock
from mass.types import Adaptation, Candidate, Choice, Example, Pair, Params

if TYPE_CHECKING:
    from mass.lm import LM


@dataclass(frozen=True)
class Used:
    """A model with given examples."""

    lm: LM
    """Asks questions as they are."""
    adapter: Params
    """The adapter that answers: the start where nothing is learned."""
    shots: tuple[Pair, ...]
    """Examples before each question; none where they are in the weights alone."""
    record: Adaptation
    choice: Choice
    answer: SamplingConfig
    """How answers are sampled: greedily, and not much longer than the longest output."""


def use(lm: LM, state: MetaState, given: Examples, config: ExamplesConfig, weighing: ScoringConfig, seed: int) -> Used:
    """Choose how to use the examples, unless `config.method` says it, and do so.

    Raises DataError for examples that cannot be used.
    """
    began, clock = time.perf_counter(), Clock()
    lm = asking_as_is(lm, given.instruction, kind_of(given.tasks[0]))
    examples = clean(lm, given.tasks, config)
    deadline = math.inf if config.budget_s is None else began + config.budget_s
    chooser = Chooser(lm, state.theta, examples, config, seed, clock, deadline)
    choice = chooser.choose() if config.method == "auto" else _as_asked(config, examples)
    written: tuple[Example, ...] = ()
    adapter, taught, reason, norm = state.theta, tuple[Example, ...](), "", 0.0
    if choice.chosen.adapts:
        if config.written:
            with clock.stage("writing"):
                written = write(lm, state, examples, config, weighing, derive(seed, "writing"))
        adapter, taught, reason, norm = _learn(lm, state.theta, examples, written, config, choice.chosen, seed, clock)
    if reason:
        choice = dataclasses.replace(choice, chosen=Candidate("in-context"), reason=f"{choice.reason}; but {reason}")
    longest = max((task.problem for task in examples.tasks), key=len)
    shots = fitting(lm, examples.pairs, longest, examples.answer_tokens) if choice.chosen.shows else ()
    if len(shots) < len(examples) and choice.chosen.shows:
        said = f"{len(shots)} of {len(examples)} examples fit before a question, and are shown"
        choice = dataclasses.replace(choice, notes=(*choice.notes, said))
    record = Adaptation(
        problem=f"{len(examples)} examples",
        model=lm.name,
        seed=seed,
        config=to_dict(config),
        config_hash=config_hash(config),
        kind=lm.kind,
        prompts=to_json({lm.kind: lm.prompts})[lm.kind],
        examples=taught or tuple(Example(*pair) for pair in examples.pairs),
        fallback=reason,
        adapter_hash=adapter_hash(adapter),
        update_norm=norm,
        tokens={"choosing": chooser.tokens, "written": sum(len(one.tokens) for one in written)},
        seconds=clock.seconds,
    )
    return Used(lm, adapter, shots, record, choice, SamplingConfig(examples.answer_tokens, 0.0))


def _as_asked(config: ExamplesConfig, examples: ExampleSet) -> Choice:
    learns = config.method.startswith("adapted")
    settings = (config.learning_rates[0], config.epochs[-1]) if learns else (None, None)
    return Choice(Candidate(config.method, *settings), (), f"{config.method}, as asked for", 0, examples.notes)


@torch.no_grad()
def _learn(
    lm: LM,
    theta: Params,
    examples: ExampleSet,
    written: tuple[Example, ...],
    config: ExamplesConfig,
    chosen: Candidate,
    seed: int,
    clock: Clock,
) -> tuple[Params, tuple[Example, ...], str, float]:
    """Return the adapter, the examples with their losses, the reason for discarding it (or ""), and its change."""
    assert chosen.learning_rate is not None
    assert chosen.epochs is not None
    rate, epochs = chosen.learning_rate, chosen.epochs
    used = [one for one in written if one.valid]
    share = config.written_share if used else 0.0
    parts = [Taught(p, (1 - share) * w / len(examples)) for p, w in zip(examples.pairs, examples.weights, strict=True)]
    parts += [Taught((one.problem, one.solution), one.weight) for one in used]
    with clock.stage("learning"):
        limit = config.max_example_tokens
        lessons = lessons_of(lm, [parts], config.rows, epochs, config.batch, limit, [derive(seed, "lessons")])
        adapter = pick(learn(theta, lessons, config, [rate], [epochs])[epochs], 0)
    rows = [lm.example_row(*part.pair) for part in parts]
    with clock.stage("losses of the examples"):
        before, after = held_out_losses(lm, rows, theta).tolist(), held_out_losses(lm, rows, adapter).tolist()
    given = [Example(*pair) for pair in examples.pairs]
    taught = tuple(
        dataclasses.replace(one, weight=part.weight, loss_before=b, loss_after=a)
        for one, part, b, a in zip([*given, *used], parts, before, after, strict=True)
    )
    (norm,) = update_norms(*({name: t[None] for name, t in params.items()} for params in (adapter, theta)))
    limit = inner_config(config, rate, lessons.steps).max_update_norm
    reason = why_fall_back(norm, any_valid=True, limit=limit)
    rejected = tuple(one for one in written if not one.valid)
    return (theta if reason else adapter), (*taught, *rejected), reason, norm
