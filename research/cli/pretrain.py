"""`pretrain`: make the tiny base model, in Hugging Face files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.cli.failures import INTERRUPTED
from mass.cli.folders import new_folder
from mass.config import to_dict
from mass.errors import ConfigError, RunError
from mass.runs.folder import held
from mass.timing import duration
from research import PROGRAM
from research.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "python -m research pretrain --config recipes/minimath/base.yaml --out runs/base",
    "python -m research pretrain --config recipes/minimath/base.yaml --out runs/base --resume",
    "python -m research pretrain --out runs/small --steps 300 --layers 2 --width 64",
)
LINE_EVERY = 50
"""Steps between progress lines where there is no terminal."""


def run(arguments: Sequence[str]) -> int:
    """Run `pretrain` and return its exit code."""
    given = options.parse(_parser(), arguments)
    config = PretrainConfig(**{field.name: getattr(given, field.name) for field in fields(PretrainConfig)})
    if given.print_config:
        options.print_yaml(to_dict(config))
        return 0
    if given.out is None:
        raise ConfigError("--out is missing; expected a folder for the model, as in --out runs/base")
    out = Path(given.out)
    _check_folder(out, config, resume=given.resume)
    from research.pretrain import pretrain

    screen = console.stderr()
    pace = console.Pace(config.steps)
    try:
        with held(out), console.progress_bar(screen) as bar:
            task = bar.add_task("pretraining", total=config.steps, left="?")

            def report(metrics: dict[str, float]) -> None:
                step, left_s = int(metrics["step"]), pace.left_s(int(metrics["step"]))
                line = f"loss {metrics['loss']:.4f}  {metrics['tokens_per_s']:,.0f} tokens/s"
                bar.update(task, completed=step, description=line, left=duration(left_s))
                if not screen.is_terminal and (step % LINE_EVERY == 0 or step == config.steps):
                    screen.print(f"step {step}/{config.steps}  {line}  left {duration(left_s)}", markup=False)

            pretrain(config, out, report)
    except KeyboardInterrupt:
        console.note(f"stopped; the same command with --resume goes on from the last checkpoint in {out}")
        return INTERRUPTED
    console.say(f'model: {out / "model"}\ntry it: mass solve --model {out / "model"} "..."')
    return 0


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "pretrain",
        "--config RECIPE.yaml --out FOLDER [options]",
        "Make the tiny base model: a LlamaForCausalLM trained on minimath's mixed web in small.",
        EXAMPLES,
        PROGRAM,
    )
    parser.add_argument("--out", type=str | None, default=None, help="A folder: new, or with --resume a used one.")
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in --out.")
    parser.add_class_arguments(PretrainConfig)
    return parser


def _check_folder(out: Path, config: PretrainConfig, *, resume: bool) -> None:
    """Refuse, with a RunError, a folder that is in use, cannot be created, or was begun with another configuration."""
    if not resume:
        new_folder("--out", out)
        return
    saved = out / "config.json"
    if not saved.is_file():
        raise RunError(f"{str(out)!r} holds no run to resume; expected config.json in it; leave --resume out")
    begun, wanted = json.loads(saved.read_text()), to_dict(config)
    different = [name for name in wanted if begun.get(name) != wanted[name]]
    if different:
        name = different[0]
        raise RunError(
            f"{str(out)!r} was begun with {name} = {begun.get(name)!r}, now it is {wanted[name]!r}; resume with the "
            "same configuration, or name another folder"
        )
