"""Examples of a task, given in the prompt or learned -> accuracy and cost of each way to use them.

    python benchmarks/few_shot.py --model smollm2 --data ../shared/data --half reporting --shots 4 10 32 --drawings 3 \\
        --questions 100 --out results/few-shot-smollm2.jsonl
    python benchmarks/few_shot.py --out results/few-shot-smollm2.jsonl --table        # nothing is run

A cell is a way, a task, a number of examples and a drawing of them. Its result is one line of the file; a run that was
broken off goes on where it stopped. Questions are the same for all ways. The table has the mean accuracy over tasks
with 95% intervals over tasks and drawings (`mass.bootstrap.two_level`), the difference from in context on the same
questions, and seconds and tokens of a question when the set is asked 1, 10 or 100 questions. Choose settings with
--half tuning, and report --half reporting.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from few_shot_tasks import halves, load

import mass
from mass.bootstrap import Resample, percentiles, two_level
from mass.cli.allocator import restart_with_kept_memory
from mass.config import ExamplesConfig, LoraConfig, to_dict
from mass.errors import DataError
from mass.model import Mass
from mass.seeds import derive
from mass.tasks import few_shot
from mass.timing import duration
from mass.types import Task

WAYS: dict[str, dict[str, Any]] = {
    "zero-shot": {"method": "zero-shot"},
    "in context": {"method": "in-context"},
    "adapted, plain": {"method": "adapted", "rows": "plain"},
    "adapted, leave-one-out": {"method": "adapted", "rows": "leave-one-out"},
    "adapted, permuted": {"method": "adapted", "rows": "permuted"},
    "adapted, plain, written": {"method": "adapted", "rows": "plain", "written": 16},
    "adapted and in context": {"method": "adapted-in-context", "rows": "plain"},
    "chosen": {"method": "auto"},
    "chosen, written": {"method": "auto", "written": 16},
}
BESIDE = "in context"
"""The way that the others are compared with."""
SPREADS = (1, 10, 100)
"""Numbers of questions over which the cost of a set is spread."""


def main() -> None:
    given = arguments()
    path = Path(given.out)
    if not given.table:
        measure(given, path)
    print(table(read(path)))


def measure(given: argparse.Namespace, path: Path) -> None:
    """Run the cells that the file does not have."""
    base = ExamplesConfig(learning_rates=tuple(given.rates), epochs=tuple(given.epochs), folds=given.folds)
    base = replace(base, budget_s=given.budget_s, batch=given.batch)
    sets = load(Path(given.data))
    half = halves(sets)
    sets = {name: tasks for name, tasks in sets.items() if given.half in ("all", half[name])}
    sets = {name: tasks for name, tasks in sets.items() if not given.tasks or any(part in name for part in given.tasks)}
    done = {key_of(line) for line in read(path)}
    cells = [
        (name, shots, drawing, way)
        for drawing in range(given.drawings)
        for shots in given.shots
        for name in sets
        for way in given.ways
    ]
    left = [cell for cell in cells if cell not in done]
    print(
        f"{len(cells) - len(left)} of {len(cells)} cells are done; {len(sets)} tasks of half {given.half}", flush=True
    )
    if not left:
        return
    model = mass.load(given.model, lora=LoraConfig(given.rank, 2.0 * given.rank), dtype=given.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with path.open("a", encoding="utf-8") as lines:
        for number, (name, shots, drawing, way) in enumerate(left, start=1):
            config = replace(base, **WAYS[way])
            line = {"half": half[name], **cell(model, sets[name], name, shots, drawing, way, config, given.questions)}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            each = (time.monotonic() - began) / number
            said = "left out" if line["skipped"] else f"{np.mean([one is True for one in line['right']]):.0%}"
            print(
                f"{number}/{len(left)} {name}, {shots} examples, drawing {drawing}, {way}: {said} "
                f"{line['chosen']}; {duration(each * (len(left) - number))} left",
                flush=True,
            )


def cell(
    model: Mass,
    tasks: Sequence[Task],
    name: str,
    shots: int,
    drawing: int,
    way: str,
    config: ExamplesConfig,
    questions: int,
) -> dict[str, Any]:
    """Return the line of one cell. A task that has too few rows, or only too long ones, is left out, and says so."""
    line: dict[str, Any] = {"model": model.lm.name, "task": name, "shots": shots}
    line |= {"drawing": drawing, "way": way, "config": to_dict(config), "rank": model.lm.adapters.config.r}
    try:
        asked = few_shot.draw(tasks, shots, derive(drawing, "drawing", name))
        pairs = set(asked[0].examples)
        examples = [task for task in tasks if (task.problem, task.solution) in pairs]
        start, cpu = time.perf_counter(), time.process_time()
        adapted = model.adapt(examples, config=config, seed=drawing)
    except DataError as error:
        return line | {"skipped": str(error), "right": [], "chosen": ""}
    learning = {"learning_s": time.perf_counter() - start, "learning_cpu_s": time.process_time() - cpu}
    plain = [replace(task, examples=()) for task in asked[:questions]]
    cpu = time.process_time()
    adapted.solve_all(plain[:1], seed=drawing)
    alone = time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    solutions = adapted.solve_all(plain, seed=drawing)
    answering = {
        "answer_s": time.perf_counter() - start,
        "answer_cpu_s": time.process_time() - cpu,
        "alone_cpu_s": alone,
    }
    records = [solution.adaptation for solution in solutions]
    assert adapted.choice is not None
    return line | {
        "skipped": "",
        "right": [record.verdict.correct for record in records if record is not None and record.verdict is not None],
        "texts": [solution.text[:80] for solution in solutions[:5]],
        **learning,
        **answering,
        "learning_tokens": sum(adapted.adaptation.tokens.values()),
        "answer_tokens": sum(sum(record.tokens.values()) for record in records if record is not None),
        "chosen": adapted.choice.chosen.name,
        "tried": [asdict(one) for one in adapted.choice.tried],
        "written_used": sum(one.valid for one in adapted.adaptation.examples[shots:]),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file; a last line that was cut off is dropped."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def key_of(line: dict[str, Any]) -> tuple[str, int, int, str]:
    return line["task"], line["shots"], line["drawing"], line["way"]


# --- the table


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: by number of examples and way, then by task."""
    used = [line for line in lines if not line["skipped"]]
    if not used:
        return "no results"
    shots = sorted({line["shots"] for line in used})
    parts = [_summary([line for line in used if line["shots"] == count], count) for count in shots]
    return "\n\n".join([*parts, *(_by_task([line for line in used if line["shots"] == n], n) for n in shots)])


