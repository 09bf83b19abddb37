"""Show a comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mass.evaluation.rows import Row, SampledRow, rows_of
from mass.report import words
from mass.report.words import amount, percent, percent_interval, points, points_interval, standing, task_text

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {1: "bold green", -1: "red", 0: "", None: "dim"}


def terminal_table(comparison: Mapping[str, Any]) -> Table:
    """Return a table with one line per method. It fits 80 columns if all methods have the same number of problems
    and short labels."""
    from rich.table import Table
    from rich.text import Text

    rows = rows_of(comparison)
    sizes = {row.n for row in rows}
    size = f"{sizes.pop()} problems of " if len(sizes) == 1 else ""
    table = Table(
        title=Text(f"{size}{task_text(comparison)}, model {comparison.get('model', 'unnamed')}"),
        caption=Text(_caption(rows)),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("method", overflow="fold")
    for name in [*([] if size else ["n"]), "accuracy %", words.against(rows), "+/−", "tokens", "s"]:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [*([] if size else [str(row.n)]), *_cells(row)]
        table.add_row(Text(row.label, style=STYLES[standing(row)]), *(Text(cell) for cell in cells))
    return table


def sampled_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Return a table for each temperature, with one line per method that has sampled answers."""
    from rich.table import Table
    from rich.text import Text

    rows = rows_of(comparison)
    tables: list[Table] = []
    for temperature, samples in words.temperatures(rows):
        title = Text(words.sampled_title(temperature, samples))
        table = Table(title=title, box=None, pad_edge=False, header_style="bold")
        table.add_column("method", overflow="fold")
        for name in ["accuracy %", words.against(rows), f"pass@{samples}", f"maj@{samples}", "tokens", "s"]:
            table.add_column(name, justify="right")
        for row, part in words.at_temperature(rows, temperature):
            cells = (Text(cell) for cell in _sampled_cells(part))
            table.add_row(Text(row.label, style=STYLES[standing(part)]), *cells)
        tables.append(table)
    return tables


def _sampled_cells(part: SampledRow) -> list[str]:
    change = part.difference
    return [
        f"{percent(part.accuracy)} {percent_interval(part.interval)}",
        "" if change is None else f"{points(change)} {points_interval(part.difference_interval)}",
        percent(part.pass_at_n),
        percent(part.maj_at_n),
        amount(part.tokens_per_answer),
        amount(part.seconds_per_answer),
    ]


def _cells(row: Row) -> list[str]:
    return [
        f"{percent(row.accuracy)} {percent_interval(row.interval)}",
        "" if row.is_reference else f"{points(row.difference)} {points_interval(row.difference_interval)}",
        "" if row.helped is None or row.hurt is None else f"{row.helped}/{row.hurt}",
        amount(row.tokens_per_answer),
        amount(row.seconds_per_answer),
    ]


def _caption(rows: Sequence[Row]) -> str:
    unjudged = [f"{row.label} {row.no_verdict}" for row in rows if row.no_verdict]
    said = [
        f"[]: 95% intervals, those {words.against(rows)} paired; green or red where they exclude 0.",
        "+/−: answers helped and hurt. tokens, s: generated tokens and seconds per answer.",
    ]
    return "\n".join([*said, *([f"No verdict: {', '.join(unjudged)}."] if unjudged else [])])
