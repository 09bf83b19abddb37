"""Read a server's `/v1/models`: the name of the base, its other names, and the adapters that are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mass.config import EngineConfig
from mass.errors import EngineError, nearest


@dataclass(frozen=True)
class Served:
    """The base on the server."""

    name: str
    """Name to use in requests."""
    names: frozenset[str]
    """Names that answers may have: of several names vLLM always answers with the first."""
    context: int | None
    """Longest sequence in tokens (the server's --max-model-len); None where the server does not say."""
    adapters: tuple[str, ...]
    """Names of loaded adapters."""
    version: str = ""
    """Version of the server; empty where it does not say."""


def read_served(cards: dict[str, Any], local_name: str, config: EngineConfig) -> Served:
    """Find the base among the server's models. Raises EngineError when it is not listed, or nothing is."""
    data = cards.get("data")
    if not isinstance(data, list) or not all(isinstance(card, dict) and card.get("id") for card in data):
        raise EngineError(
            f"{config.root}/v1/models lists no models; expected a server that speaks vLLM's API; correct "
            "model.engine.url"
        )
    bases = {str(card["id"]): card for card in data if not card.get("parent")}
    wanted = config.model or local_name
    name = wanted if wanted in bases else next(iter(bases)) if config.model is None and len(bases) == 1 else None
    if name is None:
        raise EngineError(
            f"the server does not serve {wanted!r}{nearest(wanted, bases)}; expected the base that is loaded here; set "
            "model.engine.model to its name there"
        )
    card = bases[name]
    same = {other for other, one in bases.items() if card.get("root") and one.get("root") == card.get("root")}
    length = card.get("max_model_len")
    context = length if isinstance(length, int) and length > 1 else None
    return Served(name, frozenset({name, *same}), context, tuple(str(c["id"]) for c in data if c.get("parent")))
