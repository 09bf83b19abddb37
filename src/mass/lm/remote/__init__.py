"""Who samples: a language model in this process, or a server that holds the same model.

Whatever has `Engine.sample` is an engine. `mass.lm.LM` is one; `HttpEngine` is one that asks a server.
"""

from mass.lm.remote.agreement import check_agreement
from mass.lm.remote.http import HttpEngine
from mass.lm.remote.protocol import Engine, Local

__all__ = ["Engine", "HttpEngine", "Local", "check_agreement"]
