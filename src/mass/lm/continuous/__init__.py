"""Decoding shared by many threads: rows with their own adapters join and leave one batch between two steps."""

from mass.lm.continuous.ask import (
    Ask,
    Cancelled,
    Closed,
    Decoder,
    Limits,
    Load,
    Piece,
    QueueFull,
    Request,
    check_cancelled,
    current_request,
)
from mass.lm.continuous.decoder import ContinuousDecoder
from mass.lm.continuous.engine import SharedEngine, share

__all__ = [
    "Ask",
    "Cancelled",
    "Closed",
    "ContinuousDecoder",
    "Decoder",
    "Limits",
    "Load",
    "Piece",
    "QueueFull",
    "Request",
    "SharedEngine",
    "check_cancelled",
    "current_request",
    "share",
]
