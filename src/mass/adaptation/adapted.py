"""A language model with the weights that came out of practice: it answers questions, and can be saved."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mass import verify
from mass.adaptation.checkpoint import fingerprint
from mass.adaptation.examples.asking import prompt
from mass.config import SamplingConfig
from mass.errors import DataError, ModelError
from mass.lm import LM
from mass.lm.lora import load_peft, save_peft
from mass.lm.prompts import KINDS, one_from_json
from mass.seeds import derive
from mass.types import Adaptation, Candidate, Choice, Pair, Params, Solution, Task, shortened

SAVED = "examples.json"
"""The file of a saved model with all that it needs beside its adapter: prompts, examples to show, record and choice."""


@dataclass(frozen=True, repr=False)
class AdaptedModel:
    """A language model with the weights that came out of practice on one problem, or on given examples."""

    lm: LM
    adapter: Params
    adaptation: Adaptation
    answer: SamplingConfig
    shots: tuple[Pair, ...] = ()
    """Examples, (input, output), that are shown before each question."""
    choice: Choice | None = None
    """How given examples are used, and what was tried; None for a model adapted to one problem."""

    def sample(self, problems: Sequence[str], *, temperature: float | None = None, seed: int = 0) -> list[str]:
        """Return one answer to each problem; greedy unless the configuration or `temperature` says otherwise."""
        config = self.answer if temperature is None else replace(self.answer, temperature=temperature)
        seeds = [derive(seed, "sample", i) for i in range(len(problems))]
        return [s.text.strip() for s in self.lm.sample(self._prompts(problems), config, seeds, self.adapter)]

    def solve_all(self, problems: Sequence[str | Task], seed: int = 0) -> list[Solution]:
        """Answer many problems in batches, each with a record; that of a `Task` with gold has the verdict.

        The seconds and tokens of a record are those of its answer; `adaptation` has those of choosing and learning.
        Raises DataError for an empty problem.
        """
        texts = [one.problem if isinstance(one, Task) else one for one in problems]
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise DataError(f"problem {number} is empty; give its text")
        start = time.perf_counter()
        seeds = [derive(seed, "answer", i) for i in range(len(texts))]
        samples = self.lm.sample(self._prompts(texts), self.answer, seeds, self.adapter)
        seconds = {"answer": (time.perf_counter() - start) / max(1, len(samples))}
        judged = [(task, sample.text) for task, sample in zip(problems, samples, strict=True) if isinstance(task, Task)]
        verdicts = iter(verify.check_all(judged) if judged else [])
        found: list[Solution] = []
        for problem, text, sample in zip(problems, texts, samples, strict=True):
            record = replace(
                self.adaptation,
                problem=text,
                text=sample.text.strip(),
                answer=verify.final_answer(sample.text),
                verdict=next(verdicts) if isinstance(problem, Task) else None,
                tokens={"answer": len(sample.tokens)},
                seconds=seconds,
            )
            found.append(Solution(record.text, record.answer, record))
        return found

    def _prompts(self, problems: Sequence[str]) -> list[list[int]]:
        return [prompt(self.lm, self.shots, problem, self.answer.max_new_tokens) for problem in problems]

    def __repr__(self) -> str:
        lines = [f"AdaptedModel({self.lm.name!r}, adapted to {shortened(self.adaptation.problem)!r}"]
        if self.choice is not None:
            lines.append(f" {self.choice.reason}")
        return ",\n".join(lines) + ")"

    def save(self, folder: str | Path) -> None:
        """Write the adapter as a PEFT folder; with examples also `examples.json`, by which `Mass.restore` has the
        prompts, the examples to show and the choice. A model that learned nothing has no adapter to write."""
        folder = Path(folder)
        if self.choice is None or self.choice.chosen.adapts:
            save_peft(self.adapter, self.lm.adapters, folder, self.lm.name)
        if self.choice is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "base": self.lm.name,
            "fingerprint": fingerprint(self.lm),
            "kind": self.lm.kind,
            "answer": asdict(self.answer),
            "shots": self.shots,
            "choice": asdict(self.choice),
            "adaptation": self.adaptation.to_dict(),
        }
        beside = folder / f"{SAVED}.tmp"
        beside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(folder / SAVED)


def base_of(folder: Path) -> str:
    """Return the name of the base that a saved model was made on. Raises ModelError."""
    return str(_saved(folder).get("base"))


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / SAVED
    if not path.is_file():
        raise ModelError(f"{folder} has no {SAVED}; expected a folder that `mass adapt --examples` wrote; name one")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**data}
    except (OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:120]
        raise ModelError(f"{path} is damaged ({said}); learn the examples again") from error


def restored(lm: LM, theta: Params, folder: Path) -> AdaptedModel:
    """Read what `AdaptedModel.save` wrote after learning examples. Raises ModelError."""
    data, path = _saved(folder), folder / SAVED
    try:
        choice = _choice(data["choice"])
        record = Adaptation.from_dict(data["adaptation"])
        answer = SamplingConfig(**data["answer"])
        shots = tuple((str(question), str(output)) for question, output in data["shots"])
        prompts = one_from_json(record.prompts)
        base = (data["base"], data["fingerprint"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}); learn the examples again"
        ) from error
    if base[1] != fingerprint(lm):
        raise ModelError(f"{folder} was made on base {base[0]!r}, not on {lm.name!r}; load it with its own base")
    view = lm.with_prompts(dict.fromkeys(KINDS, prompts), str(data["kind"]))
    adapter = load_peft(folder, lm.adapters) if choice.chosen.adapts else theta
    adapter = {name: tensor.to(lm.device, lm.adapter_dtype) for name, tensor in adapter.items()}
    return AdaptedModel(view, adapter, record, answer, shots, choice)


def _choice(data: dict[str, Any]) -> Choice:
    tried = tuple(_candidate(one) for one in data["tried"])
    return Choice(_candidate(data["chosen"]), tried, data["reason"], data["folds"], tuple(data["notes"]))


def _candidate(data: dict[str, Any]) -> Candidate:
    return Candidate(**dict[str, Any]({**data, "right": tuple(data["right"])}))
