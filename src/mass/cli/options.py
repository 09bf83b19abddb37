"""Parse the command line and YAML files into checked values, with one-line errors of our own.

Every command has a jsonargparse parser: dataclasses become dotted options and YAML keys. Defaults come first, then
`--config`, then the command line. An option has the same name in every command and in a file (docs/adr/0022).
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from mass import encoding
from mass.cli.spelling import SHORT, spelled_out
from mass.config import EngineConfig, to_dict
from mass.config.names import new_name
from mass.errors import ConfigError

if TYPE_CHECKING:
    from mass.types import Task

TASKS_HELP = (
    "minimath-terms; minimath; a .jsonl or .parquet file; gsm8k, math, math500, aime, svamp, "
    "humaneval, mbpp, mmlu, bbh or any owner/name of the hub; reasoning_gym:NAME."
)
MODEL_HELP = "tiny-terms, smollm2, a folder, a .gguf file, a hub name, or owner/name:file.gguf of the hub"
LIKE, SAME_LEVEL = 0.7, 0.1
"""Likeness (between 0 and 1) from which a known name is suggested for a wrong one, and what is added to it for a name
on the same level."""
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
        return parser.instantiate(parser.parse_args(spelled_out(arguments, _known(parser))))
    except argparse.ArgumentError as error:
        raise ConfigError(_one_line(str(error), parser)) from error


def print_yaml(values: Mapping[str, Any]) -> None:
    """Print a resolved configuration as YAML that `--config` accepts."""
    print(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False), end="")


def print_given(given: Namespace) -> None:
    """Print all options of a command with their values, for `--print_config`."""
    print_yaml({name: value for name, value in plain(given).items() if name not in ("config", "print_config")})


def plain(value: Any) -> Any:
    """Return parsed options as dicts and plain values."""
    if isinstance(value, Namespace):
        return {name: plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, tuple):
        return list(value)
    return to_dict(value) if is_dataclass(value) else value


def add_model_options(parser: ArgumentParser, *, checkpoint: str | None, default: str | None = "tiny-terms") -> None:
    """Add the options `--model.*` for loading a model, and `--checkpoint`, whose help text is given; None for none.

    Their names are those of `mass.config.ModelConfig`. None stands for a value that is not given: a checkpoint, a
    record or `mass.load` decides then.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model.name",
        type=str | None,
        default=default,
        help=f"{MODEL_HELP}{f'; {default} by default' if default else ''}. --model NAME for short.",
    )
    if checkpoint is not None:
        parser.add_argument("--checkpoint", type=str | None, default=None, help=checkpoint)
    group.add_argument("--model.device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument(
        "--model.dtype",
        type=str | None,
        default=None,
        help="Precision of the base: float32, bfloat16, float16 or float64; auto, the default: its files' own where "
        "the device is fast at that, else float32.",
    )
    group.add_argument(
        "--model.decode_rows", type=int, default=128, help="Sequences sampled side by side at most; bounds memory."
    )
    group.add_argument(
        "--model.prompts",
        type=str | None,
        default=None,
        help="A file of prompts, as `mass prompts` prints one; a checkpoint's own by default.",
    )
    group.add_argument(
        "--model.thinking",
        type=bool | None,
        default=None,
        help="true: a model with a thinking switch thinks aloud first. By default the prompts decide.",
    )
    group.add_argument(
        "--model.device_map",
        type=str | dict[str, int | str] | None,
        default=None,
        help="Spread the layers over several GPUs: auto, balanced, ..., or a mapping.",
    )
    group.add_argument(
        "--model.quantization",
        type=Literal["none", "4bit", "8bit"] | None,
        default=None,
        help="Base weights in 4bit or 8bit, by bitsandbytes on a CUDA device; none by default.",
    )
    group.add_argument(
        "--model.revision", type=str | None, default=None, help="Branch, tag or commit of a model of the hub."
    )
    group.add_argument(
        "--model.trust_remote_code",
        type=bool,
        default=False,
        help="true: run Python code that comes with the model; read it first.",
    )
    parser.add_argument("--model.engine", type=EngineConfig, default=EngineConfig())


LOADING = (
    "device", "dtype", "decode_rows", "prompts", "thinking", "device_map", "quantization", "revision",
    "trust_remote_code", "engine",
)  # fmt: skip
"""Options `--model.*` that `mass.load` takes, apart from the name of the model."""


