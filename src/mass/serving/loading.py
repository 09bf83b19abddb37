"""A loaded model -> the parts of a service: the models that it offers, a decoder that all share, and canaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mass.adaptation.canaries import Canaries, prepare_canaries
from mass.config import ServeConfig
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.continuous import ContinuousDecoder, Limits, share
from mass.model import Mass
from mass.serving import decoding
from mass.serving.models import Models, Served, offered

ROWS_WAITING = 1 << 16
"""Sequences that may wait in a decoder. The number of requests is bounded before (`ServeConfig.max_queue`)."""


@dataclass(frozen=True)
class Parts:
    """What a service is made of."""

    models: Models
    decoders: dict[str, ContinuousDecoder]
    """By the name of the model."""
    canaries: dict[str, Canaries]
    """By the name of the model, for those that practise."""
    lm: LM
    weights_hash: str
    """SHA-256 of the base's weights."""


def parts_of(own: Mass, folders: Mapping[str, str], config: ServeConfig) -> Parts:
    """Make the parts of a service from a loaded model and the folders of checkpoints, by name.

    Raises:
        ModelError: A folder holds no checkpoint of this base.
        DataError: The file of canaries cannot be used.
    """
    models = offered(own, folders)
    served = list(models)
    reserved = max(0, own.lm.decode_rows - int(config.max_practice_share * own.lm.decode_rows))
    limits = Limits(waiting=ROWS_WAITING, reserved=reserved)
    decoders = decoding.decoders_for([one.mass.lm for one in served], lambda lm: ContinuousDecoder(lm, limits))
    by_name = {one.name: decoder for one, decoder in zip(served, decoders, strict=True)}
    shared = {one.name: _shared(one, by_name[one.name]) for one in served}
    canaries = {one.name: _canaries(one, config) for one in shared.values() if one.adapts}
    return Parts(Models(shared, models.default[0]), by_name, canaries, own.lm, weights_hash(own.lm))


def _shared(served: Served, decoder: ContinuousDecoder) -> Served:
    mass = replace(served.mass, lm=share(served.mass.lm, decoder))
    mass.origin  # noqa: B018 (computed now, and kept)
    return replace(served, mass=mass)


def _canaries(served: Served, config: ServeConfig) -> Canaries:
    own = served.mass
    return prepare_canaries(own.lm, own.state.theta, replace(own.config.gate, enabled=True, canaries=config.canaries))


@torch.no_grad()
def weights_hash(lm: LM) -> str:
    """Return the SHA-256 of names, shapes and bytes of all weights and buffers of the base."""
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def require_unchanged(parts: Parts) -> None:
    """Check that the base's weights are what they were. Raises ModelError."""
    found = weights_hash(parts.lm)
    if found != parts.weights_hash:
        raise ModelError(
            f"the weights of {parts.lm.name!r} changed while it was served ({found[:12]}, before "
            f"{parts.weights_hash[:12]}); expected the same; discard its records of this run, and report this"
        )
