"""Choose the precision of the base weights from `model.dtype`, the precision of the model's files, and the device.

`auto` keeps the precision of the files where the device is fast at it, and takes float32 elsewhere. A CUDA device is
fast at bfloat16 from compute capability 8 on, at float16 from 7 on. On a CPU the speed is measured: the CPU's flags
list its instructions, and do not say whether this build of PyTorch uses them well.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

AUTO = "auto"
FASTER = 1.2
"""Least ratio of the time of a product in float32 to that in bfloat16 at which bfloat16 counts as fast on a CPU."""
_ROUNDS, _SECONDS, _SHAPE = 7, 0.25, (64, 1024, 1024)
_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types by their names in safetensors files."""


def choose(asked: str, own: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision of the base, and a sentence with the reason where `auto` had a choice, else an empty text.

    `own` is the precision of the files; None, where they do not say, counts as float32.
    """
    if asked != AUTO:
        return getattr(torch, asked), ""
    if own in (None, torch.float32, torch.float64):
        return own or torch.float32, ""
    own_name = _name(own)
    if is_fast(device, own):
        measured = f", {bfloat16_speed_of_cpu():.1f} times as fast as float32" if device.type == "cpu" else ""
        return own, f"base weights in {own_name}, as its files have them{measured} here (dtype auto)"
    return torch.float32, f"base weights in float32: {own_name}, its files' own, is no faster here (dtype auto)"


def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True where 16 bits save time on a device. A CUDA device of another machine counts as a modern one."""
    if device.type == "cuda":
        least = (8, 0) if dtype == torch.bfloat16 else (7, 0)
        return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= least
    return device.type == "cpu" and dtype == torch.bfloat16 and bfloat16_speed_of_cpu() >= FASTER


@functools.cache
def bfloat16_speed_of_cpu() -> float:
    """Return the time of a product [64, 1024] x [1024, 1024] in float32 divided by that in bfloat16.

    The two take turns, so that other work on the machine slows both, and the fastest round of each counts. Rounds go
    on for a quarter of a second: where other work holds a core, each of the first ones can wait for it, and a machine
    that is fast at bfloat16 was then taken for a slow one.
    """
    rows, width, out = _SHAPE
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, width, generator=generator), torch.randn(out, width, generator=generator)
    pairs = {dtype: (x.to(dtype), w.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    end = time.perf_counter() + _SECONDS
    while len(times[torch.float32]) <= _ROUNDS or time.perf_counter() < end:
        for dtype, (a, b) in pairs.items():
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times[dtype].append(time.perf_counter() - start)
    # The first round warms up caches and is left out.
    fastest = {dtype: min(some[1:]) for dtype, some in times.items()}
    return fastest[torch.float32] / fastest[torch.bfloat16]


def own_dtype(described: Any, place: str) -> torch.dtype | None:
    """Return the precision in a model's configuration, else that of the first file of weights in the folder `place`."""
    for config in (described, described.get_text_config(decoder=True)):
        said = getattr(config, "dtype", None)
        if said is not None:
            return said if isinstance(said, torch.dtype) else getattr(torch, str(said), None)
    return _of_files(Path(place))


def _of_files(folder: Path) -> torch.dtype | None:
    """Return the narrowest type in the first file of weights, which the large matrices have; None without files."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    try:
        with safe_open(files[0], framework="pt") as weights:
            kinds = {_STORED.get(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # loading the weights will report what is wrong with them
        return None
    return next((kind for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64) if kind in kinds), None)


def device_asked(name: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU if there is one, else the CPU."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
