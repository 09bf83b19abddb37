"""A computation in torch -> the peak of the bytes that its tensors hold above those held before, and its operations.

Every operation is seen as it is dispatched; a storage counts from the operation that made it until it is freed.
Temporaries inside one kernel are not seen. Works wherever tensors live, but in the calling thread alone, which is where
CPU backwards run; on CUDA the allocator's own statistics are better.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


def live_bytes(run: Callable[[], Any]) -> int:
    """The peak during `run`; its result counts, as it is alive then."""
    with LiveBytes() as tracker:
        result = run()
    del result
    return tracker.peak


class LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._sizes: dict[int, int] = {}
        """Bytes by the address of the storage; 0 for one that was there before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self._see(tensor, counts=True)
        self.peak = max(self.peak, self.held)
        return out

    def _see(self, tensor: Any, counts: bool) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.is_sparse:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if counts else 0
            self.held += self._sizes[key]
            weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


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
