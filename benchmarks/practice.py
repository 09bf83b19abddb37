"""A model, problems, prompts files -> the share of usable practice, by reason, and how near the problem it is.

    python benchmarks/practice.py --model qwen2.5-coder-0.5b.gguf --tasks ../shared/data/gsm8k_test.jsonl --size 100 \\
        --prompts "" before.txt --temperature 0.7 --out results/practice

Each prompts file ("" stands for the package's own) writes m examples for the same problems from the same seeds.
Nearness is measured by two numbers of the usable ones, each a median over them: the edit distance between the two
problems over the length of the longer (0: a copy), and the cosine of their mean hidden states in the base, centred by
the mean over all problems (1: the same text). Intervals are 95%, by a bootstrap over problems. Writes practice.json,
practice.md and what was written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from research.appraisal import edit_distance

from mass.adaptation.synthesis import synthesise
from mass.bootstrap import mean_interval
from mass.cli.allocator import restart_with_kept_memory
from mass.config import LoraConfig, ModelConfig, SamplingConfig, SynthesisConfig
from mass.lm import LM, load_lm
from mass.lm.prompts import common_kind
from mass.runs.folder import replace_text
from mass.seeds import derive
from mass.tasks import load
from mass.types import Example, Task


@dataclass(frozen=True)
class Row:
    """What one prompts file brought."""

    prompts: str
    usable: float
    low: float
    high: float
    reasons: dict[str, float]
    """Share of all that was written, by why it is not used."""
    edit_distance: float
    similarity: float
    tokens: float
    """Per example."""
    seconds: float
    """Per problem."""


def main() -> None:
    given = arguments()
    tasks = list(load(given.tasks, size=given.size, seed=given.seed))
    sampling = SamplingConfig(given.max_new_tokens, given.temperature, given.top_p)
    config = SynthesisConfig(examples=given.examples, sampling=sampling)
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for prompts in given.prompts:
        model = ModelConfig(name=given.model, prompts=prompts or None, dtype=given.dtype, decode_rows=given.rows)
        lm = load_lm(model, LoraConfig()).asking(common_kind(tasks))
        groups, seconds = written(lm, tasks, config, given.seed)
        rows.append(summary(prompts or "the package's own", lm, tasks, groups, seconds))
        print(line(rows[-1]), flush=True)
        name = Path(prompts).stem if prompts else "own"
        texts = [{"problem": t.problem, "written": [asdict(e) for e in g]} for t, g in zip(tasks, groups, strict=True)]
        replace_text(given.out / f"written-{name}.json", json.dumps(texts, indent=1))
    settings = {k: str(v) for k, v in vars(given).items()}
    replace_text(given.out / "practice.json", json.dumps({"settings": settings, "rows": [asdict(r) for r in rows]}))
    replace_text(given.out / "practice.md", "\n".join([HEAD, *map(line, rows), ""]))


def written(
    lm: LM, tasks: Sequence[Task], config: SynthesisConfig, seed: int
) -> tuple[list[tuple[Example, ...]], float]:
    """The examples of each task, and the seconds of all."""
    start, groups = time.perf_counter(), list[tuple[Example, ...]]()
    for at in range(0, len(tasks), 16):
        part = tasks[at : at + 16]
        seeds = [derive(seed, "practice", task.id) for task in part]
        groups += synthesise(lm, [task.problem for task in part], config, seeds, None)
        usable = sum(e.valid for group in groups for e in group) / sum(map(len, groups))
        print(
            f"{len(groups)} of {len(tasks)} problems, {usable:.0%} usable, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return groups, time.perf_counter() - start


def summary(prompts: str, lm: LM, tasks: Sequence[Task], groups: Sequence[Sequence[Example]], seconds: float) -> Row:
    every = [e for group in groups for e in group]
    shares = [sum(e.valid for e in group) / len(group) for group in groups]
    low, high = mean_interval(shares, 10_000, 0) or (float("nan"),) * 2
    reasons = Counter(e.rejected.partition(":")[0] for e in every if not e.valid)
    pairs = [(t.problem, e.problem) for t, group in zip(tasks, groups, strict=True) for e in group if e.valid]
    distances = [edit_distance(a, b) / max(len(a), len(b)) for a, b in pairs] or [float("nan")]
    return Row(
        prompts,
        sum(shares) / len(shares),
        low,
        high,
        {why: count / len(every) for why, count in reasons.most_common()},
        median(distances),
        median(similarities(lm, tasks, pairs) or [float("nan")]),
        sum(len(e.tokens) for e in every) / len(every),
        seconds / len(tasks),
    )


@torch.no_grad()
def similarities(lm: LM, tasks: Sequence[Task], pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Cosine of the mean hidden states of the two texts of each pair."""

    def vector(text: str) -> torch.Tensor:
        ids = list(lm.tokenizer(text)["input_ids"])
        batch = lm.batch([(ids[:1], ids[1:])])
        return lm.hidden_states(batch)[0].float().mean(0)

    known = {text: vector(text) for text in {t.problem for t in tasks} | {b for _, b in pairs}}
    centre = torch.stack([known[t.problem] for t in tasks]).mean(0)
    return [torch.cosine_similarity(known[a] - centre, known[b] - centre, 0).item() for a, b in pairs]


HEAD = (
    "| prompts | usable | by reason | edit distance | similarity | tokens per example | seconds per problem |\n"
    "|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    reasons = ", ".join(f"{why} {share:.0%}" for why, share in row.reasons.items())
    return (
        f"| {row.prompts} | {row.usable:.0%} [{row.low:.0%}, {row.high:.0%}] | {reasons} | {row.edit_distance:.2f} | "
        f"{row.similarity:.2f} | {row.tokens:.0f} | {row.seconds:.1f} |"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--prompts", nargs="+", default=[""])
    parser.add_argument("--examples", type=int, default=6)
    parser.add_argument("--max_new_tokens", type=int, default=320)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_kept_memory()
    main()
