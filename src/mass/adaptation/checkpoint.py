"""Save and load what meta-training learns: theta, eta and the inner rates.

In a checkpoint folder `adapter/` is theta as an ordinary PEFT folder; `scorer.safetensors` holds eta and the logarithms
of the inner rates; `mass.json` holds the configuration and a fingerprint of the base, so that a checkpoint is never
used on another base.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mass.adaptation.scoring import init_scorer
from mass.config import (
    AdaptConfig,
    GateConfig,
    InnerConfig,
    LoraConfig,
    PracticeConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
    VerifyConfig,
)
from mass.config import to_dict as config_to_dict
from mass.config.names import NEW_NAMES
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.lora import adapter_hash, load_peft, save_peft
from mass.lm.prompts import KINDS, MATH, PromptSet, one_from_json
from mass.lm.prompts import from_json as prompts_from_json
from mass.seeds import derive
from mass.types import Params

DESCRIPTION, SCORER, ADAPTER = "mass.json", "scorer.safetensors", "adapter"


@dataclass(frozen=True)
class MetaState:
    """The meta-learned parameters. A loaded state has its tensors in the same order as an initial one."""

    theta: Params
    """Parameters of the adapter from which every adaptation starts; generator and solver share it."""
    eta: Params
    """Parameters of the scorer."""
    log_rates: Params
    """Logarithm of the inner learning rate of each adapter tensor, scalars."""


@dataclass(frozen=True)
class Description:
    """The content of `mass.json`."""

    method: str
    step: int
    base: str
    fingerprint: str
    lora: LoraConfig
    adapt: AdaptConfig
    version: str = "1"
    prompts: PromptSet | None = None
    """Prompts it was trained with; None in checkpoints without them, which use the model's default."""
    kind: str = MATH
    """Kind of the problems it was trained on; see `mass.lm.prompts`."""
    dtype: str = ""
    """Precision that was chosen for the base it was trained on; empty in checkpoints that do not record it."""


def init_state(lm: LM, adapt: PracticeConfig, seed: int) -> MetaState:
    """Make an untrained state: an adapter that changes nothing, a scorer and inner rates as configured."""
    theta = lm.init_adapter(derive(seed, "theta"))
    # Sorted, as a loaded scorer is: the optimiser's state is stored by the position of each tensor.
    eta = dict(sorted(init_scorer(lm, adapt.scoring, derive(seed, "eta")).items()))
    # A tiny rate represents 0, whose logarithm is infinite.
    rate = torch.tensor(max(adapt.inner.learning_rate, 1e-30), dtype=lm.adapter_dtype, device=lm.device).log()
    return MetaState(theta, eta, {name: rate.clone() for name in theta})


def fingerprint(lm: LM) -> str:
    """Return 16 hex digits that identify a base, from names, shapes and first values of all its tensors.

    The values are rounded to bfloat16 first, so that a base has the same fingerprint when it is loaded in float32,
    bfloat16 or float64. In float16, which rounds differently, it has another one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.model.state_dict().items()):
        first = tensor.detach().flatten()[:32].bfloat16().double().cpu()
        digest.update(f"{name}:{tuple(tensor.shape)}:{first.tolist()}".encode())
    return digest.hexdigest()[:16]


def state_hash(state: MetaState) -> str:
    """Return the SHA-256 of names, shapes and bytes, which is equal only for bit-identical states."""
    groups = enumerate((state.theta, state.eta, state.log_rates))
    return adapter_hash({f"{i}.{name}": t.view(-1) for i, params in groups for name, t in params.items()})


def save(folder: Path, lm: LM, state: MetaState, adapt: AdaptConfig, method: str, step: int) -> None:
    """Write a checkpoint folder. To make this atomic, the caller passes a temporary folder and renames it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_peft(state.theta, lm.adapters, folder / ADAPTER, lm.name)
    tensors = {f"eta.{n}": t for n, t in state.eta.items()} | {f"log_rate.{n}": t for n, t in state.log_rates.items()}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / SCORER)
    base = (lm.name, fingerprint(lm), lm.adapters.config)
    description = Description(method, step, *base, adapt, prompts=lm.prompt_set, kind=lm.kind, dtype=lm.dtype)
    (folder / DESCRIPTION).write_text(json.dumps(config_to_dict(description), indent=2))


def describe(folder: Path) -> Description:
    """Read `mass.json` of a checkpoint, or of the best or latest checkpoint of a run folder.

    Raises ModelError when there is no such file or it cannot be read.
    """
    path = locate(folder) / DESCRIPTION
    try:
        data = json.loads(path.read_text())
        data["lora"] = lora_config(data["lora"])
        data["adapt"] = adapt_config(data["adapt"])
        if data.get("prompts") is not None:
            data["prompts"] = prompts_from_json(data["prompts"])
        return Description(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} is not a checkpoint description ({error}); expected a file that `mass train` wrote"
        ) from error


