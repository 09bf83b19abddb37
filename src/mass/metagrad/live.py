"""Measure the bytes of the tensors that a block of code makes: those alive now, and the most alive at one time.

On a CPU every operation is seen when it is dispatched, and a storage counts from the operation that made it until it
is freed; temporaries within one kernel are not seen. The meta device, whose tensors have sizes and no data, is measured
in the same way: so a model too large for this machine can be measured. On CUDA the allocator's own statistics are used;
its peak is reset.

A limit ends the block with `LimitReached` when more bytes are alive: on a CPU at the operation that exceeds it, on CUDA
when the device has no memory left, or at the end of the block.
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
    """More bytes are alive than the limit allows. Not an `Exception`, which the losses might catch and ignore."""


class LiveMemory:
    """Context manager that counts bytes of tensors above what was alive when the block began."""

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
        """Bytes alive now."""
        if self._tracker is not None:
            return self._tracker.held
        return torch.cuda.memory_allocated(self._cuda) - self._before

    @property
    def history(self) -> Sequence[int]:
        """The value of `held` after each operation of the block; empty on CUDA, where operations are not seen."""
        return self._tracker.history if self._tracker is not None else ()

    @property
    def peak(self) -> int:
        """The most bytes that were alive at one time."""
        if self._tracker is not None:
            return self._tracker.peak
        return torch.cuda.max_memory_allocated(self._cuda) - self._before


class _Tracker(TorchDispatchMode):
    """Follows each storage from the operation that makes it until it is freed."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.history = list[int]()
        self._limit = limit
        self._sizes: dict[int, int] = {}
        """Bytes of each live storage that was seen; 0 for one that existed before the block."""

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
        """Count a storage seen for the first time: new unless it is an input's, which existed before the block."""
        given = {_key(t.untyped_storage()) for t in tree_leaves(inputs) if _is_dense(t)}
        self._sizes[key] = 0 if key in given else storage.nbytes()
        self.held += self._sizes[key]
        self.peak = max(self.peak, self.held)
        # A storage frees itself without an operation, so only a finalizer can see the moment.
        weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def _key(storage: torch.UntypedStorage) -> int:
    """Return a storage's address, 0 where it is empty; on the meta device, which has no data, that of the object."""
    if storage.device.type == "meta":
        return storage._cdata if storage.nbytes() else 0  # pyright: ignore[reportPrivateUsage]
    return storage.data_ptr()


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided
