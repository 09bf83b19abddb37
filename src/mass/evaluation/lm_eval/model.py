"""Answer the requests of lm-evaluation-harness with `Mass`, which practises on each document before it is asked.

This is all of `--model mass` except its base class, which only lm_eval has (`mass.evaluation.lm_eval.register` joins
the two). Perplexity tasks (`loglikelihood_rolling`) are answered by the unadapted weights: their text is itself the
gold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mass.config import AdaptConfig, config_hash
from mass.errors import ConfigError, ModelError
from mass.evaluation.lm_eval.arguments import arguments_of
from mass.evaluation.lm_eval.asking import Scored, TextSampler
from mass.evaluation.lm_eval.practice import AdaptedWeights, Cost, DocumentPractice, append_entry, new_log
from mass.evaluation.lm_eval.problem import FRAMES
from mass.evaluation.lm_eval.requests import (
    AsksText,
    Continuation,
    Document,
    HarnessRequest,
    continuation_of,
    documents_of,
    rounds,
)
from mass.lm.prompts import CHOICE
from mass.model import Mass, load
from mass.seeds import derive
from mass.training import distributed as parallel


class MassModel:
    """The model class `mass` of lm-evaluation-harness. Its arguments are the fields of
    `mass.evaluation.lm_eval.arguments.Arguments`.

    A model that is already loaded can be given as `model`, instead of `pretrained`.
    """

    cache_hook: Any  # attributes of the harness's base class, here and in the three lines below
    _rank: int
    _world_size: int
    _device: Any

    def __init__(self, model: Mass | None = None, **given: Any) -> None:
        super().__init__()
        self.arguments = arguments_of(given)
        self._held = ExitStack()  # the processes stay connected for as long as this one runs
        self.ranks, device = self._held.enter_context(parallel.joined(self.arguments.device))
        if model is None:
            model = self._loaded(device)
        self.practice = DocumentPractice(model, self._config(model.config), self.arguments.seed, self.arguments.adapt)
        self.asking = TextSampler(model.lm)
        self.tasks: dict[str, AsksText] = {}
        """By name; the harness's, handed over before it asks (`mass.evaluation.lm_eval.register`)."""
        self._rank, self._world_size, self._device = self.ranks.rank, self.ranks.size, model.lm.device
        self._costs: list[Cost] | None = None
        self._log = self._log_file()

    def _loaded(self, device: str) -> Mass:
        given = self.arguments
        if not given.pretrained:
            raise ConfigError(
                "pretrained is missing in --model_args; expected pretrained=tiny-terms, a folder, or a hub name"
            )
        return load(
            given.pretrained,
            given.checkpoint,
            device=device,
            dtype=given.dtype,
            decode_rows=given.decode_rows,
            prompts=given.prompts,
            thinking=given.thinking,
            device_map=given.device_map,
            quantization=given.quantization or "none",
            revision=given.revision,
            seed=given.seed,
        )

    def _config(self, config: AdaptConfig) -> AdaptConfig:
        """Return the configuration with the m and K of the arguments, where they are given."""
        m, k = self.arguments.examples, self.arguments.steps
        synthesis = config.synthesis if m is None else config.synthesis.of_size(m)
        inner = config.inner if k is None else dataclasses.replace(config.inner, steps=k)
        return dataclasses.replace(config, synthesis=synthesis, inner=inner)

    def _log_file(self) -> Path | None:
        if self.arguments.out is None:
            return None
        folder = Path(self.arguments.out).expanduser()
        with self.ranks.together():
            if self.ranks.first:
                new_log(folder)
        return folder / ("documents.jsonl" if self.ranks.first else f"documents.{self.ranks.rank}.jsonl")

    # --- the harness's requests

    def generate_until(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each request's text, up to the stop texts of its task."""
        asks = [continuation_of(request.args[1], self.arguments.max_gen_toks) for request in requests]
        answers = [""] * len(requests)
        for part, weights in self._adapted(requests, "generating", disable_tqdm):
            with self.practice.answering(part):
                for group in rounds(part, lambda place: asks[place]):
                    self._continue(part, weights, group, requests, asks, answers)
            self._record(part, answers)
        return answers

    def _continue(
        self,
        part: Sequence[Document],
        weights: AdaptedWeights,
        group: Sequence[tuple[int, int]],
        requests: Sequence[HarnessRequest],
        asks: Sequence[Continuation],
        answers: list[str],
    ) -> None:
        texts = [str(requests[place].args[0]) for _, place in group]
        seeds = [self._answer_seed(part[number], place) for number, place in group]
        adapter = weights.of([number for number, _ in group])
        samples = self.asking.continued(texts, asks[group[0][1]], seeds, adapter)
        for (number, place), sample in zip(group, samples, strict=True):
            answers[place] = sample.text
            self.practice.count(part[number], len(sample.tokens))
            self.cache_hook.add_partial("generate_until", requests[place].args, sample.text)

    def _answer_seed(self, document: Document, place: int) -> int:
        """Return the seed of `mass eval` for the first request of a document; each further one has its own."""
        turn = document.places.index(place)
        return derive(self.practice.seed_of(document.key), "answer", *([turn] if turn else []))

    def loglikelihood(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-likelihood, True if greedy decoding would give it) for each request's continuation."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for part, weights in self._adapted(requests, "scoring", disable_tqdm):
            places = [(number, place) for number, document in enumerate(part) for place in document.places]
            with self.practice.answering(part):
                asked = [self._scored(requests[place], number) for number, place in places]
                found = self.asking.likelihoods(asked, weights.of(range(len(part))))
            for (_, place), answer in zip(places, found, strict=True):
                answers[place] = answer
                self.cache_hook.add_partial("loglikelihood", requests[place].args, answer)
            self._record(part, answers)
        return answers

    def _scored(self, request: HarnessRequest, number: int) -> Scored:
        context, tokens = self.asking.encode_pair(*map(str, request.args[:2]))
        return Scored(tuple(context), tuple(tokens), number)

    def loglikelihood_rolling(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the log-likelihood of each whole text under the unadapted weights.

        The windows do not overlap in what they predict; a window after the first sees as much of the text before it as
        fits.
        """
        theta = self.practice.model.state.theta
        totals: list[float] = []
        for request in requests:
            windows = self.asking.windows(str(request.args[0]))
            totals.append(sum(total for total, _ in self.asking.likelihoods(windows, theta)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _adapted(
        self, requests: Sequence[HarnessRequest], doing: str, quiet: bool
    ) -> Iterator[tuple[list[Document], AdaptedWeights]]:
        """Yield (documents, their adapters), a stack at a time. All problems are found before the first practice."""
        frames = (self.practice.model.lm.prompts.solve, *FRAMES)
        documents = documents_of(requests, self.tasks, frames, practise=self.arguments.adapt)
        size, kind = self.arguments.batch_size, self.arguments.kind or (CHOICE if doing == "scoring" else None)
        with tqdm(total=len(documents), desc=f"mass: {doing}", disable=quiet or not self.ranks.first) as bar:
            for start in range(0, len(documents), size):
                part = documents[start : start + size]
                yield part, self.practice.weights(part, kind)
                bar.update(len(part))

    def _record(self, part: Sequence[Document], answers: Sequence[Any]) -> None:
        if self._log is not None:
            for document in part:
                entry = self.practice.entries[document.key]
                append_entry(self._log, entry, [answers[place] for place in document.places])

    # --- chat templates

    @property
    def tokenizer(self) -> Any:
        return self.asking.lm.tokenizer

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template in use, for the harness's record; `True` or '' means the model's own."""
        own = getattr(self.tokenizer, "chat_template", None)
        if chat_template is False:
            return ""
        if isinstance(chat_template, str) and chat_template and isinstance(own, dict):
            own = own.get(chat_template)
        if not isinstance(own, str):
            raise ModelError(
                f"the tokenizer of {self.asking.lm.name!r} has no such chat template; leave --apply_chat_template out"
            )
        return own

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the conversation as one text, up to where the model speaks next or continues a message begun for
        it."""
        self.chat_template(True)
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # --- several processes

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the values of all processes, one after the other."""
        found = self.ranks.gather(tensor.reshape(-1).tolist())
        return torch.tensor([value for values in found for value in values], dtype=tensor.dtype)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return the objects of all processes on process `dst`, None on the others."""
        found = self.ranks.gather(obj)
        return found if self.ranks.rank == dst else None

    def barrier(self) -> None:
        """Wait for the other processes, and collect their costs."""
        self._costs = self.ranks.gather(self.practice.cost)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes with its results: what was run, and what it cost over all processes."""
        cost = sum(self._costs, Cost()) if self._costs is not None else self.practice.cost
        practice, documents = self.practice, max(1, cost.documents)
        about = {
            **practice.model.origin,
            "method": practice.model.method,
            "adapt": practice.adapt,
            "examples": practice.config.synthesis.examples,
            "steps": practice.config.inner.steps,
            "config_hash": config_hash(practice.config),
            "seed": practice.seed,
            "processes": self.ranks.size,
            "documents": cost.documents,
            "adapted": cost.adapted,
            "fallbacks": dict(sorted(cost.fallbacks.items())),
            "tokens_per_document": cost.tokens / documents,
            "seconds_per_document": cost.seconds / documents,
        }
        return {"mass": about}
