"""A block of code -> the bytes of the tensors it made: those alive now, and the most that were alive at one time.

On a CPU every operation is seen as it is dispatched, and a storage counts from the operation that made it until it is
freed; temporaries within one kernel are not seen. The same on the meta device, whose tensors have sizes and no data:
what a model too large for this machine would hold. On CUDA the allocator's own statistics say it; its peak is reset.

A limit ends the block with `LimitReached` once more is alive: on a CPU at the operation that goes beyond it, on CUDA
where the device has no more, or at the end.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LimitReached(BaseException):
    """More is alive than the limit. Not an `Exception`: losses that catch those must not swallow it."""


class LiveMemory:
    """Context manager; `held` and `peak` are bytes above what was alive when the block began."""

    def __init__(self, device: torch.device, limit: float = math.inf) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._tracker = None if self._cuda else _Tracker(limit)
        self._before, self._limit = 0, limit

    def __enter__(self) -> LiveMemory:
        if self._tracker is not None:
            self._tracker.__enter__()
        else:
            self._before = torch.cuda.memory_allocated(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None:
            self._tracker.__exit__(kind, error, trace)
        elif isinstance(error, torch.OutOfMemoryError) and self._limit < math.inf:
            torch.cuda.empty_cache()
            raise LimitReached from None
        elif error is None and self.peak > self._limit:
            raise LimitReached

    @property
    def held(self) -> int:
        if self._tracker is not None:
            return self._tracker.held
        return torch.cuda.memory_allocated(self._cuda) - self._before

    @property
    def history(self) -> Sequence[int]:
        """`held` after each operation of the block; empty on CUDA, where operations are not seen."""
        return self._tracker.history if self._tracker is not None else ()

    @property
    def peak(self) -> int:
        if self._tracker is not None:
            return self._tracker.peak
        return torch.cuda.max_memory_allocated(self._cuda) - self._before


class _Tracker(TorchDispatchMode):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.history = list[int]()
        self._limit = limit
        self._sizes: dict[int, int] = {}
        """Bytes by storage; 0 for one that was there before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if _is_dense(tensor):
                storage = tensor.untyped_storage()
                if (key := _key(storage)) and key not in self._sizes:
                    self._see(storage, key, (args, kwargs))
        self.history.append(self.held)
        if self.held > self._limit:
            raise LimitReached
        return out

    def _see(self, storage: torch.UntypedStorage, key: int, inputs: Any) -> None:
        """A storage that is none of the inputs' is new; theirs, not known yet, was there before."""
        given = {_key(t.untyped_storage()) for t in tree_leaves(inputs) if _is_dense(t)}
        self._sizes[key] = 0 if key in given else storage.nbytes()
        self.held += self._sizes[key]
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def _key(storage: torch.UntypedStorage) -> int:
    """Its address, 0 where it is empty; on the meta device, where there are none, that of the object itself."""
    if storage.device.type == "meta":
        return storage._cdata if storage.nbytes() else 0  # pyright: ignore[reportPrivateUsage]
    return storage.data_ptr()


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided
