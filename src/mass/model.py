"""Load a base model with its checkpoint, ready to practise on a problem and answer it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

from mass import verify
from mass.adaptation import checkpoint as checkpoints
from mass.adaptation import hub
from mass.adaptation.adapt import practise
from mass.adaptation.adapted import AdaptedModel, restored
from mass.adaptation.answer import answer_all
from mass.adaptation.canaries import Canaries, needs_canaries, prepare_canaries
from mass.adaptation.checkpoint import MetaState, init_state
from mass.adaptation.examples.use import use
from mass.adaptation.origin import SHIPPED, UNTRAINED, folder_of, lora_of, origin_of
from mass.adaptation.replay import require_same_base, require_same_result
from mass.config import (
    AdaptConfig,
    EngineConfig,
    ExamplesConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
)
from mass.config.checks import require
from mass.errors import DataError, ModelError
from mass.lm import LM, default_prompts, load_lm
from mass.lm.lora import pick
from mass.lm.prompts import KINDS, Prompts, PromptSet, kind_of
from mass.lm.source import DEFAULT_MODEL, shipped_folder
from mass.seeds import derive
from mass.tasks import few_shot
from mass.types import Adaptation, Example, Solution, Task

UNTRAINED_TOKENS = 512
SMALL_PARAMETERS = 300_000_000
"""Parameters of a model below which it samples practice at a lower temperature; see `untrained_config`."""


@dataclass(frozen=True, repr=False)
class Mass:
    """A language model that can adapt itself to a problem. Solving does not change it."""

    lm: LM
    state: MetaState
    config: AdaptConfig
    """Test-time configuration: the checkpoint's own, unless `load` was given another."""
    method: str = UNTRAINED
    """The method that trained the state: mass, mass-gold, solver-grpo, or untrained."""
    checkpoint: str | None = None
    """The folder of a trained state; None for an untrained one."""
    state_seed: int | None = None
    """The seed of an untrained state; None for a trained one."""
    prompts_given: bool = False
    """True if `load` was given prompts; these are then preferred to those of any checkpoint."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the model was loaded."""

    def asking(self, kind: str) -> Mass:
        """Return the same model with its prompts for another kind of problem (one of `mass.lm.prompts.KINDS`)."""
        return self if kind == self.lm.kind else replace(self, lm=self.lm.asking(kind))

    def _lm_for(self, problem: object) -> LM:
        """Return the language model with the prompts for this problem: a Task knows its kind of problem."""
        return self.lm.asking(kind_of(problem)) if isinstance(problem, Task) else self.lm

    def __repr__(self) -> str:
        weights = f"checkpoint {self.checkpoint!r} ({self.method})" if self.checkpoint else self.method
        m, steps = self.config.synthesis.examples, self.config.inner.steps
        return (
            f"Mass({self.lm.name!r}, {self.lm.dtype} on {self.lm.device}, {weights}, "
            f"practice: {m} examples, {steps} step{'s' * (steps != 1)})"
        )

    @overload
    def solve(
        self,
        problem: str | Task,
        adapt: bool = True,
        seed: int = 0,
        *,
        return_adapted: Literal[False] = False,
        examples: Sequence[Any] | None = None,
    ) -> Solution: ...

    @overload
    def solve(
        self,
        problem: str | Task,
        adapt: bool = True,
        seed: int = 0,
        *,
        return_adapted: Literal[True],
        examples: Sequence[Any] | None = None,
    ) -> tuple[Solution, AdaptedModel]: ...

    def solve(
        self,
        problem: str | Task,
        adapt: bool = True,
        seed: int = 0,
        *,
        return_adapted: bool = False,
        examples: Sequence[Any] | None = None,
    ) -> Solution | tuple[Solution, AdaptedModel]:
        """Practise on the problem and answer it; `adapt=False` answers with the checkpoint as it is.

        Only the `.problem` of a `Task` reaches the adaptation, and its verifier says which kind of problem is asked;
        its gold is used afterwards, for the verdict in the record. With examples, (input, output), or a task that has
        some, the practice is those instead of written; see `adapt`, which is paid once for many questions.

        `return_adapted=True` also returns the adapted model, which answers further problems and can be saved. Raises
        ConfigError where it is asked for with `adapt=False`.
        """
        if not adapt:
            require(not return_adapted, "return_adapted", True, "False with adapt=False, which adapts nothing")
            require(not examples, "adapt", False, "True with examples, which are what is learned")
            return self._solve_plain(problem, seed)
        given = examples or (problem.examples if isinstance(problem, Task) else ())
        if given:
            verifier = problem.verifier if isinstance(problem, Task) else None
            learned = self.adapt(given, verifier=verifier, seed=seed)
            (solution,) = learned.solve_all([problem], seed)
            return (solution, learned) if return_adapted else solution
        lm = self._lm_for(problem)
        canaries = self.canaries(lm)
        (record,), adapted = answer_all(lm, self.state, [_text(problem)], self.config, [seed], canaries=canaries)
        record = replace(record, **self.origin)
        solution = _solution(problem, record)
        if not return_adapted:
            return solution
        return solution, AdaptedModel(lm, pick(adapted.stack, 0), record, self.config.answer)

    def adapt(
        self,
        examples: Sequence[Any],
        *,
        instruction: str = "",
        verifier: str | None = None,
        config: ExamplesConfig | None = None,
        budget_s: float | None = None,
        seed: int = 0,
    ) -> AdaptedModel:
        """Learn examples of a task, and return a model that answers many questions like them.

        How the examples are used (in the prompt, in the weights, both, or not at all) is chosen by answers to examples
        that are held out, unless `config.method` says it. This model is not changed.

        Args:
            examples: Pairs (input, output), `Task`s with a solution, or rows as a file has them (`input` and `output`,
                `messages`, ...).
            instruction: What every question is preceded by; a chat model's system message.
            verifier: Judges the held-out answers, a key of `mass.verify.VERIFIERS` or one of your own. None: that of
                the tasks given, else the whole text has to be equal.
            config: What is tried, or how the examples are used. None: the defaults.
            budget_s: Seconds for choosing and learning together; overrides the configuration's.

        Raises DataError for examples that cannot be used.
        """
        config = config or ExamplesConfig()
        config = config if budget_s is None else replace(config, budget_s=budget_s)
        given = few_shot.of(examples, verifier)
        given = replace(given, instruction=instruction.strip() or given.instruction)
        used = use(self.lm, self.state, given, config, self.config.scoring, seed)
        record = replace(used.record, **self.origin)
        return AdaptedModel(used.lm, used.adapter, record, used.answer, used.shots, used.choice)

    def restore(self, folder: str | Path) -> AdaptedModel:
        """Return the model that `AdaptedModel.save` wrote after learning examples. Raises ModelError."""
        return restored(self.lm, self.state.theta, Path(folder))

    def push_to_hub(self, repo_id: str, *, private: bool = False, message: str = "Upload a checkpoint of MASS") -> str:
        """Upload the checkpoint, with its model card, to a repository of the Hugging Face hub; return its address.

        `mass.load(name, checkpoint=repo_id)` loads it again. The base model is not uploaded. Raises ModelError where
        there is no trained checkpoint, or the hub refuses.
        """
        if self.checkpoint is None:
            raise ModelError("the state is untrained, so there is no checkpoint to upload; load one that was trained")
        return hub.push(checkpoints.locate(folder_of(self.checkpoint)), repo_id, private=private, message=message)

    def replay(self, record: Adaptation) -> Solution:
        """Answer again from a record: from its practice examples, seed, configuration, prompts and starting point.

        A problem that was adapted alone (`stacked` 1, as by `solve`) gives the same update and text, bit for bit, on
        the same machine with the same number of threads. A problem that was adapted side by side with others gives the
        same text, with losses and a size of update equal to 5 digits: alone, the last bits of its sums differ.

        Raises:
            ModelError: The result differs from the record: another base, checkpoint or numeric environment.
        """
        require_same_base(record, self.lm)
        config, state = checkpoints.adapt_config(record.config), self.state
        if self.method == UNTRAINED and record.state_seed is not None:
            state = init_state(self.lm, config, record.state_seed)
        groups: list[tuple[Example, ...]] = [tuple(record.examples)]
        prompts = checkpoints.recorded_prompts(record.prompts) if record.prompts else self.lm.prompt_set
        lm = self.lm.with_prompts(prompts, record.kind)
        decided = None if record.gate is None else [record.gate]
        (again,), _ = answer_all(lm, state, [record.problem], config, [record.seed], replay=groups, decided=decided)
        require_same_result(again, record, self.lm.sampled_by)
        kept = {"tokens": record.tokens, "stacked": record.stacked, **self.origin, "state_seed": record.state_seed}
        return Solution(again.text, again.answer, replace(again, **kept))

    @contextmanager
    def adapted(self, problem: str | Task, seed: int = 0) -> Generator[AdaptedModel, None, None]:
        """Provide the model adapted to a problem while the block runs. Its record has no answer, since none is asked
        for."""
        lm = self._lm_for(problem)
        canaries = self.canaries(lm)
        (record,), adapted = practise(lm, self.state, [_text(problem)], self.config, [seed], canaries=canaries)
        record = replace(record, **self.origin)
        yield AdaptedModel(lm, pick(adapted.stack, 0), record, self.config.answer)

    def canaries(self, lm: LM | None = None) -> Canaries | None:
        """Return the gate's canaries with this model's own answers to them; None where the gate needs none.

        They are made once for each kind of problem. `lm` is a view of the model; by default the model as it is.
        """
        lm = lm or self.lm
        if not needs_canaries(self.config.gate):
            return None
        if lm.kind not in self._canaries:
            self._canaries[lm.kind] = prepare_canaries(lm, self.state.theta, self.config.gate)
        return self._canaries[lm.kind]

    @cached_property
    def _canaries(self) -> dict[str, Canaries]:
        return {}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Fields of `Adaptation` that say with which weights a record was made."""
        return origin_of(self.lm, self.checkpoint, self.state_seed)

    def _solve_plain(self, problem: str | Task, seed: int) -> Solution:
        lm = self._lm_for(problem)
        prompt = lm.solve_prompt(_text(problem))
        (sample,) = lm.sample([prompt], self.config.answer, [derive(seed, "answer")], self.state.theta)
        return Solution(sample.text.strip(), verify.final_answer(sample.text))


def load(
    name: str = DEFAULT_MODEL,
    checkpoint: str | Path | None = None,
    *,
    config: AdaptConfig | None = None,
    lora: LoraConfig | None = None,
    device: str = "auto",
    dtype: str = "auto",
    decode_rows: int = 128,
    engine: EngineConfig | None = None,
    seed: int = 0,
    prompts: str | Path | PromptSet | Prompts | None = None,
    kind: str | None = None,
    thinking: bool | None = None,
    device_map: str | dict[str, int | str] | None = None,
    quantization: str = "none",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Mass:
    """Load a base model and its checkpoint.

    Args:
        name: 'tiny-terms' (part of the package), 'smollm2' (a real model of 135 M parameters), a local folder, a
            GGUF file, a hub name, or owner/name:file.gguf on the hub.
        checkpoint: A run folder of `mass train`, 'owner/name' on the hub, 'tiny-terms/NAME' for one that is part of the
            package, or 'untrained'. None: the package's own checkpoint for its models, else untrained.
        config: Test-time configuration. None: the checkpoint's own, or `untrained_config`.
        lora: Shape of an untrained adapter; a checkpoint has its own.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', ...
        dtype: Precision of the base: float32, bfloat16, float16 or float64. 'auto': that of its files where the device
            is fast with it, else float32.
        decode_rows: Maximum number of sequences sampled side by side; bounds memory.
        engine: A sampling server that samples instead of this process.
        seed: Seed of an untrained adapter.
        prompts: A file as `mass prompts` prints one, or `mass.lm.prompts.Prompts`, for all kinds of problems or by
            kind. None: those the checkpoint was trained with, or the package's own.
        kind: Kind of problems given as plain texts: math, code, choice or other (a `Task` knows its own). None: the
            kind the checkpoint was trained on, or math.
        thinking: True if a model with a thinking switch should think aloud. None: as the prompts say, by default not.
        device_map: How to spread the layers over several GPUs: 'auto', 'balanced', or a dict from parts of the model to
            devices.
        quantization: 'none', '4bit' or '8bit' base weights, by bitsandbytes on a CUDA device.
        revision: Branch, tag or commit of a model on the hub.
        trust_remote_code: True to allow running Python code that comes with the model.

    Raises:
        ModelError: A part is missing, damaged or belongs to another base.
        ConfigError: An option or a file of prompts cannot be used.
        EngineError: The sampling server cannot be used.
    """
    shipped = shipped_folder(name)
    if checkpoint is None and shipped is not None and (shipped / SHIPPED).is_dir():
        checkpoint = shipped / SHIPPED
    require(kind is None or kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    path, given = (str(prompts), None) if isinstance(prompts, str | Path) else (None, _by_kind(prompts))
    values: dict[str, Any] = {"name": name, "device": device, "dtype": dtype, "decode_rows": decode_rows}
    values |= {
        "prompts": path,
        "thinking": thinking,
        "engine": engine or EngineConfig(),
        "device_map": device_map,
        "quantization": quantization,
    }
    model = ModelConfig(**values, revision=revision, trust_remote_code=trust_remote_code)
    if checkpoint is None or checkpoint == UNTRAINED:
        lm = load_lm(model, lora or LoraConfig(), given)
        config = config or untrained_config(lm)
        lm = lm.asking(kind or lm.kind)
        return Mass(lm, init_state(lm, config, seed), config, state_seed=seed, prompts_given=prompts is not None)
    return _with_checkpoint(model, folder_of(checkpoint), config, given, kind)


def untrained_config(lm: LM) -> AdaptConfig:
    """The test-time configuration of a model that nothing has trained to write practice.

    A chat model writes at most `UNTRAINED_TOKENS` tokens of an example. Temperature 1 suits one of half a billion
    parameters: of what Qwen2.5-Coder-0.5B writes for GSM8K 92% is used, and 78% at 0.7, where it copies the problem. It
    is too high for a smaller one: of what SmolLM2-135M writes 50% is used at temperature 1, and 72% at 0.7
    (`benchmarks/practice.py`, 24 training problems, 6 examples each). All examples weigh the same, as they would after
    the two passes of a scorer that has learned nothing.
    """
    if not lm.prompts.chat:
        return AdaptConfig()
    small = lm.model.num_parameters() < SMALL_PARAMETERS
    synthesis = SynthesisConfig(sampling=SamplingConfig(UNTRAINED_TOKENS, 0.7 if small else 1.0))
    return AdaptConfig(synthesis, ScoringConfig(normalise="uniform"))


def _with_checkpoint(
    model: ModelConfig, folder: Path, config: AdaptConfig | None, given: PromptSet | None, kind: str | None
) -> Mass:
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {str(folder)!r} does not exist; give a run folder of `mass train`")
    description = checkpoints.describe(folder)
    own = given is None and model.prompts is None
    lm = load_lm(model, description.lora, description.prompts if own else given)
    lm = lm.asking(kind or description.kind)
    state, _ = checkpoints.load(folder, lm)
    trained_with = description.prompts or default_prompts(lm)
    notes = () if lm.prompt_set == trained_with else (f"The prompts are not those that {folder} was trained with.",)
    adapt = config or description.adapt
    return Mass(lm, state, adapt, description.method, str(folder), None, not own, notes)


def _by_kind(prompts: PromptSet | Prompts | None) -> PromptSet | None:
    """Return prompts for every kind of problem. Raises ConfigError where a kind is missing."""
    if prompts is None or isinstance(prompts, Prompts):
        return None if prompts is None else dict.fromkeys(KINDS, prompts)
    missing = [kind for kind in KINDS if kind not in prompts]
    require(not missing, "prompts", list(prompts), f"one for each of {', '.join(KINDS)}")
    return prompts


def load_for(record: Adaptation, *, model: str | None = None, checkpoint: str | None = None, **options: Any) -> Mass:
    """Load the model and checkpoint with which a record was made, or those given instead. Options are those of
    `load`."""
    name, folder = model or record.model, checkpoint or record.checkpoint
    options = {"dtype": record.dtype, "quantization": record.quantization, **options}
    return load(name, folder, lora=lora_of(record), seed=record.state_seed or 0, **options)


def _text(problem: object) -> str:
    """Return the text of a Task or a plain text. Raises DataError for anything else, and for an empty problem."""
    text = problem.problem if isinstance(problem, Task) else problem
    if not isinstance(text, str):
        raise DataError(f"the problem is {type(text).__name__}; expected its text, or a mass.Task; convert it first")
    if not text.strip():
        raise DataError("the problem is empty; give its text")
    return text


def _solution(problem: str | Task, record: Adaptation) -> Solution:
    if isinstance(problem, Task):
        unadapted = None if record.unadapted_text is None else verify.check(problem, record.unadapted_text)
        record = replace(record, verdict=verify.check(problem, record.text), unadapted_verdict=unadapted)
    return Solution(record.text, record.answer, record)


__all__ = ["AdaptedModel", "Mass", "load"]
