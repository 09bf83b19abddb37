"""Count the bytes that the passes of a step hold, and their operations, without computing anything.

Bytes are counted on the meta device while the operations of a pass are dispatched (`mass.metagrad.live`), so they
follow the model's code and the engine's. Operations are given by formulas. Matrix products with frozen weights cost F
in the forward pass and F in each backward pass; products of two varying factors (attention, LoRA) cost V in the
forward, 2 V more in the first and 6 V more in the second backward.

Legend: n rows of a pass, P prompt tokens, C tokens that count, T = P + C; B adapters of a stack, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mass.config import InnerConfig
from mass.lm import LM
from mass.lm.drawing import AT_ONCE
from mass.lm.growing import ROOM
from mass.lm.logprobs import Predictions
from mass.lm.prefill import TOKENS
from mass.metagrad import memory
from mass.metagrad.arguments import Mode
from mass.metagrad.live import LiveMemory
from mass.metagrad.objective import Objective, autocast_state
from mass.metagrad.outer import optimizer_of
from mass.metagrad.update import Update
from mass.types import Params

DRAWN_BYTES = 36
"""Bytes for one entry of the logits that are drawn from at once: float32, float64 twice, probabilities and their sums
(`lm.drawing`)."""


@dataclass(frozen=True)
class Rows:
    """A number of rows of one length."""

    count: int
    prompt: int
    counted: int
    copies: int = 1
    """Number of rows that share a prompt; where they are sampled, it is read once for all of them."""

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return -(-self.count // self.copies)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.counted


@dataclass(frozen=True)
class Shape:
    """Sizes of a model from which its number of operations follows."""

    frozen: int
    """Entries of the frozen matrices that each token passes through, without the output head."""
    head: int
    """Entries of the output head."""
    lora: int
    """Entries of one adapter."""
    attention: int
    """Width of all heads of all layers together."""
    layers: int
    vocabulary: int
    cache: int
    """Bytes of keys and values for one token."""
    weights: int
    """Bytes of the base."""
    itemsize: int
    """Bytes of one number of the base."""

    def forward(self, rows: Rows, counted: int | None = None) -> tuple[float, float]:
        """Return (operations of products with frozen weights, operations of products of two varying factors)."""
        tokens, places = rows.count * rows.length, rows.count * (rows.counted if counted is None else counted)
        return (
            2.0 * (tokens * self.frozen + places * self.head),
            2.0 * tokens * (self.lora + 2 * rows.length * self.attention),
        )

    def first_order(self, rows: Rows, *, checkpoint: bool = False) -> float:
        """Return the operations of a loss and its gradient."""
        frozen, varying = self.forward(rows)
        return (3 * frozen + 4 * varying) if checkpoint else (2 * frozen + 3 * varying)

    def second_order(self, rows: Rows, *, checkpoint: bool = False) -> float:
        """Return the operations of a gradient, computed again, and its derivative."""
        frozen, varying = self.forward(rows)
        return (9 * frozen + 16 * varying) if checkpoint else (4 * frozen + 9 * varying)


def shape_of(lm: LM) -> Shape:
    """Return the sizes of a model."""
    config, model = lm.model.config.get_text_config(), lm.model
    heads, layers = int(config.num_attention_heads), int(config.num_hidden_layers)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    weights = {id(p): p for p in model.parameters()}.values()
    itemsize = next(model.parameters()).element_size()
    return Shape(
        frozen=sum(m.weight.numel() for m in linear),
        head=head.weight.numel(),
        lora=sum(lm.adapters.config.r * (s.in_features + s.out_features) for s in lm.adapters.sites),
        attention=layers * heads * width,
        layers=layers,
        vocabulary=int(head.weight.shape[0]),
        cache=2 * layers * groups * width * itemsize,
        weights=sum(p.numel() * p.element_size() for p in weights),
        itemsize=itemsize,
    )


class PassForecast:
    """The passes of one model on the meta device, each measured once."""

    def __init__(self, lm: LM) -> None:
        self.lm, self.shape = lm, shape_of(lm)
        self._known: dict[tuple[str, Rows, int], float] = {}

    def adapter(self, stack: int | None) -> Params:
        """Return one adapter, or a stack of them, without data."""
        lead, rank = (() if stack is None else (stack,)), self.lm.adapters.config.r
        params: Params = {}
        for site in self.lm.adapters.sites:
            for half, sides in (("lora_A", (rank, site.in_features)), ("lora_B", (site.out_features, rank))):
                params[f"{site.name}.{half}"] = torch.empty(
                    *lead, *sides, dtype=self.lm.adapter_dtype, device="meta", requires_grad=True
                )
        return params

    def gradient(self, rows: Rows, stack: int | None = None) -> float:
        """Return the peak bytes of a loss over the rows and its gradient."""

        def run(params: Params) -> object:
            return torch.autograd.grad(self._losses(rows, params).sum(), list(params.values()))

        return self._measured("gradient", rows, stack, run, lambda live: live.peak)

    def forward(self, rows: Rows) -> float:
        """Return the peak bytes of a pass without a gradient."""

        def run(params: Params) -> object:
            with torch.no_grad():
                return self._losses(rows, params)

        return self._measured("forward", rows, None, run, lambda live: live.peak)

    def reading(self, rows: Rows) -> float:
        """Return the peak bytes of the scorer's pass over the rows: only hidden states, twice in its own precision."""

        def run(params: Params) -> object:
            ids, mask = _inputs(rows)
            with torch.no_grad(), self.lm.adapters.use(params):
                decoder = self.lm.model.base_model
                states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                return states.to(self.lm.adapter_dtype) * 1

        return self._measured("reading", rows, None, run, lambda live: live.peak)

    def decoding(self, rows: Rows) -> float:
        """Return the bytes while rows are sampled side by side: keys and values, with space for further tokens, and
        those of one layer twice when they are copied to a larger buffer; then the logits, or the pass that reads the
        prompts."""
        shape = self.shape
        kept = rows.count * (rows.length + ROOM) * shape.cache
        logits = rows.count * shape.vocabulary
        # The logits as the model returns them, and in one layout; drawing goes through a part of them at a time.
        step = kept / shape.layers + 2 * logits * shape.itemsize
        step += min(logits, max(AT_ONCE, shape.vocabulary)) * DRAWN_BYTES
        together = min(rows.prompts, max(1, TOKENS // max(1, rows.prompt)))
        return kept + max(step, self.forward(Rows(together, rows.prompt, 1)))

    def inner(self, config: InnerConfig, rows: Rows, stack: int, micro_batch: int | None) -> memory.Expected:
        """Forecast an adaptation of `stack` problems through `rows` examples, with its backward pass.

        Raises:
            ConfigError: `memory_gb` does not hold it.
        """
        params = self.adapter(stack)

        def losses(params: Params, index: Tensor | None) -> Tensor:
            return self._losses(Rows(rows.count if index is None else len(index), rows.prompt, rows.counted), params)

        rates = {name: torch.empty((), device="meta") for name in params}
        limited = config.memory_gb is not None
        request = memory.PlanRequest(
            config.micro_batch if limited else micro_batch,
            config.memory_gb,
            bool(config.checkpoint),
            config.checkpoint is None,
            True,
        )
        weights = torch.empty(config.steps, rows.count, dtype=self.lm.adapter_dtype, device="meta")
        objective = Objective(losses, autocast_state("cpu"))
        update = Update(optimizer_of(config, rates), stacked=True)
        return memory.forecast(objective, params, weights, update, Mode.parse(config.mode), request)

    def _losses(self, rows: Rows, params: Params) -> Tensor:
        """Return the losses as `LM.losses` does, for rows of one length, whose positions are known in advance."""
        n, counted = rows.count, rows.counted
        stacked = next(iter(params.values())).dim() == 3
        ids, mask = _inputs(rows)
        owners = torch.empty(n, dtype=torch.int64, device="meta") if stacked else None
        values, head = self.lm.last_values(ids, mask, counted, n * counted, params, owners)
        chosen = values[:, :-1].clone(memory_format=torch.contiguous_format).view(n * counted, -1)
        picked = Predictions(chosen, head).logprobs(ids[:, -counted:].reshape(-1))
        return -picked.view(n, counted).sum(1) / counted

    def _measured(
        self,
        kind: str,
        rows: Rows,
        stack: int | None,
        run: Callable[[Params], object],
        read: Callable[[LiveMemory], float],
    ) -> float:
        key = kind, rows, stack or 0
        if key not in self._known:
            params = self.adapter(stack)
            with LiveMemory(torch.device("meta")) as live:
                held = run(params)
                self._known[key] = read(live)
                del held
        return self._known[key]


def _inputs(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return tokens and the attention mask. The mask is made here, since transformers would read the rows to make
    it."""
    ids = torch.empty(rows.count, rows.length, dtype=torch.int64, device="meta")
    return ids, torch.empty(rows.count, 1, rows.length, rows.length, dtype=torch.bool, device="meta")
