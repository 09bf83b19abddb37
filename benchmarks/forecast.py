"""What `mass train --dry_run` says of a step, beside the step itself: seconds by stage, and the peak of the process.

    python benchmarks/forecast.py --config recipes/qwen2.5-0.5b/cpu.yaml --model.name FOLDER --tasks.source FILE \
        --validation.source FILE --train.steps 1 --train.eval_every 0 --out results/forecast.json

Everything that is sampled runs to its limit, which is what the dry run's second column is for: lengths are no guess.
The real peak is the process's high-water mark less what it was before the model was loaded. Options are those of `mass
train`; the run folder is a temporary one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mass import timing
from mass.adaptation import synthesis
from mass.cli import train as train_verb
from mass.config import RunConfig
from mass.lm import LM, load_lm
from mass.preflight import dryrun as rehearsal
from mass.preflight.dryrun.lengths import Lengths
from mass.runs.data import read_problems
from mass.runs.folder import RunFolder, replace_text
from mass.training.trainer import Trainer

PRACTICE = "practice"


def main() -> None:
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--out", type=Path, help="JSON file")
    own.add_argument("--threads", type=int, default=torch.get_num_threads())
    own.add_argument(
        "--cpu_time", action="store_true", help="count the process's own time: for a machine that is shared"
    )
    args, rest = own.parse_known_args()
    if args.cpu_time:
        timing.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    torch.set_num_threads(args.threads)
    parser = train_verb._parser()
    given = parser.instantiate(parser.parse_args(rest))
    config = RunConfig(**{field.name: getattr(given, field.name) for field in fields(RunConfig)})
    found = rehearsal.rehearse(config)
    assert found.memory is not None, found.problems
    assert found.longest is not None
    before = high_water_mark()
    seconds = real_step(config, found.at_most)
    report = {
        "forecast": {"seconds": found.longest.stages, "bytes": found.memory.peak, "stages": stages(found)},
        "real": {"seconds": seconds, "bytes": high_water_mark() - before},
        "device": {"flops": found.device.flops, "bytes_per_s": found.device.bytes_per_s},
    }
    print(table(report["forecast"]["seconds"], seconds, found.memory.peak, report["real"]["bytes"]))
    if args.out:
        replace_text(args.out, json.dumps(report, indent=1) + "\n")


def real_step(config: RunConfig, lengths: Lengths) -> dict[str, float]:
    """Seconds of one step by stage, nothing sampled ending before its limit, and all practice usable."""
    lm = load_lm(config.model, config.lora)
    LM.end_ids = property(lambda _: frozenset())  # type: ignore[method-assign, assignment]
    lm._stop = lm._stop.__class__(lm.tokenizer, ())
    written, row = synthesis.synthesise, LM.example_row

    def usable(*given: Any, **options: Any) -> Any:
        return [
            tuple(
                dataclasses.replace(e, problem=PRACTICE, solution=str(j), rejected="") for j, e in enumerate(group, 5)
            )
            for group in written(*given, **options)
        ]

    def example_row(self: LM, problem: str, solution: str) -> Any:
        if problem == PRACTICE:
            return [5] * lengths.example_prompt, [int(solution)] * lengths.example
        return row(self, problem, solution)

    synthesis.synthesise, LM.example_row = usable, example_row  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        metrics = Trainer(lm, config, read_problems(lm, config), RunFolder(Path(folder))).outer_step()
    return {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}


def stages(found: rehearsal.Rehearsal) -> dict[str, float]:
    assert found.memory is not None
    return {part.name: part.bytes for part in (*found.memory.stays, *found.memory.stages)}


def high_water_mark() -> int:
    """Bytes, from Linux."""
    return _status("VmHWM")


def resident() -> int:
    """Bytes, now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def table(expected: Mapping[str, float], real: Mapping[str, float], peak: float, real_peak: float) -> str:
    rows: list[tuple[str, Any, Any]] = [(name, expected.get(name, 0.0), s) for name, s in real.items()]
    rows.append(("step", sum(expected.values()), sum(real.values())))
    lines = ["| stage | forecast, s | real, s | real / forecast |", "|---|---|---|---|"]
    lines += [f"| {name} | {a:.1f} | {b:.1f} | {b / a if a else float('nan'):.2f} |" for name, a, b in rows]
    lines += [f"| peak, GB | {peak / 1e9:.2f} | {real_peak / 1e9:.2f} | {real_peak / peak:.2f} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
