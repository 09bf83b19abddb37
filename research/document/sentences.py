"""Write estimates as numbers in a sentence, with their intervals and units."""

from __future__ import annotations

import math

from mass.report.words import MISSING, percent, percent_interval, points, points_interval
from research.results import Estimate
from research.results.data import Needed


def accuracy_text(estimate: Estimate) -> str:
    return f"{percent(estimate.mean)}% {percent_interval(estimate.interval)}"


def gain_text(estimate: Estimate) -> str:
    return f"{points(estimate.mean)} points {points_interval(estimate.interval)}"


def ratio_text(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"×{estimate.mean:.2f} [{low:.2f}, {high:.2f}]"


def standing_text(estimate: Estimate) -> str:
    return {1: "better than", 0: "not distinguishable from", -1: "worse than"}[estimate.standing]


def needed_text(found: Needed) -> str:
    low, high = (_problems(bound, found) for bound in found.interval)
    return f"{_problems(found.problems, found)} [{low}, {high}]"


def _problems(value: float, found: Needed) -> str:
    if math.isinf(value):
        return f"fewer than {found.fewest:,}" if value < 0 else f"more than {found.most:,}"
    return f"{float(f'{value:.2g}'):,.0f}"


def fewer_text(found: Needed, problems: int) -> str:
    """Return how many fewer problems than `problems` are needed, in percent; bounds where the curve ends."""
    low, high = (_share(bound, found, problems) for bound in reversed(found.interval))
    return f"{_share(found.problems, found, problems)} fewer [{low}, {high}]"


def _share(value: float, found: Needed, problems: int) -> str:
    sign = ""
    if math.isinf(value):
        sign, value = (">", found.fewest) if value < 0 else ("<", found.most)
    return f"{sign}{100 * (1 - value / problems):.0f}%".replace("-", "−")


def measure_text(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return MISSING
    if unit == "share":
        return f"{percent(estimate.mean)}% {percent_interval(estimate.interval)}"
    if unit == "gain":
        return gain_text(estimate)
    if unit == "divergence":
        return f"{estimate.mean:.4f} [{estimate.interval[0]:.4f}, {estimate.interval[1]:.4f}]"
    low, high = (_signed(value) for value in estimate.interval)
    return f"{_signed(estimate.mean)} [{low}, {high}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
