"""`mass report`: write the HTML page of a run or a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass import encoding
from mass.cli import console, options
from mass.errors import RunError
from mass.runs.folder import COMPARISON, CONFIG, METRICS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "mass report runs/first",
    "mass report runs/eval-20260102-030405",
)
PAGE = "report.html"


def run(arguments: Sequence[str]) -> int:
    """Run `mass report` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    folder = Path(given.folder)
    if (folder / COMPARISON).is_file():
        page = write_comparison_page(folder)
    elif (folder / METRICS).is_file():
        page = write_training_page(folder)
    else:
        raise RunError(
            f"{given.folder!r} holds neither {COMPARISON} nor {METRICS}; expected a folder of mass train, eval or "
            "demo; give one (python -m research document fills a document from stored results)"
        )
    console.say(str(page))
    return 0


def write_comparison_page(folder: Path) -> Path:
    """Write the page of a comparison, and return its path."""
    from mass.report import write_html

    return write_html(_json(folder / COMPARISON), folder / PAGE)


def write_training_page(folder: Path) -> Path:
    """Write the page of a training run, and return its path. A last line that a kill cut short is left out.

    Raises:
        RunError: The run's files cannot be read.
    """
    from mass.report import training_page, write_page

    lines = _text(folder / METRICS).splitlines()
    rows = [row for i, line in enumerate(lines) if (row := _row(line, folder, i + 1, last=i + 1 == len(lines)))]
    return write_page(training_page(rows, _json(folder / CONFIG), f"Training run {folder.name}"), folder / PAGE)


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "report",
        "FOLDER [options]",
        "Write the HTML page of a run or comparison folder anew.",
        EXAMPLES,
    )
    parser.add_argument("folder", type=str, help="A folder of mass train, eval or demo.")
    return parser


def _row(line: str, folder: Path, number: int, *, last: bool) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        if last:
            return {}
        raise RunError(
            f"{folder / METRICS}, line {number} is not JSON ({error}); correct or remove that line"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); expected the file that mass wrote") from error


def _text(path: Path) -> str:
    try:
        return encoding.read(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); expected the file that mass wrote") from error
