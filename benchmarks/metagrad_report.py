"""A run folder -> results.json, table.md, the same table in the terminal, plots.

Ratios are to the plain unroll at the same setting. Those of time are taken within a round, and their median, least and
greatest are given; memory and operations repeat exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metagrad_routes import BASELINE, ROUTES
from metagrad_rows import Row, rows_of
from metagrad_run import points

from mass.runs.folder import replace_text

HEADER = (
    "route",
    "memory MiB",
    "x unroll",
    "resident MiB",
    "time s",
    "x unroll",
    "range",
    "forwards",
    "error w",
    "error θ",
)


def report(folder: Path) -> None:
    found = list(points(folder))
    if not found:
        raise SystemExit(f"{folder} holds no points; measure some with --out {folder}")
    tables = rows_of(found)
    machine = json.loads((folder / "machine.json").read_text())
    replace_text(folder / "results.json", json.dumps({"machine": machine, "points": found}, indent=1) + "\n")
    replace_text(folder / "table.md", markdown(tables, machine, found))
    for key, rows in tables.items():
        _show(key, rows)
    from metagrad_plots import plot_all

    plots = plot_all([row for rows in tables.values() for row in rows], folder)
    print(f"{folder}: results.json, table.md, {', '.join(plots)}")


def markdown(
    tables: Mapping[str, Sequence[Row]], machine: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    commits = ", ".join(sorted({p["commit"] for p in found}))
    threads = ", ".join(sorted({str(p["threads"]) for p in found}))
    lines = [
        "# One meta-gradient: memory and time",
        "",
        f"{machine['gpu'] or machine['processor']}, {threads} thread(s); {versions}; commit {commits}.",
        "Memory: peak of the bytes tensors hold, above those before (JAX: XLA's plan). Resident: the same as the",
        "kernel sees it. Time: median of the repeats; ratios to the plain unroll are taken within a round, and their",
        "range is from the least to the greatest.",
        "Forwards: operations in those of one forward of the m examples. Errors: relative, to the unroll in float64.",
    ]
    for key, rows in tables.items():
        lines += ["", f"## {title(rows[0].setting)}", "", f"`{key}`", ""]
        lines += ["| " + " | ".join(HEADER) + " |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        if bound := _bound(rows):
            lines += ["", bound]
    return "\n".join(lines) + "\n"


def title(setting: Mapping[str, Any]) -> str:
    return "K = {steps}, m = {examples}, T = {length}, width {width}, {layers} layers, {device}".format(**setting)


def cells(row: Row) -> list[str]:
    if row.status != "measured":
        return [row.route, f"{row.status}: {row.reason}", *[""] * (len(HEADER) - 2)]
    return [
        row.route,
        _number(row.memory_mib, ".1f"),
        _number(row.memory_ratio, ".3f"),
        _number(row.resident_mib, ".0f"),
        _number(row.time_s, ".3g"),
        _number(row.time_ratio, ".2f"),
        f"{row.time_range[0]:.2f}-{row.time_range[1]:.2f}" if row.time_range else "-",
        _number(row.forwards, ".1f"),
        _error(row),
        _number(row.error_theta, ".0e"),
    ]


def _error(row: Row) -> str:
    """With the cosine where the gradient is another one: its direction may be right and its length not."""
    if row.error_w is None or row.error_w < 0.01 or row.cosine_w is None:
        return _number(row.error_w, ".0e")
    return f"{row.error_w:.2f} (cos {row.cosine_w:.2f})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bound(rows: Sequence[Row]) -> str:
    """What an exact route cannot go below, counted in passes."""
    s, by_name = rows[0].setting, {row.route: row for row in rows}
    counted = {n: by_name[n].forwards for n in ("mass", BASELINE) if n in by_name and by_name[n].forwards}
    if len(counted) < 2:
        return ""
    bound = 4 * s["steps"] + 2 / s["examples"]
    return (
        f"Passes: mass {counted['mass']:.1f} forwards' worth, the unroll {counted[BASELINE]:.1f}. A step is a forward "
        "and a backward, and both once more in the second-order pass: with the outer loss "
        f"4 K + 2/m = {bound:.1f} if each product had one factor that needs no gradient. Those of attention have none, "
        "which is the rest of the unroll's count. What is above that is recomputed." + _in_gradients(by_name)
    )


def _in_gradients(by_name: Mapping[str, Row]) -> str:
    gradient, ours = by_name.get("one gradient"), by_name.get("mass")
    if not (gradient and gradient.time_s and ours and ours.time_s):
        return ""
    return f" In time mass takes as long as {ours.time_s / gradient.time_s:.1f} gradients of the m examples."


def _show(key: str, rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title(rows[0].setting)}  [{key}]", title_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="right" if i else "left", no_wrap=i > 1)
    for row in rows:
        style = {"ours": "green", "unit": "dim"}.get(ROUTES[row.route].part if row.route in ROUTES else "", "")
        table.add_row(*cells(row), style=style)
    Console(width=150).print(table)
