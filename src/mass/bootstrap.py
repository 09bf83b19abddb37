"""Values by problem (and by seed) -> 95% intervals, by drawing problems and seeds again with replacement (Efron 1979).

Legend: P problems, S seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Interval = tuple[float, float]
Values = NDArray[np.float64]
BOUNDS = (0.025, 0.975)


def percentiles(draws: Float[Values, " R"]) -> Interval:
    low, high = np.quantile(draws, BOUNDS)
    return float(low), float(high)


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval | None:
    """95% percentile interval of the mean over problems drawn again; None without values.

    A resample is one multinomial draw of how often each distinct value comes up: its cost does not grow with P.
    """
    if not values:
        return None
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return percentiles(drawn @ distinct / len(values))
