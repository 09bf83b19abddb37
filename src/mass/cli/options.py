"""Parse the command line and YAML files into checked values, with one-line errors of our own.

Every command has a jsonargparse parser: dataclasses become dotted options and YAML keys. Defaults come first, then
`--config`, then the command line.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from mass import encoding
from mass.config import EngineConfig, to_dict
from mass.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mass.types import Task

TASKS_HELP = (
    "minimath; minimath-terms; a .jsonl or .parquet file; gsm8k, math, math500, aime, svamp, "
    "humaneval, mbpp, mmlu, bbh or any owner/name of the hub; reasoning_gym:NAME."
)
MODEL_HELP = "tiny, tiny-terms, smollm2, a folder, a .gguf file, a hub name, or owner/name:file.gguf of the hub"
CONFIG_HELP = "A YAML file of the options below; options on the command line come on top."


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's formatter, with the line breaks of the examples kept."""


def make_parser(
    verb: str, usage: str, description: str, examples: Iterable[str], program: str = "mass"
) -> ArgumentParser:
    """Return a parser for `program VERB` with `--config` and `--print_config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"{program} {verb}",
        usage=f"{program} {verb} {usage}",
        description=description,
        epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]),
        formatter_class=HelpFormatter,
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    parser.add_argument("--print_config", action="store_true", help="Print the resolved configuration and exit.")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Return the checked values, with dataclasses instantiated.

    Raises:
        ConfigError: An option, a key or a value cannot be used.
    """
    name_groups(parser)
    # Keys are checked first: jsonargparse's own message for an unknown key does not suggest the nearest one.
    for path in _config_files(arguments):
        _check_keys(path, parser)
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except argparse.ArgumentError as error:
        raise ConfigError(_one_line(str(error), parser)) from error


def print_yaml(values: Mapping[str, Any]) -> None:
    """Print a resolved configuration as YAML that `--config` accepts."""
    print(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False), end="")


def print_given(given: Namespace) -> None:
    """Print all options of a command with their values, for `--print_config`."""
    values = {name: value for name, value in vars(given).items() if name not in ("config", "print_config")}
    print_yaml({name: to_dict(value) if is_dataclass(value) else value for name, value in values.items()})


def add_model_options(parser: ArgumentParser, *, checkpoint: str, default: str | None = "tiny") -> None:
    """Add `--model` and the options for loading it; `checkpoint` is the help text of that option."""
    parser.add_argument(
        "--model",
        type=str | None,
        default=default,
        help=f"{MODEL_HELP}{f'; {default} by default' if default else ''}.",
    )
    parser.add_argument("--checkpoint", type=str | None, default=None, help=checkpoint)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--dtype",
        type=str | None,
        default=None,
        help="Precision of the base: float32, bfloat16, float16 or float64; auto, the default: its files' own where "
        "the device is fast at that, else float32.",
    )
    parser.add_argument(
        "--decode-rows", type=int, default=128, help="Sequences sampled side by side at most; bounds memory."
    )
    parser.add_argument(
        "--prompts",
        type=str | None,
        default=None,
        help="A file of prompts, as `mass prompts` prints one; a checkpoint's own by default.",
    )
    parser.add_argument(
        "--thinking",
        type=bool | None,
        default=None,
        help="Whether a model with a thinking switch thinks aloud first: true or false; as the prompts say by default.",
    )
    parser.add_argument(
        "--device-map",
        type=str | dict[str, int | str] | None,
        default=None,
        help="Spread the layers over several GPUs: auto, balanced, ..., or a mapping.",
    )
    parser.add_argument(
        "--quantization",
        type=Literal["none", "4bit", "8bit"] | None,
        default=None,
        help="Base weights in 4bit or 8bit, by bitsandbytes on a CUDA device; none by default.",
    )
    parser.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit of a hub's model.")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Run Python code that comes with the model; read it first."
    )
    parser.add_argument("--engine", type=EngineConfig, default=EngineConfig())


LOADING = (
    "device", "dtype", "decode_rows", "prompts", "thinking", "device_map", "quantization", "revision",
    "trust_remote_code", "engine",
)  # fmt: skip
"""Options of `add_model_options` that `mass.load` takes, apart from the names of model and checkpoint."""


def loading(given: Namespace) -> dict[str, Any]:
    """Return the keyword options for `mass.load` from those of `add_model_options`."""
    return {name: getattr(given, name) for name in LOADING if getattr(given, name) is not None}


def add_task_options(parser: ArgumentParser, *, default: str | None) -> None:
    """Add `--tasks` and the options that choose among the tasks."""
    parser.add_argument("--tasks", type=str | None, default=default, help=TASKS_HELP)
    parser.add_argument("--split", type=str, default="test", help="Of a built-in set, or of a data set of the hub.")
    parser.add_argument("--size", type=int | None, default=None, help="Number of problems; all of a file by default.")
    parser.add_argument(
        "--fields", type=str, default="", help="Names in the file that differ: problem=my_question,answer=my_answer."
    )
    parser.add_argument(
        "--verifier",
        type=str | None,
        default=None,
        help="Judges all answers: math, exact, words, choice, code, module:function, command:PROGRAM; as the fields "
        "suggest.",
    )
    parser.add_argument(
        "--levels", type=list[int] | None, default=None, help="Only problems of these levels, as in [4,5]."
    )
    parser.add_argument(
        "--subjects", type=list[str] | None, default=None, help="Only problems of these subjects, as in [Algebra]."
    )


