"""A problem -> candidate practice Examples: `y_i ~ pi_theta(. | synthesis prompt of T)`, parsed, or rejected and why.

Source: arXiv 2603.03524, section on self-synthesis. Only the problem's own text is read, never its gold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.config import SynthesisConfig
from mass.seeds import derive
from mass.types import Example, Params, Sample

if TYPE_CHECKING:
    from mass.lm import LM

_SOLUTION = re.compile(r"^[ \t]*[*#]*[ \t]*solution[ \t]*[*]*[ \t]*:[ \t]*[*]*", re.IGNORECASE | re.MULTILINE)
_PROBLEM = re.compile(
    r"^[ \t]*[*#]*[ \t]*(?:similar |new )?problem[ \t]*[*]*[ \t]*:[ \t]*[*]*", re.IGNORECASE | re.MULTILINE
)


def synthesise(
    lm: LM,
    problems: Sequence[str],
    config: SynthesisConfig,
    seeds: Sequence[int],
    theta: Params | None,
    *,
    with_logprobs: bool = False,
) -> list[tuple[Example, ...]]:
    """`config.examples` candidates for each problem, sampled side by side with the shared adapter `theta`.

    Those of problem i are a function of the problem, `seeds[i]` and `theta`.
    """
    m = config.examples
    prompts = [lm.synthesis_prompt(problem) for problem in problems]
    rows = [prompt for prompt in prompts for _ in range(m)]
    row_seeds = [derive(seed, "synthesis", j) for seed in seeds for j in range(m)]
    writer = theta if config.writer == "theta" else None
    samples = lm.sample(rows, config.sampling, row_seeds, writer, with_logprobs=with_logprobs)
    return [judge(lm, problem, samples[i * m : (i + 1) * m], config) for i, problem in enumerate(problems)]


def judge(lm: LM, target: str, samples: Sequence[Sample], config: SynthesisConfig) -> tuple[Example, ...]:
    """Parse one problem's samples and say of each why it is not used, if it is not."""
    examples: list[Example] = []
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        problem, solution = parse(sample.text) or ("", "")
        key = (_normal(problem), _normal(solution))
        rejected = _why_rejected(lm, target, sample, problem, solution, key in seen, config)
        if not rejected:
            seen.add(key)
        examples.append(Example(problem, solution, sample.text, sample.tokens, rejected, logprobs=sample.logprobs))
    return tuple(examples)


def parse(text: str) -> tuple[str, str] | None:
    """(problem, solution) of a generated text: what stands before the first line `Solution:` and after it.

    A leading `Problem:` and Markdown emphasis around the two words are accepted. None where a part is missing.
    """
    split = _SOLUTION.search(text)
    if split is None:
        return None
    head, solution = text[: split.start()], text[split.end() :].strip()
    labels = list(_PROBLEM.finditer(head))
    problem = (head[labels[-1].end() :] if labels else head).strip()
    return (problem, solution) if problem and solution else None


def _why_rejected(
    lm: LM, target: str, sample: Sample, problem: str, solution: str, repeated: bool, config: SynthesisConfig
) -> str:
    if not sample.finished:
        return "unfinished"
    if not problem:
        return "unparsed"
    if repeated:
        return "repeat"
    if not config.allow_copies and _normal(problem) == _normal(target):
        return "copy"
    limit = min(config.max_example_tokens, lm.context)
    return "too long" if lm.example_tokens(problem, solution) > limit else ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
