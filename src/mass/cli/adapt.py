"""`mass adapt`: learn a file of examples, show what was tried and chosen, and save the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, given_examples, options
from mass.cli.folders import new_folder
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from mass.model import AdaptedModel

EXAMPLES = (
    "mass adapt --examples mine.jsonl --out adapter",
    "mass adapt --examples mine.jsonl --out adapter --model smollm2 --budget_s 300",
    "mass adapt --examples mine.jsonl --examples.fields problem=review,solution=label --out adapter",
    "mass adapt --examples mine.jsonl --out adapter --learn.method adapted --learn.epochs [8]",
    'mass solve "..." --adapted adapter          # ask the saved model',
)


def run(arguments: Sequence[str]) -> int:
    """Run `mass adapt` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    for name, value in (("examples", given.examples.source), ("out", given.out)):
        if value is None:
            raise ConfigError(f"--{name} is missing; expected mass adapt --examples FILE --out FOLDER")
    from mass.model import load

    examples = given_examples.read(given)
    folder = Path(given.out)
    new_folder("--out", folder)
    with console.working("loading the model"):
        model = load(given.model.name, given.checkpoint, **options.loading(given))
    console.notes(model.notes)
    adapted = given_examples.learn(given, model, examples)
    adapted.save(folder)
    if given.json:
        print(given_examples.to_json(adapted))
    else:
        console.stdout().print(given_examples.shown(adapted))
    console.note(_written(adapted, folder))
    return 0


def _written(adapted: AdaptedModel, folder: Path) -> str:
    """Return one line on what is in the folder."""
    assert adapted.choice is not None
    asked = f'ask it with: mass solve "..." --adapted {folder}'
    if adapted.choice.chosen.adapts:
        return f"adapter written to {folder}; {asked}"
    return f"nothing was learned, so {folder} holds no adapter, but how to ask; {asked}"


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "adapt",
        "--examples FILE --out FOLDER [options]",
        "Learn a handful of examples of a task, once for all questions like them. Whether they are shown before each "
        "question, learned by the weights, or both, is chosen by answers to examples that are held out.",
        EXAMPLES,
    )
    given_examples.add_options(parser)
    parser.add_argument("--out", type=str | None, default=None, help="A new folder for the adapter (PEFT).")
    options.add_model_options(parser, checkpoint="A run folder of mass train, to start from.")
    parser.add_argument("--seed", type=int, default=0, help="Every random draw is a function of it.")
    parser.add_argument("--json", action="store_true", help="Print what was tried, chosen and learned as JSON.")
    return parser