def choosing(given: Namespace) -> dict[str, Any]:
    """Return the options of `mass.tasks.load` from those of `add_task_options`. Raises ConfigError."""
    fields = pairs("--fields", given.fields)
    named = ("split", "size", "verifier", "levels", "subjects")
    return {"fields": fields, **{name: getattr(given, name) for name in named}}


def load_tasks(given: Namespace) -> tuple[list[Task], dict[str, Any]]:
    """Load the tasks that the options of `add_task_options` and `--tasks-seed` name.

    Returns:
        The tasks, and where they come from, for records: source, split, seed, and levels and subjects where some are
            chosen.

    Raises:
        ConfigError: An option cannot be used.
        DataError: The tasks cannot be loaded.
    """
    from mass import tasks

    seed = given.seed if given.tasks_seed is None else given.tasks_seed
    found = tasks.load(given.tasks, seed=seed, **choosing(given))
    split = given.split if tasks.has_splits(given.tasks) else None
    chosen = {name: getattr(given, name) for name in ("levels", "subjects") if getattr(given, name) is not None}
    return found, {"source": given.tasks, "split": split, "seed": seed, **chosen}


def pairs(option: str, text: str) -> dict[str, str]:
    """Parse `a=b,c=d` into a dict. Raises ConfigError."""
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ConfigError(f"{option} has {part!r}; expected name=value, several with commas between")
        found[name] = value
    return found


def _config_files(arguments: Sequence[str]) -> list[Path]:
    following = [b for a, b in itertools.pairwise(arguments) if a == "--config"]
    joined = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    return [Path(name) for name in (*following, *joined)]


def _check_keys(path: Path, parser: ArgumentParser) -> None:
    """Refuse, with a ConfigError, a file that cannot be read, is not a YAML mapping, or has a key that is not an
    option."""
    try:
        text = encoding.read(path)
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read ({error.strerror}); expected a YAML file") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a text that looks like a date and is none
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{where} is no YAML ({problem}); mend it there") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys; expected YAML like 'train: {{steps: 100}}'")
    known = _known(parser)
    for key in _keys(data or {}, known):
        raise ConfigError(f"{path}: {key!r} is no configuration key{_near(key, known)}")


def _known(parser: ArgumentParser) -> set[str]:
    skipped = ("help", "config", "print_config")
    dests = (action.dest for action in parser._actions)  # pyright: ignore[reportPrivateUsage]
    return {dest for dest in dests if dest.rpartition(".")[2] not in skipped}


def _keys(data: Mapping[Any, Any], known: set[str], prefix: str = "") -> Iterable[str]:
    """Yield dotted keys that are not options. Below an option that takes a mapping, every key is allowed."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        deeper = any(k.startswith(f"{key}.") for k in known)
        if isinstance(value, dict) and deeper:
            yield from _keys(value, known, f"{key}.")
        elif key not in known and not deeper:
            yield key


def _near(key: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest key, or the names on the same level when none is near."""
    parent = key.rpartition(".")[0]
    beside = [k for k in known if k.rpartition(".")[0] == parent]
    leaf = nearest(key.rpartition(".")[2], [k.rpartition(".")[2] for k in beside])
    if "did you mean" in leaf and parent:
        return leaf.replace("did you mean '", f"did you mean '{parent}.")
    whole = nearest(key, known)
    return whole if "did you mean" in whole else leaf if beside else "; see --help"


def _one_line(message: str, parser: ArgumentParser) -> str:
    """Rewrite jsonargparse's message in our words."""
    if match := re.match(r"unrecognized arguments: (\S+)(.*)", message, re.S):
        option = match[1].partition("=")[0]
        if not option.startswith("-"):
            return f"{match[1]!r} is one argument too many; quote a text that has spaces"
        return f"{option} is no option of {parser.prog}{_near_option(option, parser)}"
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.S):
        reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(match[2].split()))
        union = r"Does not validate against any of the Union subtypes Subtypes: \[(.+?)\] .*Given value: (.*)"
        reason = re.sub(union, lambda m: f"is {m[2]!r}; expected {_alternatives(m[1])}", reason)
        reason = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"is '\2'; expected \1", reason)
        return f"{match[1]} {reason}; change it in the --config file or on the command line"
    return f"{' '.join(message.split())}; see {parser.prog} --help"


def _alternatives(names: str) -> str:
    return " or ".join(name.strip().replace("NoneType", "null") for name in names.split(","))


def _near_option(option: str, parser: ArgumentParser) -> str:
    names = {name.lstrip("-") for action in parser._actions for name in action.option_strings}  # pyright: ignore[reportPrivateUsage]
    return _near(option.lstrip("-"), names).replace("did you mean '", "did you mean '--")


def name_groups(parser: ArgumentParser) -> None:
    """Title the sections of the help by the dotted name of their options, instead of a dataclass's signature."""
    for group in parser._action_groups:  # pyright: ignore[reportPrivateUsage]
        names = [action.dest for action in group._group_actions]  # pyright: ignore[reportPrivateUsage]
        nested = len(names) > 1 and names[1].startswith(f"{names[0]}.")
        if nested or (len(names) == 1 and group.title not in ("options", "positional arguments")):
            group.title = names[0]


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return nested values by dotted name, as defaults of a parser."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        found |= flat(value, key) if isinstance(value, dict) else {key: value}
    return found
