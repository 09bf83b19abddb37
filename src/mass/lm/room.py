"""Rows of a pass -> a bound on the bytes that it holds, from the model's widths; and how many rows fit what is free.

The bound says whether anything has to be measured or cut at all: it is two to five times what passes of Llama, Qwen and
Gemma hold (`tests/lm/test_pass_room.py`). The inner loop, whose memory is the largest, is measured where the bound is
more than what is free (`mass.metagrad.probe`).

Legend: n rows of T tokens, d width of the states.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from mass.lm import free_memory

if TYPE_CHECKING:
    from mass.lm.model import LM

Kind = Literal["forward", "gradient", "second order"]
PLAIN_ATTENTION = 128
"""Tokens up to which attention may keep its T x T matrices (`mass.lm.attention`); eager attention always does."""
CHUNKS = 4
"""Chunks of logits that are alive at once."""

ADAPTERS = 12
"""Copies of an adapter while it is adapted: start, parameters, gradients, state, their sums, norms and what is kept."""


def bytes_of(lm: LM, rows: int, length: int, kind: Kind) -> float:
    """At most so many bytes are alive in a pass, with its graph, whatever rows of this length count."""
    config = lm.model.config.get_text_config()
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    within = heads * int(getattr(config, "head_dim", None) or width // heads)
    inner = _inner_width(config, width)
    eager = getattr(config, "_attn_implementation", None) == "eager"
    keys = length if eager else min(length, PLAIN_ATTENTION)
    each = 8 * width + 6 * within + 6 * inner + 4 * heads * keys
    tokens, narrow = rows * length, torch.empty(0, dtype=_dtype(lm)).element_size()
    logits = CHUNKS * 4.0 * min(tokens * lm.vocabulary, 1 << 26)
    one_layer = 4.0 * tokens * each
    if kind == "forward":
        return one_layer + logits
    graph = narrow * tokens * each * layers
    return (graph if kind == "gradient" else 3 * graph) + one_layer + logits


def rows_that_fit(lm: LM, rows: int, length: int, kind: Kind) -> int:
    """How many of the rows may pass at once: all where the bound is within what can be spared, at least one."""
    spare = free_memory.spare_bytes(lm.device)
    if bytes_of(lm, rows, length, kind) <= spare:
        return rows
    fixed = bytes_of(lm, 0, length, kind)
    each = bytes_of(lm, 1, length, kind) - fixed
    return max(1, min(rows, int((spare - fixed) / each)))


def spare_gb(lm: LM, rows: int, length: int) -> float | None:
    """What the inner loop may hold with so many rows at once; None where that is surely enough."""
    spare = free_memory.spare_bytes(lm.device)
    return None if math.isinf(spare) or bytes_of(lm, rows, length, "second order") <= spare else spare / 1e9


def stack_that_fits(lm: LM, stack: int) -> int:
    """The largest divisor of a stack of problems whose adapters, and what an adaptation makes of them, can be spared.

    A divisor, so that stacks begin where larger ones would.
    """
    sizes = sum(lm.adapters.config.rank * (s.in_features + s.out_features) for s in lm.adapters.sites)
    each = ADAPTERS * sizes * lm.adapter_dtype.itemsize
    fits = max(1.0, free_memory.spare_bytes(lm.device) / each)
    return max(size for size in range(1, stack + 1) if stack % size == 0 and size <= fits)


def _inner_width(config: object, width: int) -> int:
    """Of what a token passes in one layer's perceptron, all experts that it visits together."""
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return int(dense)
    each = getattr(config, "moe_intermediate_size", None) or dense
    return int(experts * each + (getattr(config, "shared_expert_intermediate_size", None) or 0) + dense)


def _dtype(lm: LM) -> torch.dtype:
    return getattr(torch, lm.dtype)
