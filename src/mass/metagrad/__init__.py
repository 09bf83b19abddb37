"""Run the inner loop as one autograd node, with exact meta-gradients and memory that stays flat in the number of steps.

    from mass.inner import SGD, AdamW, adapt

`adapt` maps weights, losses and starting parameters to adapted parameters; `docs/engine.md` derives its backward.
Nothing here knows what a language model is.
"""

from mass.metagrad.check import check_losses
from mass.metagrad.compiled import Traced, TracedLosses, traced
from mass.metagrad.inner_loop import SecondDerivativeError, adapt
from mass.metagrad.objective import Losses
from mass.metagrad.optimizers import SGD, AdamW, Optimizer, Rate, Rates, State

__all__ = [
    "SGD",
    "AdamW",
    "Losses",
    "Optimizer",
    "Rate",
    "Rates",
    "SecondDerivativeError",
    "State",
    "Traced",
    "TracedLosses",
    "adapt",
    "check_losses",
    "traced",
]
