"""Bound the bytes that a pass holds, from the model's widths, and find how many rows fit the free memory.

The bound decides whether passes have to be measured or cut at all: it is two to five times what passes of Llama, Qwen
and Gemma hold (`tests/lm/test_pass_room.py`). The inner loop, which needs the most memory, is measured
(`mass.metagrad.probe`) where the bound exceeds the free memory.

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
"""Length in tokens up to which attention may keep its T x T matrices (`mass.lm.attention`); eager attention always
does."""
CHUNKS = 4
"""Number of chunks of logits that are alive at once."""

ADAPTERS = 12
"""Number of copies of an adapter during an adaptation: start, parameters, gradients, state, their sums, norms and the
tape."""


def bytes_of(lm: LM, rows: int, length: int, kind: Kind) -> float:
    """Return an upper bound on the bytes alive in a pass over `rows` rows of `length` tokens, its graph included."""
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
    """Return how many of the rows may be in one pass: all of them if the bound fits the spare memory, at least one."""
    spare = free_memory.spare_bytes(lm.device)
    if bytes_of(lm, rows, length, kind) <= spare:
        return rows
    fixed = bytes_of(lm, 0, length, kind)
    each = bytes_of(lm, 1, length, kind) - fixed
    return max(1, min(rows, int((spare - fixed) / each)))


def spare_gb(lm: LM, rows: int, length: int) -> float | None:
    """Return the gigabytes that the inner loop may hold; None where so many rows at once surely fit."""
    spare = free_memory.spare_bytes(lm.device)
    return None if math.isinf(spare) or bytes_of(lm, rows, length, "second order") <= spare else spare / 1e9


def stack_that_fits(lm: LM, stack: int) -> int:
    """Return the largest divisor of the size of a stack of problems with which its adapters fit the spare memory.

    A divisor is used so that smaller stacks begin at the same problems as larger ones.
    """
    sizes = sum(lm.adapters.config.r * (s.in_features + s.out_features) for s in lm.adapters.sites)
    each = ADAPTERS * sizes * lm.adapter_dtype.itemsize
    fits = max(1.0, free_memory.spare_bytes(lm.device) / each)
    return max(size for size in range(1, stack + 1) if stack % size == 0 and size <= fits)


def _inner_width(config: object, width: int) -> int:
    """Return the width of one layer's perceptron, with all experts that a token visits together."""
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return int(dense)
    each = getattr(config, "moe_intermediate_size", None) or dense
    return int(experts * each + (getattr(config, "shared_expert_intermediate_size", None) or 0) + dense)


def _dtype(lm: LM) -> torch.dtype:
    return getattr(torch, lm.dtype)
