"""Sample at a server that serves the same model (vLLM), in place of this process.

Both implement the protocol `Engine`, which has one method, `sample`: `mass.lm.LM` samples here, `HttpEngine` sends
requests to a server. The reasons are in docs/adr/0010.
"""

from mass.lm.remote.agreement import check_agreement
from mass.lm.remote.http import HttpEngine
from mass.lm.remote.protocol import Engine, Local

__all__ = ["Engine", "HttpEngine", "Local", "check_agreement"]
