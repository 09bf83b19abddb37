"""Prepare the model for each method: its weights, its configuration, and where they come from.

`mass.evaluation.methods` says what each method consists of. Source: arXiv 2603.03524.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mass.adaptation import checkpoint as checkpoint_files
from mass.adaptation.checkpoint import MetaState, init_state
from mass.adaptation.origin import UNTRAINED, origin_of
from mass.config import (
    AdaptConfig,
    EvalConfig,
    LoraConfig,
    ScoringConfig,
)
from mass.errors import ConfigError, nearest
from mass.evaluation.methods import (
    TRAINED,
    TT_SS_LIKELIHOOD,
    TT_SS_VERIFIED,
    UNTRAINED_METHODS,
    WAY_OF,
    checkpoint_of,
    choice_of,
)
from mass.lm import LM
from mass.lm.prompts import with_thinking
from mass.lm.source import shipped_folder
from mass.model import Mass
from mass.runs.folder import training_of
from mass.types import Params

Checkpoints = Mapping[str, str | Path]
"""For each method a run folder of `mass train`, one of its checkpoints, or 'untrained'."""


@dataclass(frozen=True)
class Contestant:
    """The model as one method uses it."""

    lm: LM
    state: MetaState | None
    """The adapter, scorer and inner rates; None for the base alone."""
    config: AdaptConfig
    origin: str = ""
    """A sentence on where a trained state comes from; empty for the untrained methods."""
    recorded: dict[str, Any] = field(default_factory=dict[str, Any])
    """The origin as fields of `Adaptation`, for the records (see `mass.adaptation.origin.origin_of`)."""
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    """A summary of how a trained state was trained (see `mass.runs.folder.training_of`); empty where that is not
    known."""
    samples_base: bool = False
    """True if the answers come from the base, and only the scorer of the state is used."""

    @property
    def theta(self) -> Params | None:
        """The adapter that answers; None for the base."""
        return None if self.state is None or self.samples_base else self.state.theta


def contestants(
    model: Mass, methods: Sequence[str], config: EvalConfig, checkpoints: Checkpoints, seed: int
) -> dict[str, Contestant]:
    """Return the model as each method uses it. Checkpoints are read; the base stays the one that is loaded.

    A checkpoint is asked with the prompts it was trained with, unless the model was given others: with other prompts it
    would answer worse for no visible reason.

    Raises:
        ConfigError: A method needs a checkpoint that does not exist.
        ModelError: A checkpoint cannot be used.
    """
    for name in checkpoints:
        if name not in TRAINED:
            raise ConfigError(f"a checkpoint is given for {name!r}{nearest(name, TRAINED)}")
    lms = {model.lm.adapters.config: model.lm}
    trained: dict[str, Contestant] = {}
    found: dict[str, Contestant] = {}
    for method in methods:
        name = checkpoint_of(method)
        if name is not None:
            if name not in trained:
                trained[name] = _at_test(_trained(model, name, checkpoints, lms, config, seed), config)
            found[method] = _of_base(trained[name]) if _samples_base(method) else trained[name]
        elif method in WAY_OF:
            adapt = dataclasses.replace(model.config, answer=config.answer)
            found[method] = Contestant(model.lm, model.state, adapt, recorded=model.origin)
        elif method in UNTRAINED_METHODS:
            adapt = _untrained_config(model, method, config)
            state, recorded = init_state(model.lm, adapt, seed), origin_of(model.lm, None, seed)
            found[method] = Contestant(model.lm, state, adapt, recorded=recorded)
        else:
            found[method] = Contestant(model.lm, None, AdaptConfig(answer=config.answer))
    return found


def _untrained_config(model: Mass, method: str, config: EvalConfig) -> AdaptConfig:
    """Return a configuration with as much practice as the model's own, weighted uniformly or by likelihood.

    Only tt-ss-verified verifies it, so that the untrained methods differ in one thing each.
    """
    synthesis, inner = config.synthesis or model.config.synthesis, config.ttt or model.config.inner
    verify = dataclasses.replace(synthesis.verify, enabled=method == TT_SS_VERIFIED)
    synthesis = dataclasses.replace(synthesis, verify=verify)
    likely = method == TT_SS_LIKELIHOOD
    scoring = ScoringConfig(sharpness=config.sharpness) if likely else ScoringConfig(normalise="uniform")
    return _with_counts(AdaptConfig(synthesis, scoring, inner, config.answer), config)


def _at_test(contestant: Contestant, config: EvalConfig) -> Contestant:
    return dataclasses.replace(contestant, config=_with_counts(contestant.config, config))


def _with_counts(adapt: AdaptConfig, config: EvalConfig) -> AdaptConfig:
    """Return the configuration with the m and K of the comparison, where it sets them."""
    m = adapt.synthesis.examples if config.examples is None else config.examples
    k = adapt.inner.steps if config.steps is None else config.steps
    return dataclasses.replace(
        adapt,
        synthesis=adapt.synthesis.of_size(m),
        inner=dataclasses.replace(adapt.inner, steps=k),
    )


def _samples_base(method: str) -> bool:
    choice = choice_of(method)
    return choice is not None and choice.sampler == "base"


def _of_base(contestant: Contestant) -> Contestant:
    """Return the base, with the scorer of a checkpoint."""
    return dataclasses.replace(contestant, samples_base=True)


def _trained(
    model: Mass, name: str, checkpoints: Checkpoints, lms: dict[LoraConfig, LM], config: EvalConfig, seed: int
) -> Contestant:
    given, shipped = checkpoints.get(name), shipped_folder(model.lm.name)
    if given is not None and str(given) == UNTRAINED:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        state, recorded = init_state(model.lm, adapt, seed), origin_of(model.lm, None, seed)
        return Contestant(model.lm, state, adapt, "no checkpoint: its state is untrained", recorded)
    if given is not None:
        return _from_folder(model, Path(given).expanduser(), name, lms, config, f"checkpoint {given}")
    if model.method == name:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        training = {"method": name, **training_of(Path(model.checkpoint))} if model.checkpoint else {}
        return Contestant(model.lm, model.state, adapt, "the state of the given model", model.origin, training)
    if shipped is not None and (shipped / name).is_dir():
        return _from_folder(model, shipped / name, name, lms, config, "the checkpoint shipped with the package")
    raise ConfigError(
        f"method {name!r} needs a checkpoint that `mass train` made with train.method {name}, and model "
        f"{model.lm.name!r} ({model.method}) brings none; give its run folder "
        f"(--checkpoints {name}=DIR, in Python checkpoints={{{name!r}: DIR}}), or leave the method out"
    )


def _from_folder(
    model: Mass, folder: Path, name: str, lms: dict[LoraConfig, LM], config: EvalConfig, origin: str
) -> Contestant:
    if not folder.is_dir():
        raise ConfigError(
            f"checkpoint of {name!r} is {str(folder)!r}, which is not a folder; give a run folder of `mass train`"
        )
    description = checkpoint_files.describe(folder)
    if description.lora not in lms:
        # The base's weights are shared: only the adapter's shape differs between checkpoints.
        lms[description.lora] = model.lm.with_lora(description.lora)
    lm = lms[description.lora]
    if description.prompts is not None and not model.prompts_given:
        own = with_thinking(description.prompts, lm.thinking)
        if own != lm.prompt_set:
            lm = lm.with_prompts(own)
            origin += ", asked with its own prompts"
    state, description = checkpoint_files.load(folder, lm)
    adapt = dataclasses.replace(description.adapt, answer=config.answer)
    steps = f"{description.step} steps of {description.method}" if description.step else "untrained: 0 steps"
    training = {"method": description.method, "step": description.step, **training_of(folder)}
    return Contestant(lm, state, adapt, f"{origin} ({steps})", origin_of(lm, folder, None), training)
