"""headroom.json -> headroom.md and .png: what each source of practice gained, against how far it moved the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from headroom_practice import SOURCES
from matplotlib.axes import Axes
from research.document.tables import room_decodings, room_setting, room_table
from research.results.stored import GREEDY

from mass.report.words import amount, percent, percent_interval, points, points_interval
from mass.runs.folder import replace_text

_PALETTE = ("#0072B2", "#003F5C", "#56B4E9", "#7F7F7F", "#882255", "#CC79A7", "#117733", "#009E73", "#E69F00",
            "#999933", "#D55E00")  # fmt: skip
_COLOURS = dict(zip(SOURCES, _PALETTE, strict=True))
_MARKERS = {"sgd": "o", "sgd clipped": "s", "adamw": "^"}
LEAST_NORM = 1e-5
"""Updates as small as this are drawn here."""


def write_report(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Returns the files written."""
    table, picture = folder / "headroom.md", folder / "headroom.png"
    replace_text(table, markdown(results))
    measured = [point for point in results["points"].values() if "skipped" not in point]
    adapted = [point for point in measured if point["update_norm"] is not None]  # not those in the context
    if not adapted:
        return [table]
    draw(results, adapted, picture)
    return [table, picture]


# --- the table


def markdown(results: Mapping[str, Any]) -> str:
    settings, unadapted = results["settings"], results["unadapted"]
    names = list(room_decodings(unadapted["row"]))
    skipped = {p["source"]: p["skipped"] for p in results["points"].values() if "skipped" in p}
    measured = [p for p in results["points"].values() if "skipped" not in p]
    head = f"| source | inner loop | {' | '.join(names)} | update | practice loss | used | none |"
    rule = f"| --- | --- |{' --- |' * (len(names) + 4)}"
    parts = [
        f"# Headroom: {settings['model']}, checkpoint {settings['checkpoint']}",
        f"{settings['size']} problems of {settings['tasks']} ({settings['split']} split, seed {settings['seed']}), "
        f"m = {settings['examples']}, N = {settings['samples']}. Accuracies in percent with 95% intervals; below them "
        "paired differences from the unadapted answers in points. Gold and correct practice is an oracle's: a ceiling, "
        "not a method.",
        "## Unadapted",
        _unadapted(unadapted, settings["samples"]),
        "## The best point of each source, by each decoding",
        "Chosen on these same problems, so it flatters; the whole grid is below.",
        room_table({**results, "points": measured}),
        *([f"Not measured: {'; '.join(f'{s}: {why}' for s, why in skipped.items())}."] if skipped else []),
        "## The whole grid",
        "\n".join([head, rule, *(_line(point, names) for point in measured)]),
        "update: norm of the change over that of the adapter. practice loss: nats per token before and after, of the "
        "examples used. used, none: percent of the examples that were used, of the problems that had none and were "
        "answered unadapted.",
    ]
    return "\n\n".join(parts) + "\n"


def _unadapted(unadapted: Mapping[str, Any], samples: int) -> str:
    lines = ["| decoding | accuracy | pass@N | maj@N |", "| --- | --- | --- | --- |"]
    for name, part in room_decodings(unadapted["row"]).items():
        some = "" if name == GREEDY else percent(part["pass_at_n"])
        votes = "" if name == GREEDY else percent(part["maj_at_n"])
        lines.append(f"| {name} | {_accuracy(part)} | {some} | {votes} |")
    if "best-of-n" in unadapted:
        lines.append(f"| best of {samples} by the scorer, T = 1 | {_accuracy(unadapted['best-of-n'])} | | |")
    table = "\n".join(lines)
    if "written" not in unadapted:
        return table
    written = ", ".join(f"{name} {percent(share)}" for name, share in unadapted["written"].items())
    return f"{table}\n\nOf the practice that it writes, in percent: {written} (all but the first of the valid ones)."


def _line(point: Mapping[str, Any], names: Sequence[str]) -> str:
    found = room_decodings(point["row"])
    losses = f"{amount(point['loss_before'])} → {amount(point['loss_after'])}"
    cells = " | ".join(_difference(found[name]) for name in names)
    return (
        f"| {point['source']} | {room_setting(point)} | {cells} | {amount(point['update_norm'])} | {losses} | "
        f"{percent(point['used'])} | {percent(point['without_practice'])} |"
    )


def _accuracy(part: Mapping[str, Any]) -> str:
    return f"{percent(part['accuracy'])} {percent_interval(part['interval'])}"


def _difference(part: Mapping[str, Any]) -> str:
    return f"{points(part['difference'])} {points_interval(part['difference_interval'])}"


# --- the plot


def draw(results: Mapping[str, Any], measured: Sequence[Mapping[str, Any]], path: Path) -> None:
    base = room_decodings(results["unadapted"]["row"])
    figure, axes = plt.subplots(
        1, len(base), figsize=(4.6 * len(base), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, part) in zip(axes[0], base.items(), strict=True):
        _panel(panel, name, part, measured)
    axes[0][0].set_ylabel("gain over the unadapted answers, points")
    handles = [plt.Line2D([], [], color=_COLOURS[s], marker=".", linestyle="none", markersize=11, label=s)
               for s in dict.fromkeys(p["source"] for p in measured)]  # fmt: skip
    handles += [plt.Line2D([], [], color="#444444", marker=_MARKERS[o], linestyle="none", label=o)
                for o in dict.fromkeys(p["optimizer"] for p in measured)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    settings = results["settings"]
    figure.suptitle(
        f"Headroom: {settings['model']}, checkpoint {settings['checkpoint']}, {settings['size']} problems, "
        "bars are 95% intervals"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, name: str, base: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    for point in measured:
        part = room_decodings(point["row"])[name]
        if part["difference"] is None:
            continue
        x, y = max(point["update_norm"], LEAST_NORM), 100 * part["difference"]
        low, high = part["difference_interval"] or (part["difference"],) * 2
        colour = _COLOURS[point["source"]]
        axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=0.9, alpha=0.35)
        axes.plot(x, y, color=colour, marker=_MARKERS[point["optimizer"]], linestyle="none", markersize=4.5)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("size of the update, of the adapter's norm (log scale)")
    axes.set_title(f"{name}: {percent(base['accuracy'])}% unadapted", loc="left", fontsize=10.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
