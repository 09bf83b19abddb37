"""A model on validation problems -> its headroom: what practice could bring at best, before any training.

    python benchmarks/headroom.py --checkpoint untrained --size 140 --out results/headroom/base
    python benchmarks/headroom.py --model qwen2.5-coder-0.5b.gguf --dtype float32 --threads 1 \
        --tasks mbpp_validation.jsonl --train_tasks mbpp_train.jsonl --size 40 --samples 0 \
        --sources "gold nearest" --sgd --clipped 1 --adamw --steps 1 2 --out runs/headroom

Measured unadapted: greedy and sampled accuracy, pass@N, maj@N, best-of-N by the checkpoint's scorer. Then the same
after practice of each source (`headroom_practice.py`) over a grid of inner optimiser, rate and K, and with practice of
`--in_context` before the problem instead of in the weights. Practice that is chosen by looking at answers is an
oracle: its rows are a ceiling, not a method, and only validation problems may be used. The prompts are those of the
kind of problem (`mass prompts`), or of `--prompts`.

What is measured, and what was written, is kept in OUT, so a stopped run goes on at the point where it was. `--minutes`
stops it before the point that would begin later. OUT/headroom.md and OUT/headroom.png show what there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from headroom_practice import LIKELY, SCORED, SOURCES, Practice, Problems, problems_of, writes
from headroom_report import write_report
from research.models import TINY

from mass.adaptation.checkpoint import init_state
from mass.adaptation.origin import UNTRAINED
from mass.cli.allocator import restart_with_kept_memory
from mass.config import AdaptConfig, EvalConfig, InnerConfig, LoraConfig, SamplingConfig, ScoringConfig
from mass.errors import ConfigError, MassError
from mass.evaluation.answers import Attempt, Drawn, answer_adapted, answer_plain
from mass.evaluation.contestants import Contestant
from mass.evaluation.in_context import answer_with_shots
from mass.evaluation.runner import Runner
from mass.evaluation.table import Record, row_of
from mass.evaluation.votes import Ballots, best_of
from mass.lm.prompts import common_kind
from mass.model import load
from mass.runs.folder import json_values, replace_text
from mass.seeds import derive
from mass.timing import duration
from mass.types import Groups, Task

RESULTS = "headroom.json"
IN_CONTEXT = "in context"
LEFT = 75
"""Exit code where `--minutes` left points unmeasured (EX_TEMPFAIL)."""
NO_LIMIT = 1e9
"""A change that may be as large as it comes: where practice does harm is worth seeing too."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """One cell of the grid."""

    source: str
    optimizer: str
    """sgd; sgd clipped: at rate 1, the gradient's norm clipped to `rate`, so that a step is that long; adamw."""
    rate: float
    steps: int
    sharpness: float | None = None
    """Of practice that is weighed by its likelihood."""

    @property
    def key(self) -> str:
        if self.optimizer == IN_CONTEXT:
            return f"{self.source}, {IN_CONTEXT}"
        source = self.source if self.sharpness is None else f"{self.source} x {self.sharpness:g}"
        return f"{source}, {self.optimizer} {self.rate:g}, K = {self.steps}"

    def inner(self) -> InnerConfig:
        if self.optimizer == "sgd clipped":
            return InnerConfig(learning_rate=1.0, clip_norm=self.rate, steps=self.steps, max_update_norm=NO_LIMIT)
        name: Any = self.optimizer
        settings = {"betas": (0.9, 0.99), "eps_root": 1e-12} if name == "adamw" else {}
        return InnerConfig(
            optimizer=name, learning_rate=self.rate, steps=self.steps, max_update_norm=NO_LIMIT, **settings
        )


