"""`load` -> `Mass`: a base model with its checkpoint, ready to practise on a problem and answer it."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mass import checkpoint as checkpoints
from mass import verify
from mass.adapt import answer_all
from mass.adapter import pick, save_peft
from mass.checkpoint import MetaState, init_state
from mass.config import AdaptConfig, LoraConfig, ModelConfig, SamplingConfig
from mass.errors import ModelError
from mass.lm import LM, load_lm
from mass.lm.load import TINY, tiny_folder
from mass.seeds import derive
from mass.types import Adaptation, Example, Params, Solution, Task

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Mass:
    """A language model that can adapt itself to a problem. Solving changes nothing in it."""

    lm: LM
    state: MetaState
    config: AdaptConfig
    """Test-time configuration: the checkpoint's own, unless `load` was given another."""
    method: str = UNTRAINED
    """What trained the state: mass, mass-gold, solver-grpo, or untrained."""
    checkpoint: str | None = None

    def solve(self, problem: str | Task, adapt: bool = True, seed: int = 0) -> Solution:
        """Practise on the problem and answer it; `adapt=False` answers with the checkpoint as it is.

        Of a `Task` only `.problem` reaches the adaptation; its gold is used afterwards, for the verdict in the record.
        """
        if not adapt:
            return self._solve_plain(problem, seed)
        (record,), _ = answer_all(self.lm, self.state, [_text(problem)], self.config, [seed])
        return _solution(problem, record)

    def replay(self, record: Adaptation) -> Solution:
        """Answer again from the practice examples, seed and configuration of a record: the same text, bit for bit.

        The update of a problem that was adapted beside others differs in its last bits when it is adapted alone.
        Raises ModelError when the update comes out differently: another base, checkpoint or numeric environment.
        """
        config = checkpoints.adapt_config(record.config)
        groups: list[tuple[Example, ...]] = [tuple(record.examples)]
        (again,), _ = answer_all(self.lm, self.state, [record.problem], config, [record.seed], replay=groups)
        if again.adapter_hash != record.adapter_hash and not _equal_but_for_rounding(again, record):
            raise ModelError(
                f"the replayed update differs from the recorded one (adapter {again.adapter_hash[:12]}, recorded "
                f"{record.adapter_hash[:12]}); replay with the model and checkpoint of the record ({record.model!r})"
            )
        return Solution(again.text, again.answer, replace(again, tokens=record.tokens))

    @contextmanager
    def adapted(self, problem: str | Task, seed: int = 0) -> Generator[AdaptedModel, None, None]:
        """The model adapted to a problem, for as long as the block lasts."""
        records, adapted = answer_all(self.lm, self.state, [_text(problem)], self.config, [seed], unadapted=False)
        yield AdaptedModel(self.lm, pick(adapted.stack, 0), records[0], self.config.answer)

    def _solve_plain(self, problem: str | Task, seed: int) -> Solution:
        prompt = self.lm.solve_prompt(_text(problem))
        (sample,) = self.lm.sample([prompt], self.config.answer, [derive(seed, "answer")], self.state.theta)
        return Solution(sample.text.strip(), verify.final_answer(sample.text))


@dataclass(frozen=True)
class AdaptedModel:
    """A language model with the weights that practice on one problem gave it."""

    lm: LM
    adapter: Params
    adaptation: Adaptation
    answer: SamplingConfig

    def sample(self, problems: Sequence[str], *, temperature: float | None = None, seed: int = 0) -> list[str]:
        """One answer to each problem; greedy unless the configuration or `temperature` says otherwise."""
        config = self.answer if temperature is None else replace(self.answer, temperature=temperature)
        prompts = [self.lm.solve_prompt(problem) for problem in problems]
        seeds = [derive(seed, "sample", i) for i in range(len(prompts))]
        return [s.text.strip() for s in self.lm.sample(prompts, config, seeds, self.adapter)]

    def save(self, folder: str | Path) -> None:
        """Write the adapter as a PEFT folder."""
        save_peft(self.adapter, self.lm.adapters, Path(folder), self.lm.name)


def load(
    name: str = TINY,
    checkpoint: str | Path | None = None,
    *,
    config: AdaptConfig | None = None,
    lora: LoraConfig | None = None,
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
) -> Mass:
    """Load a base model and its checkpoint.

    Args:
        name: 'tiny' (ships with the package), a local folder, or a hub name.
        checkpoint: a run folder of `mass train`, or 'untrained'. None: the shipped one for 'tiny', else untrained.
        config: test-time configuration; None: the checkpoint's own, or the defaults.
        lora: shape of an untrained adapter; a checkpoint brings its own.
        seed: of an untrained adapter.

    Raises ModelError when a part is missing, damaged or belongs to another base.
    """
    if checkpoint is None and name == TINY and (tiny_folder() / "mass").is_dir():
        checkpoint = tiny_folder() / "mass"
    model = ModelConfig(name=name, device=device, dtype=dtype)  # type: ignore[arg-type]
    if checkpoint is None or checkpoint == UNTRAINED:
        lm = load_lm(model, lora or LoraConfig())
        config = config or AdaptConfig()
        return Mass(lm, init_state(lm, config, seed), config)
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {str(folder)!r} does not exist; give a run folder of `mass train`")
    description = checkpoints.describe(folder)
    lm = load_lm(model, description.lora)
    state, _ = checkpoints.load(folder, lm)
    return Mass(lm, state, config or description.adapt, description.method, str(folder))


def _equal_but_for_rounding(one: Adaptation, other: Adaptation) -> bool:
    """Whether both practised on the same losses, before and after, with an update of the same size."""

    def measures(record: Adaptation) -> list[float]:
        losses = [(e.loss_before or 0.0, e.loss_after or 0.0) for e in record.examples]
        return [record.update_norm, *(loss for pair in losses for loss in pair)]

    pairs = zip(measures(one), measures(other), strict=True)
    return one.update_norm > 0 and all(math.isclose(a, b, rel_tol=1e-3) for a, b in pairs)


def _text(problem: str | Task) -> str:
    return problem.problem if isinstance(problem, Task) else problem


def _solution(problem: str | Task, record: Adaptation) -> Solution:
    if isinstance(problem, Task):
        unadapted = None if record.unadapted_text is None else verify.check(problem, record.unadapted_text)
        record = replace(record, verdict=verify.check(problem, record.text), unadapted_verdict=unadapted)
    return Solution(record.text, record.answer, record)


__all__ = ["AdaptedModel", "Mass", "load"]
