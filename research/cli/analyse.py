"""`analyse`: examine a checkpoint's practice before and after meta-training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass.cli import console, options
from mass.cli.folders import dated_folder, new_folder
from mass.runs.folder import PRACTICE, json_values, replace_text
from research import PROGRAM

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.table import Table

EXAMPLES = (
    "python -m research analyse --checkpoint runs/mass --tasks.size 200",
    "python -m research analyse --checkpoint runs/mass --tasks.size 200 --alone false",
    "python -m research analyse --model ./my-model --checkpoint runs/mine --tasks held_out.jsonl",
)


def run(arguments: Sequence[str]) -> int:
    """Run `analyse` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    from mass.cli.comparing import ComparisonMonitor
    from mass.lm.source import DEFAULT_MODEL
    from mass.model import load
    from research.analysis import analyse

    tasks, source = options.load_tasks(given)
    folder = dated_folder("analyse") if given.out is None else Path(given.out)
    new_folder("--out", folder)
    with console.working("loading the model"):
        model = load(given.model.name or DEFAULT_MODEL, given.checkpoint, **options.loading(given))
    console.notes(model.notes)
    with ComparisonMonitor(2, console.stderr()) as monitor:
        found = analyse(
            model,
            tasks,
            source=source,
            name=given.name,
            seed=given.seed,
            stack=given.stack,
            alone=given.alone,
            on_progress=monitor.on_progress,
        )
    replace_text(folder / PRACTICE, json.dumps(json_values(found), separators=(",", ":")) + "\n")
    console.stdout().print(_table(found))
    console.say(f"\n{folder / PRACTICE}")
    return 0


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from research.document.sentences import measure_text
    from research.results.practice import AFTER, BEFORE, MEASURES, measured

    table = Table(title=Text(f"practice for {found['tasks']['size']} problems, 95% intervals over problems"), box=None)
    table.add_column("")
    for when in (BEFORE, AFTER):
        table.add_column(f"{when} meta-training", justify="right")
    for measure in MEASURES:
        pair = [measured({0: found}, when, measure.name) for when in (BEFORE, AFTER)]
        if any(pair):
            table.add_row(Text(measure.name), *(Text(measure_text(value, measure.unit)) for value in pair))
    return table


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "analyse",
        "--checkpoint RUN [options]",
        "What the practice that a checkpoint writes is like, before and after meta-training: right, of the kind asked, "
        "how hard and how near; its weights, the effect of each example when practised on alone, and what the "
        "adaptation does to the answers to problems of other subjects.",
        EXAMPLES,
        PROGRAM,
    )
    options.add_model_options(parser, checkpoint="A run folder of mass train.")
    options.add_task_options(parser, default="minimath-terms", split="validation")
    parser.add_argument("--seed", type=int, default=0, help="Every random draw is a function of it.")
    parser.add_argument(
        "--name",
        type=str | None,
        default=None,
        help="Name under which the result is stored; the checkpoint's method by default.",
    )
    parser.add_argument("--stack", type=int, default=16, help="Problems, or examples alone, adapted side by side.")
    parser.add_argument(
        "--alone", type=bool, default=True, help="Measure what each example does alone, which takes most of the time."
    )
    parser.add_argument("--out", type=str | None, default=None, help="A new folder; runs/analyse-DATE by default.")
    return parser
