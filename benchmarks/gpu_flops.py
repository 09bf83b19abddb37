"""An architecture, m, row length and K -> arithmetic of one meta-gradient in operations, by formula and by counting."""

from __future__ import annotations

from typing import Any

import stack
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from mass.config import LoraConfig
from mass.lm.lora import LoraSites


def formula_flops(config: LlamaConfig, rank: int, rows: int, tokens: int, steps: int) -> float:
    """K first-order and K second-order passes of a frozen base with LoRA; attention unmasked, as it is computed.

    A matrix product with a frozen weight costs its forward once again in each backward: forward, backward, and the two
    again in the double backward. One whose two factors both vary (attention, and LoRA's) costs 1, 2 more, and 6 more.
    """
    h, ff, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = config.num_key_value_heads * (h // config.num_attention_heads)
    shapes = [(h, h), (h, kv), (h, kv), (h, h), (h, ff), (h, ff), (ff, h)]
    total = rows * tokens
    frozen = 2 * total * layers * sum(a * b for a, b in shapes)
    head = 2 * rows * (tokens - tokens // 2) * h * config.vocab_size
    varying = 2 * total * layers * (rank * sum(a + b for a, b in shapes) + 2 * tokens * h)
    first, second = 2 * (frozen + head) + 3 * varying, 4 * (frozen + head) + 9 * varying
    return steps * (first + second)


def counted_flops(config: LlamaConfig, rank: int, rows: int, tokens: int, steps: int) -> float:
    """The same by torch's counter on the meta device: from models of one and two layers, as layers add up."""
    one, two = (_counted(config, layers, rank, rows, tokens) for layers in (1, 2))
    return steps * (one + (config.num_hidden_layers - 1) * (two - one))


def _counted(config: LlamaConfig, layers: int, rank: int, rows: int, tokens: int) -> float:
    small = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": layers})
    with torch.device("meta"):
        model: Any = LlamaForCausalLM._from_config(small, dtype=torch.bfloat16, attn_implementation="eager")
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        mask = torch.zeros(rows, 1, tokens, tokens, dtype=torch.bfloat16)  # ready made: making one reads data
    model.eval().requires_grad_(False)
    sites = LoraSites(model, LoraConfig(r=rank))
    params = {
        name: torch.empty(shape, device="meta", requires_grad=True) for name, shape in stack.shapes_of(sites).items()
    }

    def gradient(create_graph: bool) -> tuple[Tensor, ...]:
        with sites.use(params):
            logits = model(
                input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=tokens - tokens // 2
            ).logits
        loss = logits.float().logsumexp(-1).sum()
        return torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)

    with FlopCounterMode(display=False) as counter:
        gradient(False)
        grads = gradient(True)
        torch.autograd.grad(grads, list(params.values()), [g.detach() for g in grads], allow_unused=True)
    return float(counter.get_total_flops())
