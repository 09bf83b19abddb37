"""`mass demo`: solve a few problems while the user watches, then compare the model with its baselines.

A model of the package is asked the built-in problems that it was trained on; any other model a few plain word problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass.cli import console, options
from mass.cli.folders import dated_folder, new_folder
from mass.config import EvalConfig
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from mass.model import Mass
    from mass.types import Task

EXAMPLES = (
    "mass demo",
    "mass demo --tasks.size 70 --seed 1",
    "mass demo --model smollm2",
    "mass demo --model ./my-model --checkpoint runs/mine",
)
METHODS = ("base", "tt-ss", "mass", "mass-unadapted")
UNTRAINED_METHODS = METHODS[:2]
"""Methods that `mass demo` compares on a model without a meta-trained checkpoint."""
WORD_PROBLEMS, MAX_TOKENS = Path(__file__).parents[1] / "tasks" / "word_problems.jsonl", 256
"""A file with twelve problems, and the token limit of a practice problem and of an answer, enough for models that
solve these."""
SHOWN, FIRST_SHOWN, SHOWN_STEP = 3, 4, 9
"""Which problems are solved before the comparison: in the order of the built-in sets these are a Geometry, a
Precalculus and an Algebra problem, each one level above the one before."""
RATE, STEPS = 14.0, 1
"""Inner rate and steps of tt-ss with tiny-terms, where it does best on validation problems (docs/results.md). The
trained checkpoint starts from a lower rate, which suits the weights that it has learned."""


def run(arguments: Sequence[str]) -> int:
    """Run `mass demo` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    if given.tasks.size < 1:
        raise ConfigError(f"--tasks.size is {given.tasks.size}; expected at least 1")
    folder = dated_folder("demo") if given.out is None else Path(given.out)
    from mass import tasks as task_sets
    from mass import verify
    from mass.cli import show
    from mass.cli.comparing import compare, print_comparison
    from mass.lm.source import DEFAULT_MODEL, SHIPPED_MODELS, TINY_TERMS
    from mass.model import load

    name = given.model.name or DEFAULT_MODEL
    source = SHIPPED_MODELS.get(name, WORD_PROBLEMS)
    methods = METHODS if name in SHIPPED_MODELS or given.checkpoint else UNTRAINED_METHODS
    tasks = task_sets.load(source, split="test", size=given.tasks.size, seed=given.seed)
    new_folder("--out", folder)
    with console.working("loading the model"):
        model = load(name, given.checkpoint, **_short(name, given.checkpoint), **options.loading(given))
    out = console.stdout()
    shown = _shown(tasks)
    out.print(_introduction(len(shown), trained=len(methods) > len(UNTRAINED_METHODS)))
    for task in shown:
        with console.working("practising"):
            base, solution = _base_answer(model, task), model.solve(task, seed=given.seed)
        out.print(show.solution(task, solution))
        out.print(show.base_answer(base, verify.check(task, base)), end="\n\n")
    inner = dataclasses.replace(model.config.inner, learning_rate=RATE, steps=STEPS) if name == TINY_TERMS else None
    out.print(f"Now {', '.join(methods)} on {len(tasks)} problems.\n")
    comparison = compare(
        model,
        tasks,
        methods,
        config=EvalConfig(ttt=inner) if source != WORD_PROBLEMS else EvalConfig(answer=model.config.answer, stack=3),
        source={"source": str(source), "split": None if source == WORD_PROBLEMS else "test", "seed": given.seed},
        folder=folder,
        seed=given.seed,
        checkpoints={"mass": given.checkpoint} if given.checkpoint else None,
    )
    print_comparison(comparison, folder)
    return 0


def _introduction(count: int, *, trained: bool) -> str:
    if trained:
        return (
            f"{count} held-out problems, answered by the base, and by the meta-trained model before and after the "
            "practice that it writes itself.\n"
        )
    return (
        f"{count} word problems, answered by the model before and after the practice that it writes itself. Nothing "
        "was meta-trained on it, so its practice is as good as its own solutions are: it may help or hurt.\n"
    )


def _short(name: str, checkpoint: str | None) -> dict[str, Any]:
    """Return options of `mass.load` with shorter texts, for a model without a checkpoint (a checkpoint has its own
    lengths)."""
    from mass.config import AdaptConfig, SamplingConfig, SynthesisConfig
    from mass.lm.source import SHIPPED_MODELS

    if name in SHIPPED_MODELS or checkpoint:
        return {}
    written = SamplingConfig(MAX_TOKENS)
    return {"config": AdaptConfig(SynthesisConfig(sampling=written), answer=SamplingConfig(MAX_TOKENS, 0.0))}


def _base_answer(model: Mass, task: Task) -> str:
    """Return the greedy answer of the base alone, without the checkpoint."""
    prompt = model.lm.solve_prompt(task.problem)
    (sample,) = model.lm.sample([prompt], model.config.answer, [0])
    return sample.text.strip()


def _shown(tasks: Sequence[Task]) -> list[Task]:
    return [tasks[(FIRST_SHOWN + i * SHOWN_STEP) % len(tasks)] for i in range(min(SHOWN, len(tasks)))]


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "demo",
        "[options]",
        "Solve a few problems before your eyes, then compare methods: with a model that ships with the package on "
        "problems that it was taught, base, tt-ss and mass; with any other (smollm2 is a real one) on twelve word "
        "problems, base and untrained practice.",
        EXAMPLES,
    )
    options.add_model_options(parser, checkpoint="A run folder of mass train.")
    parser.add_argument(
        "--tasks.size", type=int, default=210, help="Problems of the comparison; of word problems there are twelve."
    )
    parser.add_argument("--seed", type=int, default=0, help="Which problems, and every random draw.")
    parser.add_argument("--out", type=str | None, default=None, help="A new folder; runs/demo-DATE by default.")
    return parser
