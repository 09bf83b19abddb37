"""A block of code -> the most bytes of tensors that were alive at one time within it, the same at each run."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts the storages that operations make, from there until they are freed. Those made before count nothing.

    What it does not see: memory within one kernel, and what is never an operation's result. Cyclic garbage counts as
    alive: the collector does not run within the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = set[int]()
        self._collecting = False

    def __enter__(self) -> Peak:
        gc.collect()
        self._collecting = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._collecting:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor, new=True)
        return result

    def _note(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if new else 0
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
