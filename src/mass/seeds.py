"""Derive independent seeds: every random draw is a function of the run's seed and of its purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed; equal arguments give equal seeds, on every machine."""
    text = ":".join([str(seed), *map(str, names)])
    # Python's own hash() of a text differs from process to process; 63 bits fit a signed integer of torch.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
