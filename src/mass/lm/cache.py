"""Make the cache that decoding fills, and check that a model can be decoded in batches.

Decoding needs three things of a cache: it goes into the model's forward pass as `past_key_values`, rows can be taken
out of it, and padding on the left of a shorter prompt has no effect on it. Keys and values of attention have all three,
because padding is masked. A recurrent state (Mamba layers, gated delta rules, short convolutions) depends on every
token of its input, so whether a model keeps padding out of it is measured once, when the model is loaded.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mass.errors import ModelError

_PROBE_TOKENS, _PROBE_PADDING = 5, 12
_TRACE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative change of the logits above which padding has had an effect. Rounding stays far below."""
_TRACE_IN_16_BITS = 0.05
"""Bound for 16-bit weights, where rounding alone changes the logits by about a percent."""


def new_cache(model: Any) -> DynamicCache:
    """Make an empty cache for any number of rows, with a cache layer of the right kind for each layer of the model."""
    return DynamicCache(config=_decoder_config(model))


def require_decodable(model: Any, name: str, device: torch.device) -> None:
    """Check that the decoding loop gives what transformers' own `generate` would give. Raises ModelError."""
    kind = type(model).__name__
    if getattr(_decoder_config(model), "is_decoder", True) is False and _sees_later_tokens(model, device):
        raise ModelError(
            f"{name!r} is a {kind} that reads whole texts, an encoder; expected a causal language model, which "
            "continues a text; give one of these"
        )
    alike = getattr(model, "_supports_default_dynamic_cache", lambda: True)()
    if not alike or "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{name!r} is a {kind}, which keeps what it has read in a form of its own; expected a model that takes "
            "past_key_values, as decoders with attention do; use one of these"
        )
    try:
        trace = padding_trace(model, device) if _has_recurrent_layers(model) else 0.0
    except Exception as error:  # a model's own code may raise anything when it is used in a way it does not support
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"{name!r} is a {kind}, which cannot decode with transformers' own cache ({reason}); expected a model that "
            "can; use a decoder with attention only"
        ) from error
    if trace > _bound(model):
        raise ModelError(
            f"{name!r} is a {kind}, whose recurrent layers take in the padding beside a shorter prompt (its logits "
            f"change by {trace:.0%}); expected a model that masks it; use a decoder with attention only"
        )


def _decoder_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


@torch.no_grad()
def _sees_later_tokens(model: Any, device: torch.device) -> bool:
    """Return True where the last token of a text changes the logits at its first, as in an encoder.

    The configuration does not tell: some decoders (GPT-NeoX) are not marked as such, and an encoder's files load as a
    causal model.
    """
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=device)
    first = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5)


def _has_recurrent_layers(model: Any) -> bool:
    return any(hasattr(layer, "update_recurrent_state") for layer in new_cache(model).layers)


def _bound(model: Any) -> float:
    return _TRACE.get(model.get_input_embeddings().weight.dtype, _TRACE_IN_16_BITS)


@torch.no_grad()
def padding_trace(model: Any, device: torch.device) -> float:
    """Return the relative change of a short text's logits by padding on its left, at its end and one token later."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(vocabulary, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    plain, padded = (_two_steps(model, ids, padding) for padding in (0, _PROBE_PADDING))
    return float((plain - padded).norm() / plain.norm().clamp_min(1e-30))


def _two_steps(model: Any, ids: Tensor, padding: int) -> Tensor:
    """Return the logits [2, vocabulary] after the text, and after one more token."""
    cache, fill = new_cache(model), ids.repeat(1, _PROBE_PADDING)[:, :padding]
    mask = torch.cat([torch.zeros_like(fill), torch.ones_like(ids)], 1)
    found: list[Tensor] = []
    tokens = torch.cat([fill, ids], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    for _ in range(2):
        options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        found.append(model(input_ids=tokens, **options).logits[0, -1].float())
        tokens, mask = ids[:, :1], torch.cat([mask, mask.new_ones(1, 1)], 1)
        positions = mask.sum(1, keepdim=True) - 1
    return torch.stack(found)
