"""Find out whether a server keeps the base apart from adapters, where rows of both are in one batch.

vLLM 0.32 does not on a CPU: rows of the base get an adapter (vllm-project/vllm issue 48421). A server that answers many
requests at once asks for both, so this is looked at before the first of them.
"""

from __future__ import annotations

from mass.config import SamplingConfig
from mass.lm.continuous import Ask
from mass.lm.remote.agreement import PROBE, strong_adapter
from mass.lm.remote.answers import mean_difference
from mass.lm.remote.decoder import RemoteDecoder

BESIDE = SamplingConfig(max_new_tokens=48, temperature=1.0)
ROWS = 3
"""Rows with an adapter, of different lengths, during which the base is asked again and again."""


def base_stays_apart(decoder: RemoteDecoder) -> bool:
    """Return False for a server whose base gives other log-probabilities beside a strong adapter than this process.

    Raises EngineError.
    """
    local, allowed = decoder.local, decoder.config.agreement
    base = Ask(local.prompt, PROBE, 3, with_logprobs=True)
    samples = [decoder.submit(base).result()]
    adapter = strong_adapter(local, samples[0].tokens)
    rows = decoder.submit_all([Ask(local.prompt, BESIDE, seed, adapter) for seed in range(ROWS)])
    while not all(row.done() for row in rows):
        samples.append(decoder.submit(base).result())
    for row in rows:
        row.result()
    return all(
        mean_difference(one.logprobs, local.logprobs(local.prompt, one.tokens, None)) <= allowed for one in samples
    )
