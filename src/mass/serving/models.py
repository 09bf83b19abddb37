"""The models that a server offers by name: the base, and the base with each checkpoint.

`BASE` answers plainly. `BASE+mass` practises from the checkpoint that `mass.load` loads by itself, or untrained;
`BASE+NAME` from a checkpoint of the operator's. `default` is a name that an operator points at another one at run time.
A request keeps the model that it began with.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mass.adaptation import checkpoint as checkpoint_files
from mass.adaptation.origin import UNTRAINED, folder_of
from mass.config import LoraConfig
from mass.errors import nearest
from mass.lm import LM
from mass.lm.prompts import with_thinking
from mass.model import Mass
from mass.serving.errors import RequestError, not_found
from mass.serving.naming import base_name
from mass.serving.protocol import DEFAULT_MODEL

OWN = "mass"
"""Name of the checkpoint that `mass.load` loads by itself."""


@dataclass(frozen=True)
class Served:
    """One model as a client names it."""

    name: str
    base: str
    checkpoint: str
    """Name of the checkpoint; empty for the base, which answers plainly."""
    checkpoint_hash: str
    """SHA-256 of the checkpoint's parameters; empty for the base."""
    mass: Mass
    """The model with its checkpoint; its `lm` samples through the shared decoder."""

    @property
    def adapts(self) -> bool:
        """True for a model that practises."""
        return bool(self.checkpoint)

    @property
    def solves(self) -> bool:
        """True if the last message of the user is asked as a problem, in the form that practice was trained with."""
        return self.adapts and self.mass.method != UNTRAINED


class Models:
    """The models by name, and what `default` stands for. It may be used from several threads."""

    def __init__(self, served: Mapping[str, Served], default: str) -> None:
        self._served = dict(served)
        self._default, self._previous = default, default
        self._lock = threading.Lock()

    def __iter__(self):
        return iter(self._served.values())

    @property
    def default(self) -> tuple[str, str]:
        """The name that `default` stands for, and the one that it stood for before."""
        with self._lock:
            return self._default, self._previous

    def find(self, name: str) -> Served:
        """Return the model of a name. Raises a `RequestError` of status 404."""
        served = self._served.get(self.default[0] if name == DEFAULT_MODEL else name)
        if served is None:
            known = [*self._served, DEFAULT_MODEL]
            raise not_found(
                f"model {name[:100]!r} is not served here{nearest(name[:100], known)}", "model_not_found", "model"
            )
        return served

    def of(self, checkpoint_hash: str) -> Served | None:
        """Return a model with the checkpoint of this hash."""
        return next((one for one in self if one.adapts and one.checkpoint_hash == checkpoint_hash), None)

    def switch(self, name: str | None) -> tuple[str, str]:
        """Point `default` at another model, or with None back at the one before; return both names."""
        with self._lock:
            target = self._previous if name is None else name
            if target not in self._served:
                raise RequestError(
                    f"model is {target[:100]!r}{nearest(target[:100], self._served)}", param="model", code="not_found"
                )
            self._default, self._previous = target, self._default
            return self._default, self._previous


def offered(own: Mass, folders: Mapping[str, str]) -> Models:
    """Return the models of one base: plain, with its own checkpoint, and with those in folders, by name.

    `default` is the first of the folders, or the own checkpoint where none is given. Raises ModelError for a folder
    that holds no checkpoint of this base.
    """
    base = base_name(own.lm.name)
    found = {base: Served(base, base, "", "", own)}
    views = {own.lm.adapters.config: own.lm}
    for name, one in {OWN: own, **{name: _from(own, folder, views) for name, folder in folders.items()}}.items():
        full = f"{base}+{name}"
        found[full] = Served(full, base, name, checkpoint_files.state_hash(one.state), one)
    return Models(found, f"{base}+{next(iter(folders), OWN)}")


def _from(own: Mass, folder: str, views: dict[LoraConfig, LM]) -> Mass:
    """Return the same base with a checkpoint from a folder, asked with the prompts that it was trained with.

    The weights of the base are shared; `views` has a view of it for each shape of adapters. Raises ModelError where the
    folder holds no checkpoint of this base.
    """
    place = folder_of(folder)
    description = checkpoint_files.describe(place)
    lm = views.setdefault(description.lora, own.lm.with_lora(description.lora))
    if description.prompts is not None and not own.prompts_given:
        lm = lm.with_prompts(with_thinking(description.prompts, lm.thinking))
    state, description = checkpoint_files.load(place, lm)
    return replace(
        own,
        lm=lm.asking(description.kind),
        state=state,
        config=description.adapt,
        method=description.method,
        checkpoint=str(place),
        state_seed=None,
        notes=(),
    )
