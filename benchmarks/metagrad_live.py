"""A computation in torch -> the peak of the bytes that its tensors hold above those held before, and its operations.

The bytes are counted by the package's own tracker, which sees each operation in the calling thread, where CPU backwards
run; tests/metagrad/test_memory.py and tests/metagrad/test_probe.py hold its numbers against a tracker written apart
from it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mass.metagrad.live import LiveMemory


def live_bytes(run: Callable[[], Any]) -> int:
    """The peak during `run` on the CPU; its result counts, as it is alive then."""
    with LiveMemory(torch.device("cpu")) as memory:
        result = run()
    del result
    return memory.peak


def allocated_bytes(run: Callable[[], Any]) -> int:
    """The same as torch's profiler sees the CPU allocator: also where a compiler allocates, which no operation shows,
    and with temporaries within a kernel."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = run()
    del result
    events = sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=_start)
    return max(accumulate(e.nbytes() for e in events), default=0)


def _start(event: Any) -> int:
    return event.start_ns()


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and the attention of `run`, by the formulas of torch's
    FlopCounterMode, without its module hooks: they fail on gradients taken of a leaf inside of a backward."""
    with _Flops() as counter:
        run()
    return counter.total


class _Flops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out