def set_gate(folder: Path, gate: GateConfig) -> Path:
    """Keep the bounds of a gate in a checkpoint's description, which is replaced as a whole; return its path.

    Raises:
        ModelError: There is no checkpoint, or its folder cannot be written.
    """
    path = locate(folder) / DESCRIPTION
    try:
        data = json.loads(path.read_text())
        data["adapt"]["gate"] = config_to_dict(gate)
        beside = path.with_name(f"{DESCRIPTION}.tmp")
        beside.write_text(json.dumps(data, indent=2))
        beside.replace(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be changed ({error}); expected the description of a checkpoint in a folder that can be "
            "written; copy the checkpoint to one"
        ) from error
    return path


def _with_new_names(data: dict[str, Any]) -> dict[str, Any]:
    """Rename what files of the first checkpoints call otherwise than today."""
    return {NEW_NAMES.get(name, name): value for name, value in data.items()}


def lora_config(data: dict[str, Any]) -> LoraConfig:
    """Read a `LoraConfig` from its JSON form. Raises TypeError on unknown keys."""
    values = _with_new_names(data)
    values["target_modules"] = tuple(values["target_modules"])
    return LoraConfig(**values)


def adapt_config(data: dict[str, Any]) -> AdaptConfig:
    """Read an `AdaptConfig` from its JSON form. Raises TypeError on unknown keys."""
    synthesis, inner = dict(data["synthesis"]), dict(data["inner"])
    synthesis["sampling"] = SamplingConfig(**_with_new_names(synthesis["sampling"]))
    if "verify" in synthesis:  # absent in what was written before the option existed
        verify = dict[str, Any](synthesis["verify"])
        verify["sampling"] = SamplingConfig(**verify["sampling"])
        synthesis["verify"] = VerifyConfig(**verify)
    inner["betas"] = tuple(inner["betas"])
    scoring = dict[str, Any]({"likelihood": False, **data["scoring"]})  # False: written before the option existed
    return AdaptConfig(
        SynthesisConfig(**synthesis),
        ScoringConfig(**scoring),
        InnerConfig(**inner),
        SamplingConfig(**_with_new_names(data["answer"])),
        GateConfig(**data.get("gate", {})),
    )


def recorded_prompts(data: dict[str, Any]) -> PromptSet:
    """Read the prompts of a record, and use them for every kind of problem. Raises TypeError on unknown keys."""
    return dict.fromkeys(KINDS, one_from_json(data))


def locate(folder: Path) -> Path:
    """Find the checkpoint in a folder: the folder itself, or of a run folder its `best`, else its latest checkpoint.

    Raises ModelError where there is none.
    """
    if (folder / DESCRIPTION).is_file():
        return folder
    checkpoints = folder / "checkpoints"
    if (checkpoints / "best" / DESCRIPTION).is_file():
        return checkpoints / "best"
    steps = sorted(checkpoints.glob("step-*/" + DESCRIPTION))
    if not steps and (folder / "adapter_config.json").is_file():
        whole = (folder.parent / DESCRIPTION).is_file()
        raise ModelError(
            f"{str(folder)!r} is a PEFT adapter, without scorer and learning rates; expected a run folder of `mass "
            f"train`, or one of its checkpoints{f'; give {str(folder.parent)!r}, whose adapter it is' if whole else ''}"
        )
    if not steps:
        raise ModelError(
            f"{str(folder)!r} holds no checkpoint; expected a run folder of `mass train`, or one of its checkpoints"
        )
    return steps[-1].parent


def load(folder: Path, lm: LM) -> tuple[MetaState, Description]:
    """Load the state of a checkpoint. Raises ModelError when it was made on another base or is damaged."""
    folder = locate(folder)
    description = describe(folder)
    if (found := fingerprint(lm)) != description.fingerprint:
        raise ModelError(
            f"checkpoint {str(folder)!r} was trained on base {description.base!r} ({description.fingerprint}), "
            f"not on {lm.name!r} ({found}); load it with its own base"
        )
    try:
        tensors = load_file(folder / SCORER)
    except Exception as error:
        raise ModelError(f"{folder / SCORER} cannot be read ({error}); copy the checkpoint anew") from error
    theta = {n: t.to(lm.device, lm.adapter_dtype) for n, t in load_peft(folder / ADAPTER, lm.adapters).items()}
    eta, rates = ({n: t.to(lm.device, lm.adapter_dtype) for n, t in _under(p, tensors)} for p in ("eta.", "log_rate."))
    if missing := [name for name in theta if name not in rates]:
        raise ModelError(
            f"{folder / SCORER} holds no rate of {missing[0]!r}; expected one each; copy the checkpoint anew"
        )
    return MetaState(theta, eta, {name: rates[name] for name in theta}), description


def _under(prefix: str, tensors: Params) -> list[tuple[str, Tensor]]:
    """Return the tensors whose names start with `prefix`, without it, in the order of their names."""
    return sorted((name.removeprefix(prefix), t) for name, t in tensors.items() if name.startswith(prefix))
