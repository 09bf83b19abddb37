"""The meta-gradient engine alone, for losses and parameters of your own: the public name of `mass.metagrad`.

from mass.inner import SGD, AdamW, adapt
"""

from mass.metagrad import *  # noqa: F403
from mass.metagrad import __all__ as __all__
