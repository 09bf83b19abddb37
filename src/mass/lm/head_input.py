"""A model -> the same model, whose output head is given contiguous rows.

Asked for the logits of the last places alone, transformers hands its head a slice [N, k, d] of the states, whose rows
are far apart. For such PyTorch's product in bfloat16 on a CPU copies the whole weight once for each of the N rows: 128
rows of a vocabulary of 152,000 ask for 35 GB, and take a thousand times as long.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def use_contiguous_head(model: Any) -> None:
    """Once for each model. Nothing else in it changes, and no number."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return
    hooks = head._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    if _contiguous not in hooks.values():
        head.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
