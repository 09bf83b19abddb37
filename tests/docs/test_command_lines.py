"""Every `mass ...` line that the pages show is one that the real parsers take; every option they name is one."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import reading
from reading import PAGES, ROOT, SHELLS, Block, Command

from mass.cli import options
from mass.cli.main import VERBS, module_of
from mass.errors import MassError
from mass.evaluation.lm_eval.arguments import arguments_of

COMMANDS = [c for page in PAGES for b in reading.blocks(page) if b.language in SHELLS for c in reading.commands(b)]
HARNESS = "lm-eval"
"""The verb whose options, but for the model arguments, are another program's."""
INLINE = re.compile(r"`(--[A-Za-z][\w.-]*)")
OF_OTHERS = {
    *("--find-links", "--extra-index-url", "--strict"),
    *("--include_path", "--batch_size", "--model_args", "--use_cache"),
    *("--enable-lora", "--max-lora-rank", "--max-loras", "--max-cpu-loras", "--generation-config", "--max-model-len"),
    *("--gpu-memory-utilization", "--tensor-parallel-size", "--data-parallel-size"),
}
"""Options of pip and of the judge that a page makes up; of lm_eval; of vLLM."""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@functools.cache
def known_options() -> set[str]:
    """Of all verbs."""
    parsers = [importlib.import_module(module_of(verb))._parser() for verb in VERBS if verb != HARNESS]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


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
    assert verb in VERBS
    if verb == HARNESS:
        given = rest[rest.index("--model_args") + 1] if "--model_args" in rest else ""
        arguments_of(dict(pair.split("=", 1) for pair in given.split(",") if pair) | {"batch_size": 1})
    elif "--help" not in rest:
        options.parse(importlib.import_module(module_of(verb))._parser(), without_files_of_runs(rest))


def test_there_are_command_lines_of_every_verb() -> None:
    assert len(COMMANDS) > 30
    assert {command.arguments[0] for command in COMMANDS} >= {"solve", "train", "eval", "study", "collect", "report"}


@pytest.mark.parametrize("page", PAGES, ids=reading.name_of)
def test_an_option_that_a_page_names_is_one(page: Path) -> None:
    known = known_options() | {"--debug", "--version"} | OF_OTHERS
    prose = reading.FENCE.sub("", page.read_text(encoding="utf-8"))
    assert [name for name in INLINE.findall(prose) if name not in known] == []


def test_a_line_that_no_parser_takes_is_found() -> None:
    block = Block(ROOT / "README.md", 1, "bash", "echo hi | mass eval --sise 3 > x.txt; mass eval --size 4\n", None)
    wrong, right = reading.commands(block)
    assert wrong.arguments == ("eval", "--sise", "3")
    with pytest.raises(MassError, match="--sise is no option of mass eval; did you mean '--size'"):
        test_a_command_line_of_the_pages_is_one(wrong)
    test_a_command_line_of_the_pages_is_one(right)
