"""Let the model complete samples that end after the problem: the label of the solution is appended, and it continues.

A small chat model that is asked for a problem and a solution sometimes ends its turn after the problem (11 of 72 texts
of Qwen2.5-Coder-0.5B for problems of GSM8K). Such a text is not a practice example, and lacks only the solution.
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
    """Return the samples in their order, those without a solution completed.

    A completed sample has the tokens of its problem, of the label and of the continuation. It has no
    log-probabilities, as the model did not sample the label.
    """
    lacking = [place for place, sample in enumerate(samples) if _lacks_solution(lm, sample)]
    if not lacking:
        return list(samples)
    label, label_ids = lm.solution_label()
    # Without the last token, which ended the model's turn.
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
    """Return True where the text begins with a problem and the model ended its turn without a solution."""
    opened = bool(lm.prompts.opens) and sample.finished and sample.tokens[-1] in lm.end_ids
    return opened and read(sample.text, lm.prompts.form, opening=lm.prompts.opens).reason == NO_SOLUTION
