"""Rows with golds -> the time of 1,000 verdicts of this checkout, and of another one beside it.

    python benchmarks/verdicts.py --data ../shared/data/math500.jsonl ../shared/data/gsm8k_test.jsonl \\
        --cases ../shared/cases/verdicts_right.jsonl --against ../main/src

From data: each worked solution, and each answer with its numbers raised by one, which no text shortens. From cases
(`gold`, `text`): their texts. Each round is a fresh process that has judged a few answers before the clock starts;
the checkouts take turns, and first place, and the ratio is that of each round's two times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "src"
WARM = [("x^2-1", rf"\boxed{{(x-1)(x+{n})}}") for n in range(1, 9)]

Pair = tuple[str, str]
"""A gold and a text that is judged."""


def pairs_of(data: list[Path], cases: list[Path]) -> list[Pair]:
    from mass import tasks

    found: list[Pair] = []
    for path in data:
        for task in tasks.load(str(path)):
            other = re.sub(r"[0-9]+", lambda match: str(int(match[0]) + 1), task.answer)
            found += [(task.answer, task.solution), (task.answer, rf"\boxed{{{other}}}")]
    for path in cases:
        rows = map(json.loads, path.read_text().splitlines())
        found += [(row["gold"], row["text"]) for row in rows if row.get("verifier", "math") == "math"]
    return found


def timed(pairs: list[Pair]) -> float:
    """Seconds for the verdicts of this process's checkout on the pairs."""
    from mass.types import Task
    from mass.verify import check_all

    check_all([(Task("p", answer=gold), text) for gold, text in WARM])
    start = time.perf_counter()
    check_all([(Task("p", answer=gold), text) for gold, text in pairs])
    return time.perf_counter() - start


def elsewhere(source: Path, pairs: list[Pair]) -> float:
    environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
    command = [sys.executable, str(Path(__file__).resolve()), "--once"]
    done = subprocess.run(command, input=json.dumps(pairs), env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def report(name: str, seconds: list[float], count: int) -> str:
    each = sorted(1000 * s / count for s in seconds)
    return f"{name}: {statistics.median(each):.3f} s for 1,000 verdicts ({each[0]:.3f} to {each[-1]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="files of tasks with worked solutions")
    parser.add_argument("--cases", type=Path, nargs="*", default=[], help="files of rows with gold and text")
    parser.add_argument("--against", type=Path, help="the src folder of another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(timed(json.load(sys.stdin)))
        return
    pairs = pairs_of(options.data, options.cases)
    if not pairs:
        parser.error("no rows to judge; give --data or --cases")
    places = [HERE, options.against] if options.against else [HERE]
    seconds: dict[Path, list[float]] = {place: [] for place in places}
    for turn in range(options.rounds):
        for place in places if turn % 2 else places[::-1]:
            seconds[place].append(elsewhere(place, pairs))
    print(f"{len(pairs)} verdicts, {options.rounds} rounds")
    for place in places:
        print(report(str(place), seconds[place], len(pairs)))
    if options.against:
        ratios = sorted(a / b for a, b in zip(*(seconds[place] for place in places), strict=True))
        print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