def loading(given: Namespace) -> dict[str, Any]:
    """Return the keyword options for `mass.load` from those of `add_model_options`."""
    return {name: getattr(given.model, name) for name in LOADING if getattr(given.model, name) is not None}


def add_task_options(
    parser: ArgumentParser,
    *,
    default: str | None,
    name: str = "tasks",
    split: str = "test",
    seed: int | None = None,
    about: str = TASKS_HELP,
    shots: bool = False,
) -> None:
    """Add the options `--tasks.*` (or `--NAME.*`) that choose tasks. Their names are those of
    `mass.config.TasksConfig`. With `shots` also `--tasks.shots`, for few-shot tasks."""
    group = parser.add_argument_group(name)
    if shots:
        group.add_argument(
            f"--{name}.shots",
            type=int | None,
            default=None,
            help="So many rows of a file are given as examples with its others, which are asked; of each file of a "
            "folder, a task each. For the methods examples, examples-in-context, ...",
        )
    group.add_argument(f"--{name}.source", type=str | None, default=default, help=f"{about} --{name} SOURCE for short.")
    group.add_argument(
        f"--{name}.split", type=str, default=split, help="Part of a built-in set or of a data set of the hub."
    )
    group.add_argument(
        f"--{name}.size", type=int | None, default=None, help="Number of problems; all of a file by default."
    )
    group.add_argument(
        f"--{name}.seed",
        type=int | None,
        default=seed,
        help=f"Which problems are chosen or made; {'--seed' if seed is None else seed} by default.",
    )
    group.add_argument(
        f"--{name}.fields",
        type=dict[str, str],
        default={},
        help="Names in the file that differ: problem=my_question,answer=my_answer.",
    )
    group.add_argument(
        f"--{name}.verifier",
        type=str | None,
        default=None,
        help="Judges all answers: math, exact, words, choice, code, module:function, command:PROGRAM; as the fields "
        "suggest.",
    )
    group.add_argument(
        f"--{name}.part",
        type=tuple[float, float] | None,
        default=None,
        help="Share of a file by the hash of its problems, as in [0,0.9] and [0.9,1].",
    )
    group.add_argument(
        f"--{name}.levels", type=list[int] | None, default=None, help="Only problems of these levels, as in [4,5]."
    )
    group.add_argument(
        f"--{name}.subjects",
        type=list[str] | None,
        default=None,
        help="Only problems of these subjects, as in [Algebra].",
    )


CHOOSING = ("split", "size", "fields", "verifier", "part", "levels", "subjects")
"""Options `--tasks.*` that `mass.tasks.load` takes, apart from the source and the seed."""


def load_task_set(chosen: Namespace, seed: int) -> list[Task]:
    """Load the tasks that one group of `add_task_options` names; its own seed is preferred to `seed`.

    Raises:
        DataError: The tasks cannot be loaded.
    """
    from mass import tasks

    seed = seed if chosen.seed is None else chosen.seed
    return tasks.load(chosen.source, seed=seed, **{name: getattr(chosen, name) for name in CHOOSING})


def load_tasks(given: Namespace) -> tuple[list[Task], dict[str, Any]]:
    """Load the tasks that the options `--tasks.*` name.

    Returns:
        The tasks, and where they come from, for records: source, split, seed, and part, levels and subjects where
            these are given.

    Raises:
        DataError: The tasks cannot be loaded.
    """
    from mass import tasks

    group: Namespace = given.tasks
    found = load_task_set(group, given.seed)
    split = group.split if tasks.has_splits(group.source) else None
    seed = given.seed if group.seed is None else group.seed
    chosen = {name: value for name in ("part", "levels", "subjects") if (value := getattr(group, name)) is not None}
    return found, {"source": group.source, "split": split, "seed": seed, **chosen}


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
        raise ConfigError(f"{path}{where} is not YAML ({problem}); correct it there") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys; expected YAML like 'train: {{steps: 100}}'")
    known = _known(parser)
    for key, value in _groups(data or {}, known):
        within = SHORT.get(key, f"{key}.NAME").rpartition(".")[2]
        raise ConfigError(f"{path}: {key!r} is {value!r}; expected keys below it, as in {key}: {{{within}: {value}}}")
    for key in _keys(data or {}, known):
        if new := new_name(key, known):
            raise ConfigError(f"{path}: {key!r} is now called {new!r}; change the name there")
        raise ConfigError(f"{path}: {key!r} is not a configuration key{_near(key, known)}")


