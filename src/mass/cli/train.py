"""`mass train`: train from a recipe into a run folder with checkpoints, metrics and a page of its curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.cli.failures import INTERRUPTED
from mass.config import RunConfig, to_dict
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "mass train --config recipes/minimath-terms/mass.yaml --out runs/first",
    "mass train --config runs/first/config.json --out runs/first --resume",
    "mass train --out runs/small --train.steps 20 --train.tasks_per_step 4 --adapt.inner.steps 1",
    "mass train --config recipes/minimath-terms/mass.yaml --print_config",
    "mass train --config recipes/llama-3.1-8b/math.yaml --dry_run --device_tflops 400 --device_gb 80",
    "torchrun --standalone --nproc_per_node 2 -m mass train --config recipes/minimath-terms/mass.yaml --out runs/two",
)


def run(arguments: Sequence[str]) -> int:
    """Run `mass train` and return its exit code."""
    given = options.parse(_parser(), arguments)
    config = RunConfig(**{field.name: getattr(given, field.name) for field in fields(RunConfig)})
    if given.print_config:
        options.print_yaml(to_dict(config))
        return 0
    if given.dry_run:
        from mass.cli.rehearsing import rehearse

        return rehearse(config, given)
    if given.out is None:
        raise ConfigError("--out is missing; expected a folder for the run, as in --out runs/first")
    folder = Path(given.out)
    from mass.cli.training import Monitor
    from mass.training.distributed import at_start
    from mass.training.loggers import check_loggers, open_loggers
    from mass.training.trainer import train

    names = [name.strip() for name in given.log.split(",") if name.strip()]
    check_loggers(names)
    ranks = at_start()
    if not ranks.first:  # the first process of this run shows it and writes its page
        train(config, folder, given.resume)
        return 0
    _note_stacks(config, ranks.size)
    monitor = Monitor(config.train.steps, console.stderr())
    try:
        with open_loggers(names, folder, config) as loggers, monitor:
            train(config, folder, given.resume, [monitor.on_step, *loggers])
    except KeyboardInterrupt:
        _say_how_to_resume(folder, monitor.step, arguments)
        return INTERRUPTED
    from mass.cli.report import write_training_page

    page = write_training_page(folder)
    console.say(f"run {folder} is done: {config.train.steps} steps\ncurves: {page}")
    return 0


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "train",
        "--config RECIPE.yaml --out FOLDER [options]",
        "Meta-train a checkpoint: the loss on a problem after practising is differentiated back through the practice.",
        EXAMPLES,
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="The run's folder: new, or with --resume a used one."
    )
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in --out.")
    parser.add_argument(
        "--log",
        type=str,
        default="",
        help="Loggers beside metrics.jsonl, as in tensorboard,wandb: tensorboard, trackio, wandb (each an extra).",
    )
    _add_dry_run(parser)
    parser.add_class_arguments(RunConfig)
    return parser


def _add_dry_run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Check data, prompts, memory and time without weights, print what is found, and end: 0 when the run can "
        "be started, 2 with a line for each thing that is in its way. Nothing is written.",
    )
    parser.add_argument(
        "--device_tflops",
        type=float | None,
        default=None,
        help="With --dry_run: 10^12 operations a second that a matrix product reaches on the GPU that is meant; "
        "otherwise measured on this machine.",
    )
    parser.add_argument(
        "--device_gbps",
        type=float | None,
        default=None,
        help="With --device_tflops: 10^9 bytes that it reads a second; by default 5 for each TFLOP/s.",
    )
    parser.add_argument(
        "--device_gb", type=float | None, default=None, help="With --dry_run: memory of the GPU in 10^9 bytes."
    )
    parser.add_argument("--json", action="store_true", help="With --dry_run: print what is found as one JSON object.")


def _note_stacks(config: RunConfig, processes: int) -> None:
    count, stack = config.train.tasks_per_step, config.train.stack
    if count >= processes and (stacks := -(-count // stack)) % processes:
        console.note(
            f"stacks of {stack} (train.stack): {stacks} of them do not divide among {processes} processes: each cuts "
            f"its part of the {count} problems anew; the result differs by rounding alone"
        )


def _say_how_to_resume(folder: Path, step: int | None, arguments: Sequence[str]) -> None:
    import shlex

    from mass.runs.folder import CONFIG, RunFolder

    if not (folder / CONFIG).is_file():
        console.note("stopped before the run began; nothing was written")
        return
    latest = RunFolder(folder).latest()
    at = f"after step {step}" if step is not None else "before the first step"
    point = f"from the checkpoint of step {latest[0]}" if latest else "from the start"
    again = [argument for argument in arguments if argument != "--resume"]
    console.note(f"stopped {at}; the run goes on {point} with: mass train {shlex.join([*again, '--resume'])}")
