"""Options for given examples, and what is shown of a model that learned them; used by `mass adapt` and `mass solve`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mass.cli import console
from mass.config import ExamplesConfig
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from mass.model import AdaptedModel, Mass
    from mass.tasks import few_shot
    from mass.types import Candidate, Solution, Task

HELP = (
    "Examples of the task, one JSON object a line: input and output, messages, or names mapped by --examples.fields. "
    "--examples FILE for short; --budget_s is short for --learn.budget_s."
)
MOST_SHOWN = 8
"""Examples whose losses are shown."""
AT_ONCE = 64
"""Questions that are answered side by side, so that the first answers are printed before the last are sampled."""


def add_options(parser: ArgumentParser) -> None:
    """Add the options `--examples.*`, and `--learn.*`, which say how they are used."""
    group = parser.add_argument_group("examples")
    group.add_argument("--examples.source", type=str | None, default=None, help=HELP)
    group.add_argument(
        "--examples.fields",
        type=dict[str, str],
        default={},
        help="Names in the file that differ: problem=my_input,solution=my_output.",
    )
    group.add_argument(
        "--examples.verifier",
        type=str | None,
        default=None,
        help="Judges held-out answers: text, words, math, exact, choice, code, module:function, command:PROGRAM. As "
        "the fields suggest by default, else the whole text must be equal.",
    )
    group.add_argument("--examples.instruction", type=str, default="", help="What every question is preceded by.")
    parser.add_argument("--learn", type=ExamplesConfig, default=ExamplesConfig())


def read(given: Namespace) -> few_shot.Examples:
    """Read the examples. Raises DataError."""
    from mass.tasks import few_shot

    group = given.examples
    return few_shot.load(Path(group.source).expanduser(), group.fields, group.verifier)


def learn(given: Namespace, model: Mass, examples: few_shot.Examples) -> AdaptedModel:
    """Return the model that has learned the examples, with progress on standard error."""
    instruction = given.examples.instruction.strip() or examples.instruction
    with console.working(f"learning {len(examples.tasks)} examples"):
        return model.adapt(
            examples.tasks,
            instruction=instruction,
            config=given.learn,
            seed=given.seed,
        )


def questions(given: Namespace) -> list[Task]:
    """Return the rows of --tasks as questions like the examples."""
    from mass.tasks import few_shot

    group = given.tasks
    for name in ("levels", "subjects", "part"):
        if getattr(group, name) is not None:
            raise ConfigError(f"--tasks.{name} is not for questions like examples, which are all asked; leave it out")
    fields, verifier = group.fields or given.examples.fields, group.verifier or given.examples.verifier
    return few_shot.questions(Path(group.source).expanduser(), fields, verifier)[: group.size]


def few_shot_tasks(given: Namespace) -> tuple[list[Task], dict[str, Any]]:
    """Load the few-shot tasks of --tasks and --tasks.shots, and say where they come from, for records.

    Raises:
        ConfigError: An option is not for few-shot tasks.
        DataError: The tasks cannot be loaded.
    """
    from mass.tasks import few_shot

    group = given.tasks
    for name in ("part", "levels", "subjects"):
        if getattr(group, name) is not None:
            raise ConfigError(f"--tasks.{name} is not for few-shot tasks (--tasks.shots); leave one of the two out")
    seed = given.seed if group.seed is None else group.seed
    chosen: dict[str, Any] = {name: getattr(group, name) for name in ("fields", "verifier", "size")}
    found = few_shot.load_sets(Path(group.source).expanduser(), group.shots, seed, **chosen)
    return found, {"source": group.source, "split": None, "seed": seed, "shots": group.shots}


def answer(given: Namespace, adapted: AdaptedModel, problems: Sequence[str | Task]) -> list[Solution]:
    """Answer the questions in batches, and print each answer as soon as its batch is there."""
    from mass.cli import records

    found: list[Solution] = []
    for at in range(0, len(problems), AT_ONCE):
        some = problems[at : at + AT_ONCE]
        with console.working(f"answering ({at + len(some)} of {len(problems)})"):
            solutions = adapted.solve_all(some, given.seed)
        for problem, solution in zip(some, map(_without_examples, solutions), strict=True):
            if given.json:
                print(records.to_json(solution), flush=True)
            else:
                console.stdout().print(_answered(problem, solution))
            if given.out is not None:
                records.write(Path(given.out), len(found), problem, solution)
            found.append(solution)
    return found


def _without_examples(solution: Solution) -> Solution:
    """Return the answer with a record of its own cost alone: the examples would be repeated with each of them."""
    assert solution.adaptation is not None
    return replace(solution, adaptation=replace(solution.adaptation, examples=()))


def _answered(problem: str | Task, solution: Solution) -> RenderableType:
    from mass.types import Task, shortened

    text = problem.problem if isinstance(problem, Task) else problem
    record = solution.adaptation
    verdict = None if record is None else record.verdict
    mark = "" if verdict is None or verdict.correct is None else " ✓" if verdict.correct else " ✗"
    gold = f"(right: {problem.answer})" if mark == " ✗" and isinstance(problem, Task) else ""
    return Group(
        Text(shortened(text, 100), style="dim"),
        Padding(
            Text.assemble(solution.text or "(empty)", mark, (f"  {shortened(gold, 80)}" if gold else "", "dim")),
            (0, 0, 0, 2),
        ),
    )


def shown(adapted: AdaptedModel) -> RenderableType:
    """Return all that is shown of what was tried, chosen and learned."""
    choice = adapted.choice
    assert choice is not None
    parts: list[RenderableType] = [Text(f"note: {note}", style="yellow") for note in choice.notes]
    if choice.tried:
        parts += [
            Text.assemble(("Tried", "bold"), f"  {choice.folds} parts of the examples, each held out once"),
            Padding(_tried(adapted), (0, 0, 1, 2)),
        ]
    parts.append(Text.assemble(("Chosen", "bold"), f"  {choice.reason}"))
    if choice.chosen.adapts:
        parts += [Padding(_losses(adapted), (1, 0, 0, 2))]
    return Group(*parts, Padding(Text(_cost(adapted), style="dim"), (0, 0, 0, 2)))


def _tried(adapted: AdaptedModel) -> Table:
    from mass.adaptation.examples.choosing import counted

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "held-out answers right", "loss of the outputs", "seconds"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    assert adapted.choice is not None
    for one in adapted.choice.tried:
        loss = "" if one.loss is None else f"{one.loss:.3f}"
        table.add_row(_marked(one, adapted.choice.chosen), counted(one), loss, f"{one.seconds:.1f}")
    return table


def _marked(one: Candidate, chosen: Candidate) -> Text:
    return Text(one.name, style="bold" if one == chosen else "")


def _losses(adapted: AdaptedModel) -> Table:
    from mass.types import shortened

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("example", ratio=1)
    table.add_column("its output")
    table.add_column("loss before → after", justify="right", no_wrap=True)
    taught = [one for one in adapted.adaptation.examples if one.loss_before is not None]
    for one in taught[:MOST_SHOWN]:
        table.add_row(
            Text(shortened(one.problem, 70)),
            Text(shortened(one.solution, 40)),
            f"{one.loss_before:.3f} → {one.loss_after:.3f}",
        )
    if len(taught) > MOST_SHOWN:
        table.add_row(Text(f"and {len(taught) - MOST_SHOWN} more"), "", "")
    return table


def _cost(adapted: AdaptedModel) -> str:
    record = adapted.adaptation
    stages = [f"{name} {seconds:.1f} s" for name, seconds in record.seconds.items()]
    tokens = sum(record.tokens.values())
    return " · ".join([*stages, f"in all {sum(record.seconds.values()):.1f} s, {tokens:,} generated tokens"])


def to_json(adapted: AdaptedModel) -> str:
    """Return what was tried, chosen and learned as one JSON object."""
    assert adapted.choice is not None
    data: dict[str, Any] = {"choice": asdict(adapted.choice), "adaptation": adapted.adaptation.to_dict()}
    return json.dumps(data, ensure_ascii=False)
