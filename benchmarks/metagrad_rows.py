"""Measured points -> rows: a route at a setting, and its ratios to the plain unroll there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metagrad_plan import EVERY
from metagrad_routes import BASELINE

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A route at a setting; None where it was not measured or there is nothing to compare with."""

    route: str
    setting: Mapping[str, Any]
    status: str
    reason: str = ""
    memory_mib: float | None = None
    memory_ratio: float | None = None
    resident_mib: float | None = None
    time_s: float | None = None
    times_s: tuple[float, ...] = ()
    time_ratio: float | None = None
    time_range: tuple[float, float] | None = None
    forwards: float | None = None
    """Operations, in those of one forward of the m examples."""
    error_w: float | None = None
    error_theta: float | None = None
    cosine_w: float | None = None


def rows_of(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """Rows by the key of their setting, settings and routes in order."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for point in sorted(found, key=_order):
        groups.setdefault(point["key"], {})[point["route"]] = point
    return {key: [_row(p, group) for p in group.values()] for key, group in groups.items()}


def _order(point: Mapping[str, Any]) -> tuple[Any, ...]:
    s = point["setting"]
    study = (s["examples"], s["length"], s["width"]) != (6, 128, 256)
    rank = EVERY.index(point["route"]) if point["route"] in EVERY else len(EVERY)
    return (s["device"], study, s["width"], s["layers"], s["length"], s["examples"], s["steps"], rank)


def _row(point: Mapping[str, Any], group: Mapping[str, Mapping[str, Any]]) -> Row:
    if point["status"] != "measured":
        return Row(point["route"], point["setting"], point["status"], point["reason"])
    base, times = group.get(BASELINE, {}), tuple(point["seconds"])
    ratios = [a / b for a, b in zip(times, point["baseline_seconds"], strict=False)]
    live, unroll_live = point.get("live_bytes"), base.get("live_bytes")
    forward = point.get("forward_flops")
    resident = point.get("resident_bytes")
    return Row(
        point["route"],
        point["setting"],
        "measured",
        memory_mib=live / MIB if live is not None else None,
        memory_ratio=live / unroll_live if live is not None and unroll_live else None,
        resident_mib=resident / MIB if resident is not None else None,
        time_s=statistics.median(times) if times else None,
        times_s=times,
        time_ratio=statistics.median(ratios) if ratios else None,
        time_range=(min(ratios), max(ratios)) if ratios else None,
        forwards=point["flops"] / forward if point.get("flops") and forward else None,
        error_w=point.get("error_w"),
        error_theta=point.get("error_theta"),
        cosine_w=point.get("cosine_w"),
    )
