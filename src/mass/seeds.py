"""(seed, names) -> an independent seed: every random draw is a function of the run's seed and of what it is for."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed; equal arguments give equal seeds, on every machine."""
    text = ":".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
