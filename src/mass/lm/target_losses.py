"""Losses of targets after prompts that share a beginning, which is read once for all of them.

Legend: N rows, n of them side by side, T tokens of the longest target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import SamplingConfig
from mass.lm.model import LM
from mass.lm.prefill import prefill
from mass.lm.sampling import count_adapters, decoding_cache, side_by_side
from mass.types import Params

MOST_LOGITS = 1 << 25
"""Most logits of one pass over targets."""


@torch.no_grad()
def target_losses(
    lm: LM, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], adapter: Params | None = None
) -> Float[Tensor, " N"]:
    """Return the mean negative log-likelihood (nats per token) of each target after its prompt, in float32 on the CPU.

    A stack of adapters needs as many equal consecutive blocks of prompts. The result is that of `LM.losses` but for
    rounding.
    """
    longest = max(map(len, targets))
    found = torch.zeros(len(prompts))
    height = max(1, len(prompts) // count_adapters(adapter))
    for rows, own in side_by_side(lm, prompts, SamplingConfig(longest, 0.0), adapter, height):
        found[rows] = _losses(lm, [prompts[i] for i in rows], [targets[i] for i in rows], own)
    return found


def _losses(
    lm: LM, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], adapter: Params | None
) -> Float[Tensor, " n"]:
    cache = decoding_cache(lm)
    logits, mask = prefill(lm, prompts, cache, adapter, count_adapters(adapter))
    longest = max(map(len, targets))
    ids = torch.tensor([[*target, *[lm.pad_id] * (longest - len(target))] for target in targets], device=lm.device)
    counts = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in targets], device=lm.device)
    sums = _logprobs(logits, ids[:, 0]) * counts[:, 0]
    step = max(1, MOST_LOGITS // (len(prompts) * lm.vocabulary))
    for first in range(0, longest - 1, step):
        end = min(first + step, longest - 1)
        mask = torch.cat([mask, counts[:, first:end]], 1)
        positions = (mask.cumsum(1) - 1)[:, -(end - first) :].clamp_max(lm.context - 1)
        with lm.adapters.use(adapter):
            out = lm.model(
                input_ids=ids[:, first:end],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        wanted = ids[:, first + 1 : end + 1]
        values = _logprobs(out.logits.to(lm.device).flatten(0, 1), wanted.flatten()).view(wanted.shape)
        sums = sums + (values * counts[:, first + 1 : end + 1]).sum(1)
    return (-sums / counts.sum(1)).float().cpu()


def _logprobs(logits: Float[Tensor, "n V"], tokens: Tensor) -> Float[Tensor, " n"]:
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
