"""Every line of `mass` and `python -m research` on the pages is one that their parsers take; so is every option."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import reading
from jsonargparse import ArgumentParser
from reading import PAGES, ROOT, SHELLS, Block, Command
from research.__main__ import RESEARCH

from mass.cli import options
from mass.cli.main import MASS, CommandLine
from mass.cli.spelling import SHORT
from mass.config.names import new_name
from mass.errors import MassError
from mass.evaluation.lm_eval.arguments import arguments_of

COMMANDS = [c for page in PAGES for b in reading.blocks(page) if b.language in SHELLS for c in reading.commands(b)]
PROGRAMS: dict[str, CommandLine] = {"mass": MASS, "research": RESEARCH}
HARNESS = "lm-eval"
"""The verb whose options, but for the model arguments, are another program's."""
INLINE = re.compile(r"`(--[A-Za-z][\w.-]*)")
OF_OTHERS = {
    *("--find-links", "--extra-index-url", "--strict"),
    *("--include_path", "--batch_size", "--model_args", "--use_cache"),
    *("--enable-lora", "--max-lora-rank", "--max-loras", "--max-cpu-loras", "--generation-config", "--max-model-len"),
    *("--device", "--dtype", "--gpu-memory-utilization", "--tensor-parallel-size", "--data-parallel-size"),
}
"""Options of pip and of the judge that a page makes up; of lm_eval and vLLM."""

OF_FORMER_TIMES = ("CHANGELOG.md", "0022-one-name-for-one-thing.md")
"""Pages that tell how options were called before."""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@functools.cache
def known_options() -> set[str]:
    """Of all verbs of all programs."""
    parsers = [parser_of(p, verb) for p in PROGRAMS.values() for verb in p.verbs if verb != HARNESS]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def parser_of(program: CommandLine, verb: str) -> ArgumentParser:
    return importlib.import_module(program.module_of(verb))._parser()


def without_files_of_runs(arguments: Iterable[str]) -> list[str]:
    """Less a `--config` that an earlier command of the page would have written."""
    rest = list(arguments)
    while "--config" in rest and Path(rest[rest.index("--config") + 1]).parts[0] != "recipes":
        del rest[rest.index("--config") : rest.index("--config") + 2]
    return rest


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_line_of_the_pages_is_one(command: Command) -> None:
    verb, *rest = command.arguments
    if verb in ("--help", "--version"):
        return
    program = PROGRAMS[command.program]
    assert verb in program.verbs
    if verb == HARNESS:
        given = rest[rest.index("--model_args") + 1] if "--model_args" in rest else ""
        arguments_of(dict(pair.split("=", 1) for pair in given.split(",") if pair) | {"batch_size": 1})
    elif "--help" not in rest:
        options.parse(parser_of(program, verb), without_files_of_runs(rest))


def test_there_are_command_lines_of_every_verb() -> None:
    shown = {(command.program, command.arguments[0]) for command in COMMANDS}
    assert {(name, verb) for name, program in PROGRAMS.items() for verb in program.verbs} - shown == set()


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in MASS.verbs if f"| `mass {verb}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=reading.name_of)
def test_an_option_that_a_page_names_is_one(page: Path) -> None:
    known = known_options() | {"--debug", "--version"} | OF_OTHERS | {f"--{name}" for name in SHORT}
    prose = reading.FENCE.sub("", page.read_text(encoding="utf-8"))
    if page.name in OF_FORMER_TIMES:
        plain = {name.lstrip("-") for name in known}
        known |= {name for name in INLINE.findall(prose) if new_name(name.lstrip("-"), plain)}
    assert [name for name in INLINE.findall(prose) if name not in known] == []


def test_a_line_that_no_parser_takes_is_found() -> None:
    block = Block(
        ROOT / "README.md", 1, "bash", "echo hi | mass eval --sise 3 > x.txt; mass eval --tasks.size 4\n", None
    )
    wrong, right = reading.commands(block)
    assert wrong.arguments == ("eval", "--sise", "3")
    with pytest.raises(MassError, match=r"--sise is not an option of mass eval; did you mean '--tasks.size'"):
        test_a_command_line_of_the_pages_is_one(wrong)
    test_a_command_line_of_the_pages_is_one(right)


def test_a_line_of_research_is_found_and_parsed() -> None:
    text = "python -m research collect runs/x --into results/x\npython benchmarks/headroom.py --out x\n"
    (found,) = reading.commands(Block(ROOT / "README.md", 1, "bash", text, None))
    assert (found.program, found.arguments) == ("research", ("collect", "runs/x", "--into", "results/x"))
    test_a_command_line_of_the_pages_is_one(found)
    wrong = Command(found.block, "research", ("collect", "runs/x", "--onto", "results/x"))
    with pytest.raises(MassError, match="--onto"):
        test_a_command_line_of_the_pages_is_one(wrong)