class Headroom:
    """Answers the same problems unadapted and after practice, with the same random numbers."""

    def __init__(
        self,
        contestant: Contestant,
        problems: Problems,
        practice: Practice,
        config: EvalConfig,
        seed: int,
        losses: bool = True,
    ):
        self.contestant, self.practice, self.config, self.losses = contestant, practice, config, losses
        self.tasks: list[Task] = problems.tasks
        self.seeds = [derive(seed, "room", i) for i in range(len(self.tasks))]
        self.runner = Runner(self.tasks, {}, config, self.seeds, [], None)
        self.unadapted: list[Record] = []

    def measure_unadapted(self, known: dict[str, Any] | None, *, writes: bool) -> dict[str, Any]:
        """Answer with the weights as they are; `known` is what this returned before, whose answers are used again."""
        if known is not None:
            self.unadapted = self._judge("base", [_attempt(answer) for answer in known["answers"]])
            return known
        attempts: list[Attempt] = []
        for part in self._parts():
            texts = [task.problem for task in self.tasks[part]]
            attempts += answer_plain(self.contestant, texts, self.seeds[part], self.config)
        self.unadapted = self._judge("base", attempts)
        found = {"row": self._row("base", self.unadapted), "right": _right(self.unadapted)}
        if self.config.samples:
            found["best-of-n"] = self._row("best-of-n", self._best_of_n())
        if writes:
            found["written"] = self.practice.written()
        return {**found, "answers": [json_values(_answer(attempt)) for attempt in attempts]}

    def _best_of_n(self) -> list[Record]:
        texts = [task.problem for task in self.tasks]
        sampling = dataclasses.replace(self.config.answer, temperature=1.0)
        ballots = Ballots(self.contestant.lm, self.contestant.theta, texts, self.seeds, sampling, self.config.stack)
        return self._judge("best-of-n", best_of(self.contestant, ballots, self.config.samples))

    def measure(self, point: Point) -> dict[str, Any]:
        """One point of the grid; 'skipped' and why where the source is not to be had."""
        try:
            groups = self.practice.groups(point.source)
        except ConfigError as error:
            return {**dataclasses.asdict(point), "skipped": str(error)}
        in_context = point.optimizer == IN_CONTEXT
        contestant = self.contestant if in_context else self._at(point)
        attempts: list[Attempt] = []
        for part in self._parts():
            texts, seeds = [task.problem for task in self.tasks[part]], self.seeds[part]
            if in_context:
                attempts += answer_with_shots(contestant, texts, seeds, self.config, groups[part])
            else:
                attempts += answer_adapted(contestant, texts, seeds, self.config, groups[part], losses=self.losses)
        records = self._judge("practised", attempts)
        return {
            **dataclasses.asdict(point),
            "row": self._row("practised", records),
            "right": _right(records),
            "answers": [json_values(_answer(attempt)) for attempt in attempts],
            **_practised(groups, records),
        }

    def _at(self, point: Point) -> Contestant:
        """The contestant with the point's inner loop and one rate for all tensors."""
        state = self.contestant.state
        assert state is not None
        if point.source == SCORED:
            scoring = self.contestant.config.scoring
        elif point.sharpness is not None:
            scoring = ScoringConfig(sharpness=point.sharpness)
        else:
            scoring = ScoringConfig(normalise="uniform")
        adapt = dataclasses.replace(self.contestant.config, inner=point.inner(), scoring=scoring)
        start = init_state(self.contestant.lm, adapt, 0)
        eta = state.eta if point.source == SCORED else start.eta
        state = dataclasses.replace(state, eta=eta, log_rates=start.log_rates)
        return dataclasses.replace(self.contestant, state=state, config=adapt)

    def _parts(self) -> Iterator[slice]:
        size = self.config.stack
        yield from (slice(start, start + size) for start in range(0, len(self.tasks), size))

    def _judge(self, method: str, attempts: Sequence[Attempt]) -> list[Record]:
        return self.runner.judge(method, 0, attempts)

    def _row(self, method: str, records: Sequence[Record]) -> dict[str, Any]:
        row = row_of(method, records, self.unadapted, RESAMPLES, 0)
        return json_values(dataclasses.asdict(row))


def _practised(groups: Groups, records: Sequence[Record]) -> dict[str, Any]:
    adaptations = [r.attempt.record for r in records if r.attempt.record is not None]
    used = [e for a in adaptations for e in a.examples if e.loss_before is not None and e.loss_after is not None]
    return {
        "update_norm": _mean([a.update_norm for a in adaptations if math.isfinite(a.update_norm)]),
        "loss_before": _mean([e.loss_before or 0.0 for e in used]),
        "loss_after": _mean([e.loss_after or 0.0 for e in used if math.isfinite(e.loss_after or 0.0)]),
        "used": sum(e.valid for group in groups for e in group) / max(1, sum(len(group) for group in groups)),
        "without_practice": sum(not any(e.valid for e in group) for group in groups) / len(groups),
    }


