"""weights, losses, starting parameters -> adapted parameters, with exact meta-gradients in flat memory.

    from mass.inner import SGD, AdamW, adapt

`adapt` is one autograd node; `docs/engine.md` derives its backward. Nothing here knows what a language model is.
"""

from mass.inner.adaptation import SecondDerivativeError, adapt
from mass.inner.objective import Losses
from mass.inner.tracing import Traced, TracedLosses, traced
from mass.inner.verification import check_losses
from mass.optimizers import SGD, AdamW, Optimizer, Rate, Rates, State

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
