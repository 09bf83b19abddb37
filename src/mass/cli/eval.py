"""`mass eval`: compare methods on tasks and write a table, JSON, and a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, given_examples, options
from mass.cli.failures import INTERRUPTED
from mass.cli.folders import dated_folder, new_folder
from mass.config import EvalConfig
from mass.errors import ConfigError
from mass.runs.folder import COMPARISON, RECORDS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from mass.types import Task

EXAMPLES = (
    "mass eval --methods base,tt-ss,mass --tasks minimath-terms --tasks.size 200",
    "mass eval --methods base,mass,maj@n --checkpoint runs/first --tasks problems.jsonl --out runs/mine",
    "mass eval --methods base,mass-gold --checkpoints mass-gold=runs/gold",
    "mass eval --methods base,mass,mass-unadapted --against mass-unadapted --tasks.size 200",
    "mass eval --methods base,mass,mass-unadapted --samples 8 --temperatures [0.6,1.0] --tasks.size 200",
    "mass eval --methods base,mass,maj@n --checkpoint runs/first --tasks problems.jsonl --out runs/mine --resume",
    "mass eval --tasks bbh/ --tasks.shots 10 --tasks.size 50 --methods examples-in-context,examples",
    "mass eval --tasks mine.jsonl --tasks.fields problem=my_question,answer=my_answer --json",
)
HERE = ("config", "print_config", "out", "resume", "json")
"""Options that say where and how one call writes, which are not part of a comparison's configuration."""


def run(arguments: Sequence[str]) -> int:
    """Run `mass eval` and return its exit code."""
    given = options.parse(_parser(), arguments)
    config = EvalConfig(**{field.name: getattr(given, field.name) for field in fields(EvalConfig)})
    if given.print_config:
        options.print_yaml({name: value for name, value in options.plain(given).items() if name not in HERE})
        return 0
    methods = [name.strip() for name in given.methods.split(",") if name.strip()]
    from mass.cli.comparing import compare, print_comparison
    from mass.evaluation.methods import check_against, check_methods
    from mass.lm.source import DEFAULT_MODEL
    from mass.model import load
    from mass.runs.data import note_of_golds

    check_against(given.against, check_methods(methods))
    if given.tasks.source is None:
        raise ConfigError(f"--tasks is missing; expected one of: {options.TASKS_HELP.rstrip('.')}")
    few = given.tasks.shots is not None
    tasks, source = given_examples.few_shot_tasks(given) if few else options.load_tasks(given)
    if note := note_of_golds(tasks):
        console.note(f"note: {note}")
    train_tasks = _train_tasks(given)
    folder = _folder(given)
    with console.working("loading the model"):
        model = load(given.model.name or DEFAULT_MODEL, given.checkpoint, **options.loading(given))
    console.notes(model.notes)
    try:
        comparison = compare(
            model,
            tasks,
            methods,
            config=config,
            source=source,
            folder=folder,
            resume=given.resume,
            against=given.against,
            seed=given.seed,
            checkpoints=given.checkpoints,
            train_tasks=train_tasks,
        )
    except KeyboardInterrupt:
        _say_how_to_resume(folder, arguments)
        return INTERRUPTED
    if given.json:
        print(json.dumps(comparison.to_dict()))
        console.note(f"written to {folder}")
    else:
        print_comparison(comparison, folder)
    return 0


def _folder(given: Namespace) -> Path:
    """Return a new folder, or with --resume the folder of an unfinished comparison.

    It is checked before the model is loaded, which can take minutes.

    Raises:
        ConfigError: --resume is given without --out.
        RunError: The folder is in use, or has nothing to resume.
    """
    if given.resume:
        from mass.evaluation.folder import ComparisonFolder

        if given.out is None:
            raise ConfigError("--resume is given without --out; expected the folder of the comparison to go on with")
        ComparisonFolder(Path(given.out)).check(resume=True)
        return Path(given.out)
    folder = dated_folder("eval") if given.out is None else Path(given.out)
    new_folder("--out", folder)
    return folder


def _say_how_to_resume(folder: Path, arguments: Sequence[str]) -> None:
    records = folder / RECORDS
    if (folder / COMPARISON).is_file():
        console.note(f"stopped when all was answered; its page is written by: mass report {folder}")
        return
    if not records.is_file():
        console.note("stopped before the first answer; nothing was written")
        return
    count = records.read_bytes().count(b"\n")
    named = any(argument.split("=")[0] == "--out" for argument in arguments)
    again = [argument for argument in arguments if argument != "--resume"]
    again += ["--resume"] if named else ["--out", str(folder), "--resume"]
    console.note(f"stopped after {count} answers; the comparison goes on with: mass eval {shlex.join(again)}")


def _train_tasks(given: Namespace) -> list[Task] | None:
    """Return the tasks that base-ttt learns from; None where they are not given. Raises ConfigError and DataError."""
    if given.train_tasks.source is not None:
        return options.load_task_set(given.train_tasks, given.seed)
    for name in ("levels", "subjects"):
        if getattr(given.train_tasks, name) is not None:
            raise ConfigError(
                f"--train_tasks.{name} is given without --train_tasks, among which it chooses; give that too"
            )
    return None


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "eval",
        "--methods A,B,... --tasks SOURCE [options]",
        "Compare methods on a task set. Methods: base, base-ttt, tt-ss, tt-ss-likelihood, solver-grpo, solver-sft, "
        "self-sft, mass-gold, mass, mass-gold-unadapted, mass-unadapted; for the tokens of mass: maj@n, mass-maj@n "
        "(majority vote of the base, of the unadapted checkpoint), base-best-of-n, best-of-n (the scorer's choice), "
        "maj@8 and the like; in-context (the practice of mass before the problem instead of in the weights). "
        "With --tasks.shots: examples, examples-zero-shot, examples-in-context, examples-adapted, "
        "examples-adapted-in-context.",
        EXAMPLES,
    )
    options.add_model_options(parser, checkpoint="A run folder of mass train.")
    parser.add_argument("--methods", type=str, default="base,tt-ss,mass", help="With commas between.")
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        help="The method that the others are compared with, problem by problem; base by default.",
    )
    options.add_task_options(parser, default="minimath-terms", shots=True)
    parser.add_argument("--seed", type=int, default=0, help="Every random draw is a function of it.")
    parser.add_argument(
        "--checkpoints",
        type=dict[str, str],
        default={},
        help="Checkpoints of single methods: mass-gold=runs/gold,mass=runs/first.",
    )
    options.add_task_options(
        parser,
        default=None,
        name="train_tasks",
        split="train",
        seed=0,
        about="Problems that base-ttt learns from, from the same kinds of sources.",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="A folder: new, or with --resume a used one; runs/eval-DATE by default.",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Go on with the comparison in --out that was interrupted."
    )
    parser.add_argument("--json", action="store_true", help="Print the comparison as one JSON object.")
    parser.add_class_arguments(EvalConfig)
    return parser
