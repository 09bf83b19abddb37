"""A loaded model -> the parts of a service: the models that it offers, a decoder that all share, and canaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mass.adaptation.canaries import Canaries, prepare_canaries
from mass.config import ServeConfig
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.continuous import ContinuousDecoder, Decoder, Limits, share
from mass.lm.remote import HttpEngine
from mass.lm.remote.beside import base_stays_apart
from mass.lm.remote.decoder import RemoteDecoder
from mass.model import Mass
from mass.serving import decoding
from mass.serving.models import Models, Served, offered

ROWS_WAITING = 1 << 16
"""Sequences that may wait in a decoder. The number of requests is bounded before (`ServeConfig.max_queue`)."""


@dataclass(frozen=True)
class Parts:
    """What a service is made of."""

    models: Models
    decoders: dict[str, Decoder]
    """By the name of the model."""
    canaries: dict[str, Canaries]
    """By the name of the model, for those that practise."""
    lm: LM
    weights_hash: str
    """SHA-256 of the base's weights."""
    notes: tuple[str, ...] = ()
    """What the operator should know."""


def parts_of(own: Mass, folders: Mapping[str, str], config: ServeConfig) -> Parts:
    """Make the parts of a service from a loaded model and the folders of checkpoints, by name.

    Raises:
        ModelError: A folder holds no checkpoint of this base.
        DataError: The file of canaries cannot be used.
        ConfigError: A sampling server is given, and no folder for the adapters of requests.
        EngineError: The sampling server fails.
    """
    models = offered(own, folders)
    served, made = list(models), list[Decoder]()

    def make(lm: LM) -> Decoder:
        made.append(_decoder(lm, served, config))
        return made[-1]

    try:
        decoders = decoding.decoders_for([one.mass.lm for one in served], make)
        by_name = {one.name: decoder for one, decoder in zip(served, decoders, strict=True)}
        shared = {one.name: _shared(one, by_name[one.name]) for one in served}
        notes = tuple(note for decoder in made for note in _keep_base_apart(decoder))
        canaries = {one.name: _canaries(one, config) for one in shared.values() if one.adapts}
    except BaseException:
        for decoder in made:  # the connections to a sampling server would keep the process from ending
            decoder.close()
        raise
    return Parts(Models(shared, models.default[0]), by_name, canaries, own.lm, weights_hash(own.lm), notes)


def _decoder(lm: LM, served: Sequence[Served], config: ServeConfig) -> Decoder:
    """Return a decoder of this process, or of the sampling server that the model is connected to."""
    at_server = isinstance(lm.engine, HttpEngine)
    most = lm.engine_config.requests if at_server else lm.decode_rows
    limits = Limits(waiting=ROWS_WAITING, reserved=max(0, most - int(config.max_practice_share * most)))
    if not at_server:
        return ContinuousDecoder(lm, limits)
    starts = [one.mass.state.theta for one in served if one.adapts and one.mass.lm.adapters is lm.adapters]
    return RemoteDecoder(lm, limits, lasting=starts)


def _keep_base_apart(decoder: Decoder) -> tuple[str, ...]:
    """Work around a server that applies adapters to rows of the base beside them; return notes for the operator."""
    if not isinstance(decoder, RemoteDecoder) or not decoder.config.check or base_stays_apart(decoder):
        return ()
    decoder.keep_base_apart()
    return (
        "the sampling server applies adapters to the base's rows beside them (vllm issue 48421); the base is asked "
        "under an adapter that changes nothing, which takes one of its places for adapters",
    )


def _shared(served: Served, decoder: Decoder) -> Served:
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
