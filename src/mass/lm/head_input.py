"""Give a model's output head contiguous rows.

When only the logits of the last positions are requested, transformers passes a slice [N, k, d] of the states to the
head, whose rows are far apart in memory. For such a slice PyTorch's bfloat16 product on a CPU copies the whole weight
once for each of the N rows: 128 rows with a vocabulary of 152,000 need 35 GB and take a thousand times as long.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def use_contiguous_head(model: Any) -> None:
    """Register a hook that makes the head's input contiguous, once for each model. The logits do not change."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return
    hooks = head._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    if _contiguous not in hooks.values():
        head.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
