"""Find out whether a server keeps the base apart from adapters, where rows of both are in one batch.

vLLM 0.32 does not on a CPU: rows of the base get the adapter in the last of its places, where there is one there
(vllm-project/vllm issue 48421). A process that answers many requests at once asks for both, so this is looked at before
the first of them, with all places taken.
"""

from __future__ import annotations

from mass.config import SamplingConfig
from mass.lm.continuous import Ask
from mass.lm.remote.agreement import PROBE, strong_adapter
from mass.lm.remote.answers import mean_difference
from mass.lm.remote.decoder import RemoteDecoder

BESIDE = SamplingConfig(max_new_tokens=32, temperature=1.0)
"""How rows with an adapter are sampled, while the base is asked again and again."""


def base_stays_apart(decoder: RemoteDecoder) -> bool:
    """Return False for a server whose base gives other log-probabilities beside a strong adapter than this process.

    Raises EngineError.
    """
    local, allowed = decoder.local, decoder.config.agreement
    base = Ask(local.prompt, PROBE, 3, with_logprobs=True)
    samples = [decoder.submit(base).result()]
    adapter = strong_adapter(local, samples[0].tokens)
    # Each has an object of its own, and so a place of its own at the server.
    own = [*(dict(adapter) for _ in range(decoder.config.adapters)), *decoder.lasting]
    rows = decoder.submit_all([Ask(local.prompt, BESIDE, seed, one) for seed, one in enumerate(own)])
    while not all(row.done() for row in rows):
        samples.append(decoder.submit(base).result())
    for row in rows:
        row.result()
    return all(
        mean_difference(one.logprobs, local.logprobs(local.prompt, one.tokens, None)) <= allowed for one in samples
    )
