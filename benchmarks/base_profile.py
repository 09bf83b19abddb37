"""A base model on minimath -> what it shows and what it knows: greedy, pass@1, pass@k and maj@k, by subject and level.

    python benchmarks/base_profile.py --split test --size 1000 --out profile.json

pass@k: at least one of k samples at temperature 1 is right; maj@k: the most frequent of their answers is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from research.models import TINY

from mass import tasks, verify
from mass.config import LoraConfig, ModelConfig, SamplingConfig
from mass.evaluation.votes import majority
from mass.lm import load_lm
from mass.runs.folder import replace_text
from mass.seeds import derive
from mass.types import Sample, Task

TRY = re.compile(r"Try .*\. (ok|no)\. Answer:")


def right(task: Task, sample: Sample) -> bool:
    return verify.check(task, sample.text).correct is True


def elected(task: Task, samples: list[Sample]) -> bool:
    return right(task, samples[majority([s.text for s in samples], task.verifier)[0]])


def mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def tries(problems: list[Task], groups: list[list[Sample]]) -> dict[str, float]:
    """Whether the test of a tried value tells: how often a sample is right that calls its value ok, or no."""
    said: dict[str, list[float]] = {"ok": [], "no": []}
    for task, group in zip(problems, groups, strict=True):
        for sample in group:
            if (found := TRY.search(sample.text)) is not None:
                said[found[1]].append(right(task, sample))
    return {f"right where it says {word} ({len(values)})": mean(values) for word, values in said.items()}


def profile(name: str, source: str, split: str, size: int, k: int, seed: int, max_tokens: int) -> dict[str, object]:
    lm = load_lm(ModelConfig(name=name), LoraConfig())
    problems = tasks.load(source, split=split, size=size, seed=seed)
    prompts = [lm.solve_prompt(task.problem) for task in problems]
    greedy = lm.sample(prompts, SamplingConfig(max_tokens, 0.0), [0] * size)
    seeds = [derive(seed, "profile", i) for i in range(size * k)]
    flat = lm.sample([p for p in prompts for _ in range(k)], SamplingConfig(max_tokens, 1.0), seeds)
    groups = [flat[i * k : (i + 1) * k] for i in range(size)]
    pages = lm.sample([lm.synthesis_prompt(t.problem) for t in problems], SamplingConfig(128, 1.0), seeds[:size])
    measures: dict[str, list[float]] = {
        "greedy": [right(t, s) for t, s in zip(problems, greedy, strict=True)],
        "pass@1": [mean([right(t, s) for s in g]) for t, g in zip(problems, groups, strict=True)],
        f"pass@{k}": [any(right(t, s) for s in g) for t, g in zip(problems, groups, strict=True)],
        f"maj@{k}": [elected(t, g) for t, g in zip(problems, groups, strict=True)],
        "greedy answers without steps": [s.text.strip().startswith("Answer") for s in greedy],
        "well-formed practice": [s.finished and "\nSolution:" in s.text for s in pages],
    }

    def table(of: Callable[[Task], object]) -> dict[str, dict[str, float]]:
        keys = sorted({str(of(t)) for t in problems})
        rows = {key: [i for i, t in enumerate(problems) if str(of(t)) == key] for key in keys}
        return {key: {m: mean([v[i] for i in index]) for m, v in measures.items()} for key, index in rows.items()}

    return {
        "model": name,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "tasks": {
            "source": source,
            "split": split,
            "size": size,
            "seed": seed,
            "hash": tasks.content_hash(problems),
        },
        "all": {name: mean(values) for name, values in measures.items()},
        "tries": tries(problems, groups),
        "by_subject": table(lambda t: t.subject),
        "by_level": table(lambda t: t.level),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--tasks", default="minimath", choices=list(tasks.minimath.SOURCES))
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_new_tokens", type=int, default=72, help="of an answer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = json.dumps(
        profile(args.model, args.tasks, args.split, args.size, args.samples, args.seed, args.max_new_tokens), indent=2
    )
    print(result)
    if args.out:
        replace_text(args.out, result + "\n")


if __name__ == "__main__":
    main()
