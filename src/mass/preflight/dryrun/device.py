"""Describe a device's speed: matrix products, memory reads and the start of operations, measured here or given."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError
from mass.lm.architecture import Architecture
from mass.lm.free_memory import total_bytes

ROUNDS = 3
ELSEWHERE_LAYER_S = 1e-3
"""Seconds of Python for one layer of one forward pass, assumed for a device that is not here: transformers with an
adapter on each matrix, on a server's processor."""
READ_PER_FLOP = 1 / 200
"""Bytes read in the time of one operation, assumed for a device that is not here: 2 TB/s for 400 TFLOP/s."""


@dataclass(frozen=True)
class Device:
    """The device for which time is estimated."""

    name: str
    kind: str
    """'cpu' or 'cuda'."""
    flops: float
    """Operations per second in a matrix product."""
    bytes_per_s: float
    layer_s: float
    """Seconds of Python for one layer of one forward pass."""
    memory: float
    """Memory in bytes."""
    measured: bool

    def seconds(self, flops: float, read: float = 0.0, layers: float = 0.0) -> float:
        """Return the seconds for work with so many operations, bytes read and layers started.

        A GPU computes while Python starts the next operation; a CPU does one after the other.
        """
        busy, starting = max(flops / self.flops, read / self.bytes_per_s), layers * self.layer_s
        return busy + starting if self.kind == "cpu" else max(busy, starting)


def told(tflops: float, gbps: float | None, device_gb: float | None) -> Device:
    """Describe a GPU that is not here, from its rates in 10^12 operations and 10^9 bytes per second and its memory
    in 10^9 bytes."""
    read = tflops * 1e12 * READ_PER_FLOP if gbps is None else gbps * 1e9
    memory = 80e9 if device_gb is None else device_gb * 1e9
    return Device(f"{tflops:g} TFLOP/s", "cuda", tflops * 1e12, read, ELSEWHERE_LAYER_S, memory, False)


def measure(architecture: Architecture, model: ModelConfig, lora: LoraConfig, device_gb: float | None) -> Device:
    """Measure the present device.

    It times matrix products as wide as the model's (on a CPU at most 1024) in its precision, a copy, and a small model
    of the same kind. A warm-up comes first, and the fastest round counts.

    Raises:
        ConfigError: The device does not exist on this machine.
    """
    device, dtype = _present(model.device), architecture.dtype(model)
    width = int(architecture.config.get_text_config().hidden_size)
    rows, side = (256, min(width, 1024)) if device.type == "cpu" else (4096, width)
    a = torch.randn(rows, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    product = _fastest(lambda: a @ b, device)
    block = torch.zeros(32 << 20 if device.type == "cpu" else 1 << 30, dtype=torch.uint8, device=device)
    copy = _fastest(block.clone, device)
    memory = total_bytes(device) if device_gb is None else device_gb * 1e9
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    layer_s = _layer_seconds(architecture, lora, dtype, device)
    return Device(called, device.type, 2 * rows * side * side / product, 2 * len(block) / copy, layer_s, memory, True)


def _layer_seconds(architecture: Architecture, lora: LoraConfig, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds for one layer of a forward pass with its adapter, on so little data that only Python's work
    counts."""
    found: list[float] = []
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for layers in (2, 6):
        lm = architecture.shrunk(layers, lora, dtype, device)
        if lm is None:
            return ELSEWHERE_LAYER_S
        with torch.no_grad(), lm.adapters.use(lm.init_adapter(0)):
            found.append(_fastest(functools.partial(lm.model, input_ids=ids, use_cache=False), device))
    # The difference of 6 and 2 layers leaves out what does not depend on the number of layers.
    return max(1e-7, (found[1] - found[0]) / 4)


def _present(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device is {name!r}, which this machine does not have; leave it at auto, or say with "
            "--device_tflops and --device_gb what it is like"
        ) from error


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return max(1e-9, min(once() for _ in range(ROUNDS)))
