"""`collect`: store what runs measured in small files that a repository can keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.errors import ConfigError, RunError
from research import PROGRAM

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "python -m research collect runs/table --into results/minimath/table",
    "python -m research collect runs/ablations --into results/minimath/ablations",
)


def run(arguments: Sequence[str]) -> int:
    """Run `collect` and return its exit code."""
    from research.results import collect

    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    if given.into is None:
        raise ConfigError(
            "--into is missing; expected a folder for the stored results, as in --into results/mine/table"
        )
    runs = Path(given.runs)
    if not runs.is_dir():
        raise RunError(
            f"{given.runs!r} is not a folder; expected one of python -m research study, or with runs of mass "
            "train and eval in it; give one"
        )
    stored = collect(runs, Path(given.into))
    size = sum(path.stat().st_size for path in stored)
    console.say("\n".join(map(str, stored)))
    console.note(f"{len(stored)} runs stored in {size / 1e3:,.0f} kB")
    return 0


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "collect",
        "RUNS --into FOLDER",
        "Store what the finished runs below a folder measured, in a few kilobytes each: outcomes by problem, costs, "
        "curves. A run is named by its folder, less its seed.",
        EXAMPLES,
        PROGRAM,
    )
    parser.add_argument("runs", type=str, help="A folder of python -m research study, or one that holds runs.")
    parser.add_argument("--into", type=str | None, default=None, help="Folder of one part of the results.")
    return parser
