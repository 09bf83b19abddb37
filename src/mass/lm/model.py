"""A frozen base model with its tokenizer and prompts (`LM`), run with an adapter that is passed in.

Legend: N rows, L tokens of a row, V vocabulary, d width of the hidden states.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import EngineConfig, LoraConfig, SamplingConfig
from mass.errors import DataError, ModelError
from mass.lm import logprobs
from mass.lm.attention import use_exact_attention
from mass.lm.chat import PromptTokens, Turn
from mass.lm.elementwise import use_closed_forms
from mass.lm.head import Head, HeadReader
from mass.lm.head_input import use_contiguous_head
from mass.lm.layers import checkpoint_layers
from mass.lm.logprobs import Predictions
from mass.lm.lora import LoraSites
from mass.lm.prompts import KINDS, MATH, Prompts, PromptSet
from mass.lm.remote.protocol import Engine
from mass.lm.sampling import StopStrings, sample_rows
from mass.types import Batch, Params, Sample

WRITING = "writing"
"""Key of the view of a model that writes practice, among the views for kinds of problems."""
Row = tuple[list[int], list[int]]
"""A sequence in two parts: context tokens, and the tokens whose log-probability counts."""


class LM:
    """A frozen causal language model. Nothing here changes its weights.

    Its attention becomes twice differentiable (`mass.lm.attention`), its SiLU and RMSNorm get second derivatives in
    closed form (`mass.lm.elementwise`), and its layers can be checkpointed (`mass.metagrad.layerwise.checkpointing`).
    Raises ModelError for an attention that has no exact second derivative.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, prompts: Prompts, adapters: LoraSites, decode_rows: int = 128
    ) -> None:
        use_exact_attention(model)
        use_closed_forms(model)
        use_contiguous_head(model)
        with suppress(
            ModelError
        ):  # layers that cannot be checkpointed: mass.metagrad raises an error where a user requests it
            checkpoint_layers(model, adapters)
        self.model = model
        self.reader = HeadReader(model)
        self.tokenizer = tokenizer
        self.name = name
        self.adapters = adapters
        first = _first_weight(model)
        self.device: torch.device = first.device
        self.adapter_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.decode_rows = decode_rows
        self.thinking: bool | None = None
        """The setting of the thinking switch when the model was loaded; None to leave it to the prompts."""
        self.quantization = "none"
        """Quantisation of the base weights: none, 4bit or 8bit."""
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.engine: Engine | None = None
        """The sampling server in use (`mass.lm.remote.connect`); None where this process samples."""
        self.engine_of: Callable[[LM], Engine | None] | None = None
        """A function that connects a copy, with other prompts or adapters of another shape, to what samples for this
        one; None for a copy that this process samples for by itself."""
        self.engine_config = EngineConfig()
        self.sampled_by = ""
        """Description of the server for records; empty where this process samples."""
        self.kind = MATH
        """Kind of the problems that `prompts` are for."""
        self._ask_with(dict.fromkeys(KINDS, prompts), MATH)

    def _ask_with(self, prompts: PromptSet, kind: str, *, loops: bool | None = None) -> None:
        """Use other prompts. `loops`: end a text that goes round in a loop; None decides by the kind of problem."""
        self.prompt_set, self.kind = prompts, kind
        self._views: dict[str, LM] = {}
        self.prompts = prompts[kind]
        self._asking = PromptTokens(self.tokenizer, self.name, self.prompts, sorted(self._model_end_ids()))
        # A chat model's answer that goes round in a loop is ended too; a program may well repeat a line.
        loops = self.prompts.chat and kind != "code" if loops is None else loops
        self._stop = StopStrings(self.tokenizer, self.prompts.stop, loops=loops)

    def with_prompts(self, prompts: PromptSet, kind: str | None = None, *, loops: bool | None = None) -> LM:
        """Return a view of the model with other prompts; nothing of the model is copied.

        `loops` says whether its samples end where the text goes round in a loop; None: a chat model's answers do.
        """
        other = copy.copy(self)
        other._ask_with(prompts, kind or self.kind, loops=loops)
        other._take_engine()
        return other

    def _take_engine(self) -> None:
        """Connect this copy to the sampling server: the original's connection has its prompts and adapters."""
        self.engine = None if self.engine_of is None else self.engine_of(self)

    def sampled_by_engine(self, engine_of: Callable[[LM], Engine | None]) -> LM:
        """Return a view of the model for which, and for whose views, the engines that `engine_of` makes sample."""
        other = copy.copy(self)
        other._views, other.engine_of = {}, engine_of
        other._take_engine()
        return other

    def asking(self, kind: str) -> LM:
        """Return a view of the model with its prompts for a kind of problem (`mass.lm.prompts.KINDS`)."""
        if kind == self.kind:
            return self
        if kind not in self._views:
            self._views[kind] = self.with_prompts(self.prompt_set, kind)
        return self._views[kind]

    def writing(self) -> LM:
        """Return a view of the model whose samples also end at a text of `Prompts.synthesis_stop`, or in a loop."""
        if not self.prompts.synthesis_stop:
            return self
        if WRITING not in self._views:
            prompts = dataclasses.replace(self.prompts, stop=(*self.prompts.stop, *self.prompts.synthesis_stop))
            # Stored once it is complete, as other threads may use it at once.
            self._views[WRITING] = self.with_prompts({**self.prompt_set, self.kind: prompts}, loops=True)
        return self._views[WRITING]

    def with_lora(self, config: LoraConfig) -> LM:
        """Return a view of the model for adapters of another shape; nothing of the base is copied."""
        if config == self.adapters.config:
            return self
        other = copy.copy(self)
        other.adapters, other._views = LoraSites(self.model, config), {}
        with suppress(ModelError):
            checkpoint_layers(self.model, other.adapters)
        other._take_engine()
        return other

    @property
    def context(self) -> int:
        """Longest sequence, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    @property
    def dtype(self) -> str:
        """Precision of the weights by its name in `ModelConfig`."""
        return str(_first_weight(self.model).dtype).removeprefix("torch.")

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of logits for a token."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a sampled text: the end of an answer, and those of tokenizer and generation configuration."""
        ends = {*self._model_end_ids(), self._asking.end_id, self.tokenizer.eos_token_id}
        return frozenset(i for i in ends if i is not None)

    def _model_end_ids(self) -> set[int]:
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        return {i for i in (ids if isinstance(ids, list) else [ids]) if i is not None}

    @property
    def pad_id(self) -> int:
        """Token that pads rows to one length; the end token if the tokenizer has no padding token.

        Any token would do: attention never sees the padding, and tokens that count are marked by position, so a row's
        own end token still counts.
        """
        pad = self.tokenizer.pad_token_id
        return int(self._asking.end_id if pad is None else pad)

    def init_adapter(self, seed: int) -> Params:
        """Make a new adapter that changes nothing."""
        return self.adapters.init(seed, self.adapter_dtype, self.device)

    # --- text to tokens

    def solve_prompt(self, problem: str) -> list[int]:
        """Return the tokens that ask to solve a problem. Raises DataError where they fill the context."""
        return self._prompt(self.prompts.render_solve(problem), problem)

    def synthesis_prompt(self, problem: str) -> list[int]:
        """Return the tokens that ask for practice for `problem`, up to the point where the model continues.

        The example of `Prompts.shown_target` is left out where it would leave less than half of the context. Raises
        DataError where the prompt fills the context.
        """
        text = self.prompts.render_synthesis(problem)
        if not self.prompts.chat:
            return self._prompt(text, problem)
        opening = self._asking.opening()
        shown = self._asking.chat([*self.prompts.shown_turns(), ("user", text)])
        if 2 * len(shown) <= self.context:
            return [*shown, *opening]
        return [*self._prompt(text, problem), *opening]

    def shots_prompt(self, shots: Sequence[tuple[str, str]], problem: str) -> list[int]:
        """Return the solver prompt of a problem after solved ones, (problem, solution). Its length is not checked."""
        prefix, ask = self._asking.answer_prefix, self.prompts.render_solve
        solved = [(ask(one), solution.strip()) for one, solution in shots]
        if self.prompts.chat:
            turns = [turn for one, solution in solved for turn in (("user", one), ("assistant", solution))]
            return self._asking.chat([*turns, ("user", ask(problem))])
        return self._asking.plain(
            self.prompts.between.join([*(f"{one}{prefix}{solution}" for one, solution in solved), ask(problem)])
        )

    def conversation_prompt(self, turns: Sequence[Turn], *, solve: bool) -> list[int]:
        """Return the tokens that ask for the next message of a conversation (`PromptTokens.conversation`)."""
        return self._asking.conversation(turns, solve=solve)

    def text_prompt(self, text: str) -> list[int]:
        """Return the tokens of a text that the model continues as it is. Its length is not checked."""
        return self._asking.plain(text)

    def _encode(self, text: str) -> list[int]:
        return self._asking.chat([("user", text)]) if self.prompts.chat else self._asking.plain(text)

    def _prompt(self, text: str, problem: str) -> list[int]:
        ids = self._encode(text)
        if len(ids) >= self.context:
            raise DataError(
                f"problem {problem[:40]!r}... is {len(ids)} tokens with its prompt; {self.name!r} reads at most "
                f"{self.context - 1}; shorten it or use a model with a longer context"
            )
        return ids

    def target_ids(self, solution: str) -> list[int]:
        """Return the tokens of a solution after a solver prompt, with the token that ends an answer."""
        return [*self._asking.answer(solution), self._asking.end_id]

    def written_ids(self, problem: str, solution: str) -> list[int]:
        """Return the tokens of a practice example as the model writes it for a synthesis prompt, with the end token."""
        return [*self._asking.written(self.prompts.render_written(problem, solution)), self._asking.end_id]

    def solution_label(self) -> tuple[str, list[int]]:
        """Return the label between problem and solution of a practice example, as text and as tokens."""
        label = self.prompts.example.partition("{problem}")[2].partition("{solution}")[0].rstrip()
        return label, self._asking.alone(label)

    def attempt_row(self, problem: str, solution: str) -> Row:
        """Return an attempt at the problem itself as the scorer reads it.

        The scorer reads every example after a synthesis prompt, so here the problem follows its own prompt as a copy.
        """
        return self.synthesis_prompt(problem), self.written_ids(problem, solution)

    def example_row(self, problem: str, solution: str) -> Row:
        """Return a practice example as the inner loop learns it: solver prompt, then the solution, which counts."""
        return self.solve_prompt(problem), self.target_ids(solution)

    def example_tokens(self, problem: str, solution: str) -> int:
        """Return the length of `example_row` in tokens, also where it is beyond the context."""
        return len(self._encode(self.prompts.render_solve(problem))) + len(self.target_ids(solution))

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Pad rows on the right into a batch on the model's device. Raises DataError for a row beyond the context."""
        length = max(len(context) + len(target) for context, target in rows)
        if length > self.context:
            raise DataError(f"a sequence of {length} tokens; {self.name!r} reads at most {self.context}; shorten it")
        ids = torch.full((len(rows), length), self.pad_id)
        mask, counted = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, (context, target) in enumerate(rows):
            end = len(context) + len(target)
            ids[i, :end] = torch.tensor([*context, *target])
            mask[i, :end] = 1
            counted[i, len(context) : end] = True
        return Batch(ids.to(self.device), mask.to(self.device), counted.to(self.device))

    # --- forward passes

    def token_logprobs(
        self, batch: Batch, adapter: Params | None = None, rows: Tensor | None = None
    ) -> tuple[Float[Tensor, "N K"], Tensor]:
        """Return the log-probabilities (nats, float32 or wider) of the tokens that count, and their mask [N, K] bool.

        K covers the positions from the first token that counts in any row; where the mask is False the value is 0.
        Differentiable twice with respect to the adapter. Logits are computed only for tokens that count and, if the
        model's output head is known (`mass.lm.head`), only for few at a time, and not kept.

        Args:
            adapter: one adapter, or a stack; None for the plain base.
            rows: [N] the index of each row's adapter in a stack; None for equal consecutive blocks of rows.
        """
        if logprobs.is_recorded():
            return self._all_logprobs(batch, adapter, rows)
        first = _first_counted(batch)
        mask = batch.target_mask[:, first:]
        predictions = self.predictions(batch, adapter, rows)
        found = predictions.logprobs(batch.input_ids[:, first:][mask]).to(self.device)
        return found.new_zeros(mask.shape).masked_scatter(mask, found), mask

    def _all_logprobs(
        self, batch: Batch, adapter: Params | None, rows: Tensor | None
    ) -> tuple[Float[Tensor, "N K"], Tensor]:
        """Compute `token_logprobs` over all tokens but the first, and mask those that do not count.

        While a pass is recorded, shapes must not depend on values, so the tokens that count cannot be selected.
        """
        targets, mask = batch.input_ids[:, 1:], batch.target_mask[:, 1:]
        last, count = targets.shape[1], targets.numel()
        values, head = self.last_values(batch.input_ids, batch.attention_mask, last, count, adapter, rows)
        found = Predictions(values[:, :-1].flatten(0, 1), head).logprobs(targets.flatten())
        return torch.where(mask, found.view(mask.shape), 0.0), mask

    def predictions(self, batch: Batch, adapter: Params | None = None, rows: Tensor | None = None) -> Predictions:
        """Return the predictions at each of the n positions of the batch that count, row by row.

        Differentiable twice with respect to the adapter.
        """
        mask = batch.target_mask[:, _first_counted(batch) :]
        count = int(mask.sum())
        values, head = self.last_values(batch.input_ids, batch.attention_mask, mask.shape[1], count, adapter, rows)
        return Predictions(values[:, :-1][mask.to(values.device)], head)

    def last_values(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        last: int,
        count: int,
        adapter: Params | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Float[Tensor, "N last+1 _"], Head | None]:
        """Return the values that predict the `last` tokens of each row, and one position more, with the head or None.

        The values are states [.., d], with the head that makes logits of them. They are logits [.., V], without a head,
        where the logits of the `count` tokens that count are few, or where the head is not known.
        """
        kwargs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.keeps_logits:
            kwargs["logits_to_keep"] = last + 1
        head = None if logprobs.keeps_whole(count, self.vocabulary) else self.reader.head()
        with self.adapters.use(adapter, rows):
            values = self.model(**kwargs, use_cache=False).logits if head is None else self.reader.states(**kwargs)
        return values[:, -(last + 1) :], head

    def losses(self, batch: Batch, adapter: Params | None = None, rows: Tensor | None = None) -> Float[Tensor, " N"]:
        """Return `l_i`: each row's mean negative log-likelihood (nats per token) of the tokens that count."""
        logprobs, mask = self.token_logprobs(batch, adapter, rows)
        return -logprobs.sum(1) / mask.sum(1).clamp_min(1)

    def hidden_states(self, batch: Batch, adapter: Params | None = None) -> Float[Tensor, "N L d"]:
        """Return the last hidden states."""
        with self.adapters.use(adapter):
            decoder = self.model.base_model
            states = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            return states.last_hidden_state.to(self.device)

    # --- sampling

    @property
    def stops(self) -> StopStrings:
        """The texts that end a sample of this view."""
        return self._stop

    def cut(self, text: str) -> str | None:
        """Return the text before the first stop string of the prompts; None where there is none."""
        return self._stop.cut(text)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Params | None = None,
        *,
        with_logprobs: bool = False,
    ) -> list[Sample]:
        """Sample a continuation of each prompt, in this process or at the sampling server.

        Row i is a function of its prompt, seed and adapter. A stack needs as many equal consecutive blocks of prompts
        as it has adapters. `with_logprobs` also keeps the log-probability of each token, at the cost of a softmax over
        the vocabulary for each.

        Raises:
            ShapeError: seeds or a stack that do not fit the prompts.
            DataError: a prompt that fills the model's context.
            EngineError: the server did not give all samples.
        """
        if self.engine is not None:
            return self.engine.sample(prompts, config, seeds, adapter, with_logprobs=with_logprobs)
        return sample_rows(self, prompts, config, seeds, adapter, self._stop, with_logprobs=with_logprobs)


def _first_weight(model: Any) -> Tensor:
    """Return the embedding of tokens: it is never quantised, and never belongs to a model's vision part."""
    return model.get_input_embeddings().weight


def _first_counted(batch: Batch) -> int:
    """Return the first position that counts in any row."""
    return int(batch.target_mask.any(0).nonzero()[0])