def _summary(lines: Sequence[dict[str, Any]], shots: int) -> str:
    rows = [
        f"**{shots} examples**, model {lines[0]['model']}",
        "",
        "| way | tasks | accuracy, % | over in context, points | learned in | "
        + " | ".join(f"s, tokens a question of {n}" for n in SPREADS)
        + " |",
        "| --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(SPREADS),
    ]
    beside = _shares(lines, BESIDE)
    for way in [way for way in WAYS if any(line["way"] == way for line in lines)]:
        own = [line for line in lines if line["way"] == way]
        shares = _shares(lines, way)
        common = {key: (shares[key], beside[key]) for key in shares if key in beside}
        change = {key: one - other for key, (one, other) in common.items()}
        learned = np.mean([line["chosen"].startswith("adapted") for line in own])
        over = _interval(change, signed=True) if way != BESIDE and change else ""
        costs = " | ".join(_cost(own, n) for n in SPREADS)
        rows.append(
            f"| {way} | {len({t for t, _ in shares})} | {_interval(shares)} | {over} | {learned:.0%} | {costs} |"
        )
    return "\n".join(rows)


def _shares(lines: Sequence[dict[str, Any]], way: str) -> dict[tuple[str, int], float]:
    """Return the accuracy in percent of each task and drawing."""
    return {
        (line["task"], line["drawing"]): 100 * float(np.mean([one is True for one in line["right"]]))
        for line in lines
        if line["way"] == way
    }


def _interval(values: dict[tuple[str, int], float], *, signed: bool = False) -> str:
    """Return the mean with its interval over tasks and drawings."""
    tasks, drawings = sorted({task for task, _ in values}), sorted({drawing for _, drawing in values})
    rows = tuple(np.array([values.get((task, drawing), np.nan) for task in tasks]) for drawing in drawings)
    rows = tuple(row for row in rows if not np.isnan(row).all())
    low, high = percentiles(two_level(Resample(rows, ("tasks",) * len(rows))))
    form = "+.1f" if signed else ".1f"
    return f"{float(np.nanmean(np.stack(rows))):{form}} [{low:{form}}, {high:{form}}]"


def _cost(lines: Sequence[dict[str, Any]], questions: int) -> str:
    """Return seconds and generated tokens of a question, with what a set costs spread over so many questions.

    One question alone reads the examples before it; those that are asked with it share them, and cost what was measured
    beyond the first.
    """
    seconds, tokens = list[float](), list[float]()
    for line in lines:
        count, alone = len(line["right"]), line["alone_cpu_s"]
        beside = max(0.0, line["answer_cpu_s"] - alone) / max(1, count - 1)
        seconds.append((line["learning_cpu_s"] + alone + (questions - 1) * beside) / questions)
        tokens.append(line["answer_tokens"] / count + line["learning_tokens"] / questions)
    return f"{np.mean(seconds):.2f}, {np.mean(tokens):.0f}"


def _by_task(lines: Sequence[dict[str, Any]], shots: int) -> str:
    ways = [way for way in WAYS if any(line["way"] == way for line in lines)]
    rows = [
        f"By task, {shots} examples, accuracy in %",
        "",
        f"| task | {' | '.join(ways)} |",
        "| --- |" + " ---: |" * len(ways),
    ]
    found = {way: _shares(lines, way) for way in ways}
    for task in sorted({line["task"] for line in lines}):
        cells = [[share for (name, _), share in found[way].items() if name == task] for way in ways]
        rows.append(f"| {task} | {' | '.join(f'{np.mean(c):.0f}' if c else '' for c in cells)} |")
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--half", choices=("tuning", "reporting", "all"), default="tuning")
    parser.add_argument("--tasks", nargs="*", default=[], help="only tasks whose names contain one of these")
    parser.add_argument("--ways", nargs="*", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--shots", nargs="*", type=int, default=[10])
    parser.add_argument("--drawings", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rates", nargs="*", type=float, default=list(ExamplesConfig().learning_rates))
    parser.add_argument("--epochs", nargs="*", type=int, default=list(ExamplesConfig().epochs))
    parser.add_argument("--folds", type=int, default=ExamplesConfig().folds)
    parser.add_argument("--batch", type=int, default=ExamplesConfig().batch)
    parser.add_argument("--budget_s", type=float, default=None)
    parser.add_argument("--r", dest="rank", type=int, default=LoraConfig().r)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", required=True, help="a file of one line a cell; a used one is gone on with")
    parser.add_argument("--table", action="store_true", help="print the table of the file, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_kept_memory()
    main()
