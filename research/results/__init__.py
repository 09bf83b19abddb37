"""Store results of runs in small files, and estimate means with intervals over seeds and problems.

results/minimath/table/eval/test-0.json      one evaluation: outcomes of each problem, packed; the cost of each row
results/minimath/table/train/mass-0.json     one training: its curves and its cost
results/minimath/table/practice/mass-0.json  one analysis: each practice example, before and after meta-training
results/minimath/room/room/base-0.json       the headroom for practice
"""

from __future__ import annotations

from research.results.collect import collect
from research.results.estimates import Estimate, difference, estimate, ratio, series
from research.results.stored import Evaluation, Part, Results, StoredRow, Training, read

__all__ = [
    "Estimate",
    "Evaluation",
    "Part",
    "Results",
    "StoredRow",
    "Training",
    "collect",
    "difference",
    "estimate",
    "ratio",
    "read",
    "series",
]