def _known(parser: ArgumentParser) -> set[str]:
    skipped = ("help", "config", "print_config")
    dests = (action.dest for action in parser._actions)  # pyright: ignore[reportPrivateUsage]
    names = {dest for dest in dests if dest.rpartition(".")[2] not in skipped}
    return names | {name.rpartition(".")[0] for name in names} - {""}


def _keys(data: Mapping[Any, Any], known: set[str], prefix: str = "") -> Iterable[str]:
    """Yield dotted keys that are not options. Below an option that takes a mapping, every key is allowed."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        deeper = any(k.startswith(f"{key}.") for k in known)
        if isinstance(value, dict) and deeper:
            yield from _keys(value, known, f"{key}.")
        elif key not in known and not deeper:
            yield key


def _groups(data: Mapping[Any, Any], known: set[str]) -> Iterable[tuple[str, Any]]:
    """Yield groups of options that the file gives a single value."""
    for name, value in data.items():
        inside = any(k.startswith(f"{name}.") for k in known)
        if inside and not isinstance(value, dict | None):
            yield str(name), value


def _near(key: str, known: Iterable[str]) -> str:
    """Return a hint at the key whose last part is most like this one's, or the names on the same level when none is."""
    parent, _, last = key.rpartition(".")
    beside = sorted(name for name in known if name.rpartition(".")[0] == parent)

    def likeness(name: str) -> float:
        same = difflib.SequenceMatcher(None, last, name.rpartition(".")[2]).ratio()
        return same + SAME_LEVEL if name in beside else same

    best = max(sorted(known), key=likeness, default="")
    if likeness(best) >= LIKE:
        return f"; did you mean {best!r}?"
    return f"; known: {', '.join(beside)}" if beside else "; see --help"


def _one_line(message: str, parser: ArgumentParser) -> str:
    """Rewrite jsonargparse's message in our words."""
    if match := re.match(r"unrecognized arguments: (\S+)(.*)", message, re.S):
        option = match[1].partition("=")[0]
        if not option.startswith("-"):
            return f"{match[1]!r} is one argument too many; quote a text that has spaces"
        if new := new_name(option.removeprefix("--"), _option_names(parser)):
            return f"{option} is now called --{new}; use that name"
        return f"{option} is not an option of {parser.prog}{_near_option(option, parser)}"
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.S):
        inner = [name for name in _option_names(parser) if name.startswith(f"{match[1]}.")]
        if inner and "Unable to load config" in match[2]:
            return f"{match[1]} is a group of options; give one of them, as in --{min(inner)} VALUE"
        reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(match[2].split()))
        union = r"Does not validate against any of the Union subtypes Subtypes: \[(.+?)\] .*Given value: (.*)"
        reason = re.sub(union, lambda m: f"is {m[2]!r}; expected {_alternatives(m[1])}", reason)
        reason = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"is '\2'; expected \1", reason)
        return f"{match[1]} {reason}; change it in the --config file or on the command line"
    return f"{' '.join(message.split())}; see {parser.prog} --help"


def _alternatives(names: str) -> str:
    return " or ".join(name.strip().replace("NoneType", "null") for name in names.split(","))


def _near_option(option: str, parser: ArgumentParser) -> str:
    return _near(option.lstrip("-"), _option_names(parser)).replace("did you mean '", "did you mean '--")


def _option_names(parser: ArgumentParser) -> Collection[str]:
    names = {name.lstrip("-") for action in parser._actions for name in action.option_strings}  # pyright: ignore[reportPrivateUsage]
    return names | {short for short, name in SHORT.items() if name in names}


def name_groups(parser: ArgumentParser) -> None:
    """Title the sections of the help by the dotted name of their options, instead of a dataclass's signature."""
    for group in parser._action_groups:  # pyright: ignore[reportPrivateUsage]
        names = [action.dest for action in group._group_actions]  # pyright: ignore[reportPrivateUsage]
        nested = len(names) > 1 and names[1].startswith(f"{names[0]}.")
        if nested or (len(names) == 1 and group.title not in ("options", "positional arguments")):
            group.title = names[0]
    known = _known(parser)
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if SHORT.get(action.dest) in known:  # a whole group, which jsonargparse would read from a file
            action.help, action.metavar = f"Short for --{SHORT[action.dest]}.", SHORT[action.dest].split(".")[1].upper()


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return nested values by dotted name, as defaults of a parser."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        found |= flat(value, key) if isinstance(value, dict) else {key: value}
    return found
