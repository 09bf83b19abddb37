"""Choose which rows are decoded side by side, so that they fit the free memory.

A row holds the keys and values of its prompt and of all tokens it may generate, padded to the longest row beside it,
and its logits. Where not all rows fit, they are sorted by length, so that rows of similar length are decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mass.lm.growing import ROOM


@dataclass(frozen=True)
class RowBytes:
    """Bytes that one row takes while it is decoded."""

    token: float
    """Bytes of the keys and values of one token, in all layers."""
    row: float
    """Further bytes: the logits that the model returns, and a copy."""

    def of(self, tokens: int) -> float:
        """Return the bytes of a row with so many tokens, prompt and answer together."""
        return self.row + self.token * (tokens + ROOM)


def row_bytes(config: Any, itemsize: int) -> RowBytes:
    """Compute the bytes of a row from a model's configuration, with `itemsize` bytes for each number.

    It is an upper bound: tokens outside a sliding window count, and so do layers without keys and values.
    """
    config = config.get_text_config()
    heads, layers = int(getattr(config, "num_attention_heads", None) or 1), int(config.num_hidden_layers)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    both = 2 * groups * width
    if getattr(config, "kv_lora_rank", None):  # latent attention (DeepSeek): kept as keys and values of all heads
        both = heads * int(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    return RowBytes(float(layers * both * itemsize), 2.0 * itemsize * int(config.vocab_size))


def rows_side_by_side(spare: float, tokens: int, each: RowBytes, most: int) -> int:
    """Return how many rows of so many tokens are decoded at once in `spare` bytes: at least one, at most `most`."""
    return max(1, int(min(most, spare / each.of(tokens))))


def parts(lengths: Sequence[int], height: int, spare: float, each: RowBytes, most: int) -> list[list[int]]:
    """Divide units of `height` rows into parts that are decoded together.

    `lengths` has the length in tokens of each unit's longest row. Where all units fit together, they keep their order;
    otherwise they are sorted by length.
    """
    if not lengths:
        return []
    if len(lengths) * height <= rows_side_by_side(spare, max(lengths), each, most):
        return [list(range(len(lengths)))]
    found: list[list[int]] = [[]]
    for unit in sorted(range(len(lengths)), key=lambda unit: lengths[unit]):
        fits = rows_side_by_side(spare, lengths[unit], each, most)
        if found[-1] and (len(found[-1]) + 1) * height > fits:
            found.append([])
        found[-1].append(unit)
    return found