def _right(records: Sequence[Record]) -> list[bool | None]:
    """Return the verdict on each problem's answer, so that points can be compared problem by problem."""
    return [record.verdict.correct for record in records]


def _answer(attempt: Attempt) -> dict[str, Any]:
    drawn = [dataclasses.asdict(some) for some in attempt.drawn]
    return {"text": attempt.text, "tokens": attempt.tokens, "seconds": attempt.seconds, "drawn": drawn}


def _attempt(answer: dict[str, Any]) -> Attempt:
    drawn = tuple(Drawn(**{**some, "texts": tuple(some["texts"])}) for some in answer["drawn"])
    return Attempt(answer["text"], answer["tokens"], answer["seconds"], drawn=drawn)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def grid(args: argparse.Namespace) -> list[Point]:
    rates = [("sgd", args.sgd), ("sgd clipped", args.clipped), ("adamw", args.adamw)]
    shown = [Point(source, IN_CONTEXT, 0.0, 0) for source in args.in_context]
    return shown + [
        Point(source, optimizer, rate, steps, sharpness)
        for source in args.sources
        for sharpness in (args.sharpness if source == LIKELY else [None])
        for optimizer, some in rates
        for rate in some
        for steps in args.steps
    ]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    names = ("model", "checkpoint", "tasks", "split", "size", "seed", "train_tasks", "samples", "temperatures",
             "examples", "answer_tokens", "practice_tokens", "practice_temperature", "part", "train_part", "dtype",
             "prompts", "rank", "nearest", "verify_solutions")  # fmt: skip
    return {name: getattr(args, name) for name in names}


