"""The parsers of the command line -> the page reference/commands.md: what `mass VERB --help` says, as tables.

Made at every build from the parsers themselves, so it cannot say what they do not.
"""

from __future__ import annotations

import importlib
import json
import re
from argparse import SUPPRESS
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mass.cli import lm_eval, options
from mass.cli.main import USAGE, VERBS, module_of
from mass.config import to_dict

PAGE = "reference/commands.md"
HARNESS = "lm-eval"
"""The verb whose options are another program's."""
INTRODUCTION = """# Commands

What `mass VERB --help` says. Options with dots are keys of the YAML file that `--config` reads; what stands on the
command line comes on top of it, and `--print_config` prints the result. A mistake gives one line on standard error and
the exit code 2; `--debug` shows its traceback.

```text
{usage}
```
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, PAGE, content=page()))
    return files


def parser_of(verb: str) -> ArgumentParser:
    """The parser of a verb, its sections named as `--help` names them."""
    parser = importlib.import_module(module_of(verb))._parser()
    options.name_groups(parser)
    return parser


def page() -> str:
    usage = USAGE.format(verbs="\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items()))
    sections = (_harness() if verb == HARNESS else _verb(verb) for verb in VERBS)
    return "\n".join([INTRODUCTION.format(usage=usage.rstrip()), *sections])


def _harness() -> str:
    return f"## mass {HARNESS} {{#{HARNESS}}}\n\n```text\n{lm_eval.usage()}```\n"


def _verb(verb: str) -> str:
    parser = parser_of(verb)
    examples = "\n".join(line.strip() for line in (parser.epilog or "").splitlines()[1:])
    usage = " ".join((parser.usage or "").split())
    head = f"## mass {verb} {{#{verb}}}\n\n{parser.description}\n\n```text\n{usage}\n```\n\n```bash\n{examples}\n```\n"
    return "\n".join([head, *_sections(parser)])


def _sections(parser: ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if _shown(action)]
        if rows:
            title = "" if group.title == "options" else f"**{group.title}**\n\n"
            yield "\n".join([f"{title}| option | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _shown(action: Any) -> bool:
    """Not what every command has, nor the group option that takes a whole section at once."""
    whole = type(action).__name__ in ("_ActionConfigLoad", "ActionConfigLoad")
    return action.help is not SUPPRESS and action.dest != "help" and not whole


def _row(action: Any) -> str:
    name = action.option_strings[0] if action.option_strings else (action.metavar or action.dest).upper()
    default = "" if action.default is None or action.default is SUPPRESS else f"`{_value(action.default)}`"
    return f"| `{name}` {_kind(action)} | {_cell(default)} | {_cell(action.help or '')} |"


def _kind(action: Any) -> str:
    """What the option takes, in the words of `--help`."""
    kind = getattr(action, "_typehint", None) or action.type
    if kind is None or action.nargs == 0:
        return ""
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    text = re.sub(r"(typing|mass\.[\w.]+?)\.(?=\w)", "", text).replace("NoneType", "None")
    text = re.sub(r"Optional\[(.+)\]", r"\1 | None", text)
    return f"<br>{_cell(text)}" if text != "str" else ""


def _value(default: Any) -> str:
    if default is True or default is False:
        return str(default).lower()
    plain = to_dict(default) if hasattr(default, "__dataclass_fields__") else default
    return plain if isinstance(plain, str) else json.dumps(plain, default=str)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<B", "&lt;B")
