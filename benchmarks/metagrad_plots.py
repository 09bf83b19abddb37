"""Rows -> plots: memory and time against K, m, T and size, and memory against time at one K."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from metagrad_plan import EVERY, SHOWN
from metagrad_routes import BASELINE
from metagrad_rows import Row

STUDY = {"steps": 8, "examples": 6, "length": 128, "width": 256, "layers": 4}
TIME = "time (s), median, bars from least to greatest"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B")
_MARKERS = "osD^vP*"  # fewer than colours, so that pairs do not repeat


@dataclass(frozen=True)
class Axis:
    """One thing that is varied while the rest stays."""

    name: str
    label: str
    value: Callable[[Mapping[str, Any]], float]
    fixed: tuple[str, ...]
    """What of a setting stays the same along it."""
    scale: str = "log"


def _parameters(s: Mapping[str, Any]) -> float:
    inner = -(-s["width"] * 8 // 3 // 16) * 16
    return s["layers"] * (4 * s["width"] ** 2 + 3 * s["width"] * inner) + 2 * s["vocabulary"] * s["width"]


AXES = (
    Axis("steps", "inner steps K", lambda s: s["steps"], ("examples", "length", "width", "layers")),
    Axis("examples", "practice examples m", lambda s: s["examples"], ("steps", "length", "width", "layers")),
    Axis("length", "tokens per example T", lambda s: s["length"], ("steps", "examples", "width", "layers")),
    Axis("size", "parameters of the base model", _parameters, ("steps", "examples", "length")),
)


def plot_all(rows: Sequence[Row], folder: Path) -> list[str]:
    """Writes a picture for each axis that has two values or more, and the scatter; returns their names."""
    written: list[str] = []
    for device in sorted({row.setting["device"] for row in rows}):
        measured = [r for r in rows if r.setting["device"] == device and r.status == "measured" and not _unit(r)]
        end = "" if device == "cpu" else f"-{device}"
        for axis in AXES:
            if chosen := _along(axis, measured):
                written.append(_sweep(axis, chosen, folder / f"{axis.name}{end}.png"))
        if chosen := _at_one_k(measured):
            written.append(_scatter(chosen, folder / f"memory-time{end}.png"))
    return written


def _unit(row: Row) -> bool:
    return row.route in {"one forward", "one gradient"}


def _along(axis: Axis, rows: Sequence[Row]) -> list[Row]:
    """The rows of the sweep along `axis`: of the settings that differ in it alone, the most."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.setting[name] for name in axis.fixed), []).append(row)

    def values(group: Sequence[Row]) -> int:
        return len({axis.value(row.setting) for row in group})

    best = max(groups.values(), key=lambda group: (values(group), len(group)), default=[])
    if axis.name == "size":  # width and layers grow together; other sizes at the same K are not there
        best = [r for r in best if r.setting["steps"] == best[0].setting["steps"]]
    if not best or values(best) < 2:
        return []
    points = {name: len({axis.value(r.setting) for r in best if r.route == name}) for name in _names(best)}
    return [row for row in best if points[row.route] >= 2 and row.route in SHOWN]