def begun(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What is known already. Raises ConfigError when it was measured with other settings."""
    file = folder / RESULTS
    if not file.is_file():
        return {"settings": settings, "points": {}}
    found: dict[str, Any] = json.loads(file.read_text())
    for name, value in settings.items():
        if found["settings"].get(name) != value:
            raise ConfigError(
                f"{file} was measured with {name} = {found['settings'].get(name)!r}, now it is {value!r}; "
                "give another --out"
            )
    return found


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    results, points = begun(args.out, settings_of(args)), grid(args)
    headroom = make_headroom(args)
    began = time.monotonic()
    say("unadapted")
    own = any(writes(point.source) for point in points)
    results["unadapted"] = headroom.measure_unadapted(results.get("unadapted"), writes=own)
    save(args.out, results)
    left = [point for point in points if point.key not in results["points"]]
    start = time.monotonic()
    for done, point in enumerate(left):
        pace = (time.monotonic() - start) / done if done else None
        if args.minutes is not None and time.monotonic() - began + (pace or 0.0) > 60 * args.minutes:
            say(f"stopped before {point.key}: it would end after {args.minutes:g} minutes; the same command goes on")
            break
        rest = None if pace is None else pace * (len(left) - done)
        say(f"{len(points) - len(left) + done}/{len(points)}  left {duration(rest)}  {point.key}")
        results["points"][point.key] = headroom.measure(point)
        save(args.out, results)
    return results


def make_headroom(args: argparse.Namespace) -> Headroom:
    named_test = args.split == "test" or "test" in Path(args.tasks).stem.split("_")
    if named_test and not args.allow_test:
        raise ConfigError("oracle practice looks at gold; expected a split other than test, or --allow_test")
    problems = problems_of(args)
    lora = None if args.rank is None else LoraConfig(r=args.rank, lora_alpha=2.0 * args.rank)
    model = load(args.model, args.checkpoint, dtype=args.dtype, decode_rows=args.decode_rows, lora=lora,
                 prompts=args.prompts, kind=common_kind(problems.tasks))  # fmt: skip
    answer = SamplingConfig(args.answer_tokens, 0.0)
    practice_sampling = SamplingConfig(args.practice_tokens, args.practice_temperature)
    verify = dataclasses.replace(
        model.config.synthesis.verify, solutions=args.verify_solutions, sampling=SamplingConfig(args.answer_tokens, 0.7)
    )
    synthesis = dataclasses.replace(model.config.synthesis, sampling=practice_sampling, verify=verify)
    scoring = model.config.scoring if args.checkpoint != UNTRAINED else ScoringConfig()
    contestant = Contestant(model.lm, model.state, AdaptConfig(synthesis, scoring, model.config.inner, answer))
    config = EvalConfig(answer=answer, samples=args.samples, temperatures=tuple(args.temperatures), stack=args.stack)
    practice = Practice(
        contestant, problems, args.examples, args.seed, args.answer_tokens, args.stack, args.nearest, args.out
    )
    return Headroom(contestant, problems, practice, config, args.seed, losses=not args.no_losses)


def save(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RESULTS, json.dumps(results, indent=1) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default=str(TINY))
    made.add_argument(
        "--checkpoint", default=UNTRAINED, help="a run folder of mass train, tiny-terms/NAME, or untrained"
    )
    made.add_argument("--tasks", default="minimath", help="minimath, minimath-terms, or a JSONL file")
    made.add_argument("--split", default="validation", help="of minimath: validation or train")
    made.add_argument("--allow_test", action="store_true", help="let oracles look at test problems")
    made.add_argument("--part", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the file, by hash of the text")
    made.add_argument("--train_tasks", help="JSONL file of gold practice, where the problems are not minimath's")
    made.add_argument("--train_part", type=float, nargs=2, metavar=("LOW", "HIGH"))
    made.add_argument("--dtype", default="auto")
    made.add_argument("--threads", type=int, help="of torch; all cores by default")
    made.add_argument("--prompts", help="a prompts file, as of `mass prompts`")
    made.add_argument("--r", dest="rank", type=int, help="of the LoRA of an untrained model, with alpha twice that")
    made.add_argument("--nearest", default="words", choices=("words", "states"),
                      help="what 'gold nearest' compares: TF-IDF of words, or mean states of the base")  # fmt: skip
    made.add_argument("--minutes", type=float, help="begin no point that would end later than this")
    made.add_argument("--size", type=int, default=140)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--samples", type=int, default=8, help="N: answers sampled per problem and temperature")
    made.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
    made.add_argument("--examples", type=int, default=6, help="m: practice examples")
    made.add_argument("--answer_tokens", type=int, default=96)
    made.add_argument("--practice_tokens", type=int, default=128)
    made.add_argument("--practice_temperature", type=float, default=1.0)
    made.add_argument("--verify_solutions", type=int, default=4, help="of 'own verified', where answers are compared")
    made.add_argument("--no_losses", action="store_true", help="do not measure the losses of practice: two passes less")
    made.add_argument("--in_context", nargs="*", default=[], choices=SOURCES, metavar="SOURCE",
                      help="practice to put before the problem")  # fmt: skip
    made.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, metavar="SOURCE",
                      help=", ".join(SOURCES))  # fmt: skip
    made.add_argument("--sgd", type=float, nargs="*", default=[1.0, 3.0, 10.0], help="learning rates")
    made.add_argument("--clipped", type=float, nargs="*", default=[0.02, 0.05], help="lengths of a step")
    made.add_argument("--adamw", type=float, nargs="*", default=[0.001, 0.003], help="learning rates")
    made.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8], help="K")
    made.add_argument("--sharpness", type=float, nargs="+", default=[3.0, 10.0, 30.0],
                      help=f"of {LIKELY}: what the mean log-probability of a solution is multiplied by")  # fmt: skip
    made.add_argument("--stack", type=int, default=32, help="problems adapted side by side")
    made.add_argument("--decode_rows", type=int, default=256)
    made.add_argument("--out", type=Path, required=True, help="a folder; a used one goes on where it was")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        results = measure_all(args)
    except MassError as error:
        say(f"error: {error}")
        return 2
    for file in write_report(results, args.out):
        say(str(file))
    return 0 if all(point.key in results["points"] for point in grid(args)) else LEFT


if __name__ == "__main__":
    restart_with_kept_memory()
    sys.exit(main())
