"""`mass solve`: practise on a problem and show the practice, both answers, and a record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mass import encoding
from mass.cli import console, given_examples, options
from mass.cli.folders import new_folder
from mass.config import AdaptConfig, to_dict
from mass.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from mass.model import Mass
    from mass.tasks.few_shot import Examples
    from mass.types import Adaptation, Solution, Task

EXAMPLES = (
    'mass solve "Find the malk of the vector (9, 7)."',
    "echo 'Find the pelb of a 5 by 2 rectangle.' | mass solve -",
    "mass solve --tasks problems.jsonl --json > answers.jsonl",
    'mass solve "..." --model ./my-model --checkpoint runs/first --adapt.inner.steps 2',
    'mass solve "..." --model Qwen/Qwen3-8B --model.dtype bfloat16 --model.prompts mine.txt',
    'mass solve "..." --examples mine.jsonl        # learn examples of yours, then answer',
    "mass solve --adapted adapter --tasks questions.jsonl",
    'mass solve "..." --json > record.json; mass solve --json --replay record.json',
)
FIXED_BY_CHECKPOINT = (
    "inner.learning_rate",
    "scoring.hidden",
    "scoring.lora_rank",
    "scoring.likelihood",
    "scoring.sharpness",
)
"""Options that a checkpoint has settled: its learned rates, and the shape of its scorer and how that started."""


def run(arguments: Sequence[str]) -> int:
    """Run `mass solve` and return its exit code."""
    parser = _parser()
    given = options.parse(parser, arguments)
    _check_given(given)
    problems = _problems(given)
    _check_folders(given, problems)
    record = _record(given)
    examples = given_examples.read(given) if given.examples.source and not given.print_config else None
    with console.working("loading the model"):
        model = _model(parser, given, arguments, record)
    if given.print_config:
        shown = options.plain(given)
        shown = {name: shown[name] for name in ("model", "checkpoint", "kind", "seed", "examples", "learn")}
        shown["model"]["name"] = model.lm.name
        options.print_yaml({**shown, "adapt": to_dict(model.config)})
        return 0
    if record is not None:
        with console.working("replaying"):
            solution = model.replay(record)
        _print(given, record.problem, solution)
        return 0
    if examples is not None or given.adapted is not None:
        return _answer_like(given, model, examples, problems)
    from mass.cli import records

    verdicts: list[Any] = []
    for index, problem in enumerate(problems):
        with console.working(f"practising ({index + 1} of {len(problems)})" if len(problems) > 1 else "practising"):
            solution = _solve(given, model, problem)
        _print(given, problem, solution)
        if given.out is not None:
            records.write(Path(given.out), index, problem, solution)
        found = solution.adaptation
        verdicts.append((found.unadapted_verdict, found.verdict) if found else (None, None))
    _summarise(given, verdicts)
    return 0


def _answer_like(given: Namespace, model: Mass, examples: Examples | None, problems: Sequence[str | Task]) -> int:
    """Answer like the examples of --examples, or like those that --adapted has learned."""
    if examples is None:
        adapted = model.restore(given.adapted)
    else:
        adapted = given_examples.learn(given, model, examples)
        if not given.json:
            console.stderr().print(given_examples.shown(adapted))
        if given.save_adapter is not None:
            adapted.save(given.save_adapter)
            console.note(f"written to {given.save_adapter}")
    solutions = given_examples.answer(given, adapted, problems)
    verdicts = [solution.adaptation.verdict for solution in solutions if solution.adaptation is not None]
    judged = [one.correct for one in verdicts if one is not None and one.correct is not None]
    if len(judged) > 1 and not given.json:
        console.say(f"{len(judged)} questions: {sum(judged)} right")
    if given.out is not None:
        console.note(f"{len(solutions)} records in {given.out}")
    return 0


def _check_given(given: Namespace) -> None:
    """Refuse options that contradict --examples or --adapted, with a ConfigError."""
    if given.examples.source is not None and given.adapted is not None:
        raise ConfigError("--examples and --adapted are both given; expected one: what is to be learned, or what was")
    name = "--examples" if given.examples.source is not None else "--adapted" if given.adapted is not None else ""
    refused = {"--replay": given.replay, "--no_adapt": given.no_adapt or None}
    if given.adapted is not None:  # its adapter is written already
        refused["--save_adapter"] = given.save_adapter
    for option, value in refused.items():
        if name and value is not None:
            raise ConfigError(f"{option} and {name} are both given; expected one of them; leave one out")


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "solve",
        "PROBLEM [options]",
        "Practise on a problem, then answer it. Shows the practice problems, their weights, the loss on them before "
        "and after, the unadapted and the adapted answer.",
        EXAMPLES,
    )
    parser.add_argument("problem", nargs="?", type=str, help="The problem; - reads it from standard input.")
    options.add_model_options(parser, default=None, checkpoint="A run folder of mass train, or 'untrained'.")
    parser.add_argument("--seed", type=int, default=0, help="Every random draw is a function of it.")
    parser.add_argument(
        "--kind",
        type=Literal["math", "code", "choice", "other"] | None,
        default=None,
        help="What answers end with: a number or formula, a program, a letter, none of these. Tasks say their own.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object (per task, one a line).")
    parser.add_argument("--no_adapt", action="store_true", help="Answer without practice.")
    parser.add_argument(
        "--replay", type=str | None, default=None, help="Answer again from this record, with its model."
    )
    parser.add_argument("--save_adapter", type=str | None, default=None, help="Write the adapted LoRA (a PEFT folder).")
    parser.add_argument("--out", type=str | None, default=None, help="A new folder for one record per answer.")
    options.add_task_options(parser, default=None)
    given_examples.add_options(parser)
    parser.add_argument(
        "--adapted", type=str | None, default=None, help="A folder of mass adapt: answer with what was learned there."
    )
    parser.add_argument("--adapt", type=AdaptConfig, default=AdaptConfig())
    return parser


def _problems(given: Namespace) -> list[str | Task]:
    """Return the problems to solve.

    Raises:
        ConfigError: None is given, or several ways of giving one are used.
        DataError: The problem is empty.
    """
    if given.replay is not None:
        if given.problem is not None or given.tasks.source is not None:
            raise ConfigError("--replay brings its own problem; leave the problem and --tasks out")
        return []
    if given.tasks.source is not None:
        if given.problem is not None:
            raise ConfigError("a problem and --tasks are both given; expected one of them")
        if given.examples.source is not None or given.adapted is not None:
            return list(given_examples.questions(given))
        return list(options.load_task_set(given.tasks, given.seed))
    if given.print_config and given.problem is None:
        return []
    return [_one_problem(given.problem)]


def _one_problem(text: str | None) -> str:
    stdin: TextIO | None = sys.stdin  # None if standard input is closed
    if text is None and (stdin is None or stdin.isatty()):
        raise ConfigError("no problem is given; give it as an argument, as - on standard input, or --tasks FILE")
    text = _all_of(stdin) if text is None or text == "-" else text.removeprefix("\ufeff")
    if not text.strip():
        raise DataError("the problem is empty; give it as an argument, as - on standard input, or --tasks FILE")
    return text.strip()


def _all_of(stdin: TextIO | None) -> str:
    """Read standard input as bytes: as text it would be decoded by the locale, which may not be UTF-8."""
    if stdin is None:
        return ""
    data = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode("utf-8", "surrogateescape")
    try:
        return encoding.decode(data)
    except ValueError as error:
        raise DataError(f"standard input {error}; send the problem as UTF-8") from error


def _check_folders(given: Namespace, problems: Sequence[Any]) -> None:
    if given.save_adapter is not None:
        if given.examples.source is None and (len(problems) != 1 or given.no_adapt):
            raise ConfigError("--save_adapter writes the adapter of one adapted answer; give one problem, and no other")
        new_folder("--save_adapter", Path(given.save_adapter))
    if given.out is not None:
        new_folder("--out", Path(given.out))


def _model(parser: ArgumentParser, given: Namespace, arguments: Sequence[str], record: Adaptation | None) -> Mass:
    """Return the model with its checkpoint's own configuration, changed by the --config file and by dotted options.

    For a record, return the model that made it, unless another one is given.
    """
    from mass.adaptation.checkpoint import init_state
    from mass.adaptation.origin import UNTRAINED
    from mass.lm.source import DEFAULT_MODEL
    from mass.model import load, load_for

    if record is not None:
        return load_for(record, model=given.model.name, checkpoint=given.checkpoint, **options.loading(given))
    name = given.model.name
    if name is None and given.adapted is not None:
        from mass.adaptation.adapted import base_of

        name = base_of(Path(given.adapted))
    model = load(name or DEFAULT_MODEL, given.checkpoint, kind=given.kind, **options.loading(given))
    console.notes(model.notes)
    # Parsed a second time, now with the checkpoint's values as the defaults: only then can a file or an option change
    # single values of it.
    parser.set_defaults(options.flat(to_dict(model.config), "adapt"))
    config: AdaptConfig = options.parse(parser, arguments).adapt
    if model.method == UNTRAINED:
        return replace(model, config=config, state=init_state(model.lm, config, seed=0))
    for name in FIXED_BY_CHECKPOINT:
        stage, field = name.split(".")
        if getattr(getattr(config, stage), field) != getattr(getattr(model.config, stage), field):
            raise ConfigError(
                f"adapt.{name} is given, but checkpoint {model.checkpoint!r} has learned what it decides; leave it "
                "out, or solve with --checkpoint untrained"
            )
    return replace(model, config=config)


def _record(given: Namespace) -> Adaptation | None:
    from mass.cli import records

    return None if given.replay is None else records.read(Path(given.replay))


def _solve(given: Namespace, model: Mass, problem: str | Task) -> Solution:
    """Return the solution, and write its adapter where --save_adapter says."""
    if given.save_adapter is None:
        return model.solve(problem, adapt=not given.no_adapt, seed=given.seed)
    solution, adapted = model.solve(problem, seed=given.seed, return_adapted=True)
    adapted.save(given.save_adapter)
    fallback = adapted.adaptation.fallback
    why = f" (the starting one: {fallback})" if fallback else ""
    console.note(f"adapter written to {given.save_adapter}{why}")
    return solution


def _print(given: Namespace, problem: str | Task, solution: Solution) -> None:
    from mass.cli import records, show

    if given.json:
        print(records.to_json(solution), flush=True)
        return
    console.stdout().print(show.solution(problem, solution), "")


def _summarise(given: Namespace, verdicts: Sequence[Any]) -> None:
    from mass.cli import show

    if len(verdicts) > 1 and not given.json and any(a is not None for _, a in verdicts):
        console.stdout().print(show.tally(verdicts))
    if given.out is not None:
        console.note(f"{len(verdicts)} records in {given.out}")