def _at_one_k(rows: Sequence[Row]) -> list[Row]:
    """The study's setting, or else the one with the most routes."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.setting[name] for name in STUDY), []).append(row)
    study = groups.get(tuple(STUDY.values()))
    return study or max(groups.values(), key=len, default=[])


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.route for row in rows))


def _style(name: str) -> dict[str, Any]:
    """Ours solid and filled, peers dashed and hollow, the unroll black; the same in every plot."""
    if name == BASELINE:
        return {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": "--"}
    ours = name.startswith("mass")
    place = [n for n in EVERY if n.startswith("mass") == ours and n != BASELINE].index(name)
    colour = _COLOURS[place % len(_COLOURS)]
    return {
        "color": colour,
        "marker": _MARKERS[place % len(_MARKERS)],
        "markerfacecolor": colour if ours else "white",
        "linestyle": "-" if ours else "--",
    }


def _sweep(axis: Axis, rows: Sequence[Row], file: Path) -> str:
    figure, (memory, time) = plt.subplots(1, 2, figsize=(13, 5.2))
    for name in _names(rows):
        mine = sorted((r for r in rows if r.route == name), key=lambda r: axis.value(r.setting))
        style = _style(name)
        held = [(axis.value(r.setting), r.memory_mib) for r in mine if r.memory_mib]
        memory.plot([x for x, _ in held], [y for _, y in held], markersize=5, linewidth=1.4, label=name, **style)
        timed = [(axis.value(r.setting), r.time_s, r.times_s) for r in mine if r.time_s]
        spread = [[y - min(all_s) for _, y, all_s in timed], [max(all_s) - y for _, y, all_s in timed]]
        xs, ys = [x for x, _, _ in timed], [y for _, y, _ in timed]
        time.errorbar(xs, ys, yerr=spread, markersize=5, linewidth=1.4, capsize=2.5, **style)
    ticks = sorted({axis.value(r.setting) for r in rows})
    _frame(memory, axis, ticks, "peak memory of tensors (MiB)", "Memory")
    _frame(time, axis, ticks, TIME, "Time")
    _finish(figure, f"One meta-gradient against {axis.label}\n{_rest(axis, rows)}", file, memory)
    return file.name


def _frame(axes: Axes, axis: Axis, ticks: Sequence[float], label: str, title: str) -> None:
    axes.set(xscale=axis.scale, yscale="log", xlabel=axis.label, ylabel=label, title=title)
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(axes.yaxis)
    axes.grid(True, which="major", alpha=0.35)


def _plain_ticks(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    low, high = axis.get_view_interval()
    minor = FuncFormatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    axis.set_minor_formatter(minor if high / max(low, 1e-12) < 500 else NullFormatter())


def _short(value: float) -> str:
    return f"{value / 1e6:.2g} M" if value >= 1e5 else f"{value:g}"


def _rest(axis: Axis, rows: Sequence[Row]) -> str:
    s, symbols = rows[0].setting, {"steps": "K", "examples": "m", "length": "T", "width": "width", "layers": "layers"}
    return ", ".join(f"{symbols[name]} = {s[name]}" for name in axis.fixed) + f", {s['device']}, float32"


def _scatter(rows: Sequence[Row], file: Path) -> str:
    figure, axes = plt.subplots(figsize=(10.5, 6))
    for row in rows:
        if not (row.memory_mib and row.time_s):
            continue
        style = {**_style(row.route), "linestyle": "none"}
        spread = [[row.time_s - min(row.times_s)], [max(row.times_s) - row.time_s]]
        wrong = row.error_w is not None and row.error_w > 1e-2
        label = f"{row.route} (error {row.error_w:.1g})" if wrong else row.route
        axes.errorbar([row.memory_mib], [row.time_s], yerr=spread, markersize=9, capsize=3, label=label, **style)
    axes.set(xscale="log", xlabel="peak memory of tensors (MiB)", ylabel=TIME)
    axes.set_ylim(bottom=0)
    _plain_ticks(axes.xaxis)
    axes.grid(True, which="major", alpha=0.35)
    s = rows[0].setting
    about = f"K = {s['steps']}, m = {s['examples']}, T = {s['length']}, width {s['width']}, {s['layers']} layers"
    _finish(figure, f"One meta-gradient: memory and time, down and left is better\n{about}, {s['device']}", file, axes)
    return file.name


def _finish(figure: Any, title: str, file: Path, axes: Axes) -> None:
    """The legend stands beside the axes, where it covers nothing."""
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0, 0.76, 1))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.765, 0.5), fontsize=8, frameon=False)
    beside = file.with_name(f".{file.stem}.tmp.png")
    figure.savefig(beside, dpi=130)
    plt.close(figure)
    beside.replace(file)
