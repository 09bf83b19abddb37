"""Samples that end after their problem -> the same with a solution: its label is written for the model, which goes on.

A small chat model that was asked for a problem and a solution ends its turn after the problem now and then (11 of 72
texts of Qwen2.5-Coder-0.5B for problems of GSM8K). Such a text is no practice, and all that it lacks is the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.adaptation.synthesis.reading import NO_SOLUTION, read
from mass.config import SamplingConfig
from mass.seeds import derive
from mass.types import Params, Sample

if TYPE_CHECKING:
    from mass.lm import LM


def with_solutions(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sample],
    config: SamplingConfig,
    seeds: Sequence[int],
    writer: Params | None,
) -> list[Sample]:
    """The samples in their order. One that was continued has the tokens of its problem, of the label and of what the
    model wrote after it, and no log-probabilities: those of the label would not be the model's own."""
    lacking = [place for place, sample in enumerate(samples) if _lacks_solution(lm, sample)]
    if not lacking:
        return list(samples)
    label, label_ids = lm.solution_label()
    heads = {place: [*samples[place].tokens[:-1], *label_ids] for place in lacking}
    fitting = [place for place in lacking if len(prompts[place]) + len(heads[place]) < lm.context]
    continued = lm.writing().sample(
        [[*prompts[place], *heads[place]] for place in fitting],
        config,
        [derive(seeds[place], "solution") for place in fitting],
        writer,
    )
    found = list(samples)
    for place, rest in zip(fitting, continued, strict=True):
        text = samples[place].text.rstrip() + label + rest.text
        found[place] = Sample((*heads[place], *rest.tokens), text, rest.finished)
    return found


def _lacks_solution(lm: LM, sample: Sample) -> bool:
    """True where the model opened a problem and ended its turn without a solution."""
    opened = bool(lm.prompts.opens) and sample.finished and sample.tokens[-1] in lm.end_ids
    return opened and read(sample.text, lm.prompts.form, opening=lm.prompts.opens).reason == NO_SOLUTION
