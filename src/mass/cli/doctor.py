"""`mass doctor`: check which parts of the meta-gradient engine are exact on a model; exit code 1 when nothing is
safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.errors import ConfigError, nearest
from mass.timing import duration

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.table import Table

    from mass.preflight.doctor import Check, DoctorReport

EXAMPLES = (
    "mass doctor tiny-terms",
    "mass doctor ./my-model --model.dtype bfloat16",
    "mass doctor Qwen/Qwen3-8B --model.dtype bfloat16 --attention sdpa --layers 3",
    "mass doctor tiny-terms --json | jq .verdict",
)
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
NOTHING_SAFE = 1
STYLES = {"pass": "green", "fail": "bold red", "skipped": "dim"}


def run(arguments: Sequence[str]) -> int:
    """Run `mass doctor` and return its exit code."""
    given = options.parse(_parser(), arguments)
    attentions = _checked(given)
    if given.print_config:
        shown = options.plain(given)
        options.print_yaml({name: shown[name] for name in ("model", "layers", "attention", "seed")})
        return 0
    report = _examine(given, attentions)
    if given.json:
        from mass.runs.folder import json_values

        print(json.dumps(json_values(report.to_dict()), allow_nan=False), flush=True)
    else:
        _print(report)
    return 0 if report.usable else NOTHING_SAFE


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "doctor",
        "MODEL [options]",
        "Measure on the first layers of a model, with their real weights, whether its meta-gradients are exact: first "
        "and second derivatives and those of a whole adaptation against central differences in float64, then the error "
        "in the precision it will run in.",
        EXAMPLES,
    )
    parser.add_argument("model.name", nargs="?", type=str, metavar="MODEL", help=f"{options.MODEL_HELP}.")
    parser.add_argument(
        "--layers",
        type=int | None,
        default=None,
        help="How many layers to load; by default as many as hold each kind of layer, at least 2.",
    )
    parser.add_argument("--attention", type=str, default="eager,sdpa", help="Implementations to examine.")
    parser.add_argument("--model.dtype", type=str, default="auto", help=f"The model's precision in use: {_known()}.")
    parser.add_argument("--json", action="store_true", help="Print the report as one JSON object.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the adapter and of the directions in which it is moved."
    )
    return parser


def _known() -> str:
    return ", ".join(DTYPES)


def _checked(given: Namespace) -> list[str]:
    """Return the attention implementations to check. Raises ConfigError for options that cannot be used."""
    if given.model.name is None:
        raise ConfigError("no model is given; expected a folder, a hub name or tiny-terms: mass doctor MODEL")
    if given.model.dtype not in DTYPES:
        raise ConfigError(
            f"--model.dtype is {given.model.dtype!r}; expected one of {_known()}{nearest(given.model.dtype, DTYPES)}"
        )
    attentions = list(dict.fromkeys(filter(None, (name.strip() for name in given.attention.split(",")))))
    if not attentions:
        raise ConfigError("--attention is empty; expected names with commas between: eager,sdpa")
    if given.layers is not None and given.layers < 1:
        raise ConfigError(f"--layers is {given.layers}; expected at least 1")
    return attentions


def _examine(given: Namespace, attentions: Sequence[str]) -> DoctorReport:
    from mass.preflight.doctor import examine

    def report(progress: Callable[[str], None]) -> DoctorReport:
        return examine(
            given.model.name,
            layers=given.layers,
            attentions=attentions,
            dtype=given.model.dtype,
            seed=given.seed,
            progress=progress,
        )

    terminal = console.stderr()
    if not terminal.is_terminal:
        return report(lambda text: console.note(f"doctor: {text}"))
    with terminal.status("loading") as status:
        return report(status.update)


def _print(report: DoctorReport) -> None:
    loaded, reach, out = report.loaded, report.reach, console.stdout()
    kinds = f" ({', '.join(loaded.kinds)})" if loaded.kinds else ""
    console.say(f"{loaded.model}: {loaded.architecture}")
    console.say(
        f"  loaded  the first {loaded.layers} of {loaded.total_layers} layers{kinds}, {loaded.vocabulary} of "
        f"{loaded.total_vocabulary} tokens: {_count(loaded.parameters)} parameters, "
        f"{_size(loaded.weights_gb)} in float64"
    )
    missed = f"; without adapter: {', '.join(reach.missed)}" if reach.missed else ""
    console.say(f"  LoRA    {reach.layers} linear layers ({', '.join(reach.names)}) hold {reach.share:.0%}{missed}\n")
    out.print(_table(report.checks))
    for check in report.checks:
        if check.status == "fail":
            where = f"{check.attention}, " if check.attention else ""
            console.say(f"  fail: {where}{check.name}: {check.note}")
            console.say(f"        -> {check.way_out}")
    console.say(f"\n{report.verdict} ({duration(report.seconds)})")


def _table(checks: Sequence[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "check", "attention"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "bound"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("against", ratio=1)
    for check in checks:
        note = "see below" if check.status == "fail" else check.note
        mark = Text(check.status, style=STYLES[check.status])
        table.add_row(mark, check.name, check.attention, _number(check.measured), _number(check.bound), Text(note))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.1f} MB"
