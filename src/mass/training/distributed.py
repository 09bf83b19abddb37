"""Join the processes that torchrun started into one run: shares of the work, sums over processes, and agreement.

Only this module uses torch.distributed. A process that was started alone is a group of one, and does not touch it.
Otherwise the environment gives the rank: RANK of WORLD_SIZE, and LOCAL_RANK among the processes of one machine, which
is also the number of its GPU. Tensors on a GPU are summed by NCCL; everything else goes over gloo.

Source: data parallelism with an all-reduce of gradients (Li et al., arXiv 2006.15704); why torchrun alone is in
docs/adr/0007-torchrun-alone.md.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from mass.errors import ConfigError, MassError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=1)
"""Longest wait of one process for the others: their shares of a step may take this much longer."""


class LostProcess(RunError):
    """Another process of the run ended, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. All of them must call each method but `portion`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes the run folder and reports to the user."""
        return self.rank == 0

    def portion(self, count: int, stack: int) -> list[range]:
        """Return the numbers below `count` that this process takes, in stacks of at most `stack`.

        Shares are contiguous and in the order of the ranks. Where the stacks of a single process can be divided evenly,
        shares consist of those stacks, and the results equal the single process's more closely; otherwise shares differ
        by at most one number.
        """
        unit = stack if -(-count // stack) % self.size == 0 else 1
        units = -(-count // unit)
        start, end = (min(count, units * rank // self.size * unit) for rank in (self.rank, self.rank + 1))
        return [range(at, min(at + stack, end)) for at in range(start, end, stack)]

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place, by one all-reduce. Raises LostProcess."""
        if self.size > 1:
            import torch.distributed as dist

            with self._reaching_all():
                dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in the order of ranks; for small values. Raises LostProcess."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[T | None] = [None] * self.size
        with self._reaching_all():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """Return the value of the first process; tensors in it should be on the CPU. Raises LostProcess."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value if self.first else None]
        with self._reaching_all():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """Make a MassError in the block of one process fail all processes, with the message of the first that failed.

        Processes wait for each other at the end of the block. Without this, the others would wait in their next
        exchange for a process that has ended.
        """
        failed: MassError | None = None
        try:
            yield
        except MassError as error:
            failed = error
        said = self.gather(None if failed is None else str(failed))
        rank = next((rank for rank, text in enumerate(said) if text is not None), None)
        if rank is None:
            return
        if rank == self.rank and failed is not None:
            raise failed
        raise RunError(f"process {rank} of {self.size}: {said[rank]}")

    def agree(self, digest: str, what: str) -> None:
        """Check that all processes have the same `digest` of `what`. Raises RunError."""
        found = self.gather(digest)
        if other := [rank for rank, one in enumerate(found) if one != found[0]]:
            raise RunError(
                f"{what} of process {other[0]} differ from those of process 0; expected the same bits in each; go on "
                "with --resume, and where it comes again use machines and builds of torch of one kind"
            )

    @contextmanager
    def _reaching_all(self) -> Generator[None, None, None]:
        """Within the block, turn errors of torch.distributed into a LostProcess of one line."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LostProcess(
                f"process {self.rank} of {self.size} ends because another has ended or cannot be reached "
                f"({reason[:120]}); see what the other said; --resume goes on from the last checkpoint"
            ) from error


def at_start() -> Ranks:
    """Return this process's rank and the number of processes from the environment, before the group exists."""
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if _launched() else Ranks()


def speaks(error: BaseException | None = None) -> bool:
    """Return True where this process reports an error to the user.

    Normally only the first process does. A lost process is reported by the second as well, as the first may be the lost
    one.
    """
    return at_start().rank <= (1 if isinstance(error, LostProcess) else 0)


@contextmanager
def joined(device: str) -> Generator[tuple[Ranks, str], None, None]:
    """Join the processes of this run for the length of the block; yields them and the device of this process.

    Args:
        device: the setting `ModelConfig.device`.

    Raises:
        ConfigError: the processes cannot reach each other, or there are fewer GPUs than processes.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():  # by the caller, who also ends the group
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
        return
    if not _launched():
        yield Ranks(), device
        return
    own = _own_device(device)
    backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
    size = os.environ["WORLD_SIZE"]
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the {size} processes of this run did not meet ({reason[:200]}); start them with "
            f"torchrun --standalone --nproc_per_node {size} -m mass train ..."
        ) from error
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with _ended_by_torchrun(ranks):
        yield ranks, own
    dist.destroy_process_group()  # skipped after an error, where NCCL would wait for the others


@contextmanager
def _ended_by_torchrun(ranks: Ranks) -> Generator[None, None, None]:
    """Within the block, raise LostProcess on SIGTERM, which torchrun sends to all others when one process has ended."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        raise LostProcess(
            f"process {ranks.rank} of {ranks.size} was told to end (SIGTERM), as torchrun does when another has ended; "
            "see what the other said; --resume goes on from the last checkpoint"
        )

    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _launched() -> bool:
    """Return True in one of several processes that torchrun started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _own_device(name: str) -> str:
    """Resolve 'auto' and 'cuda' to the GPU whose number is this process's on its machine. Raises ConfigError."""
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise ConfigError(
            f"model.device is {name!r} for several processes; expected auto, cuda or cpu: each takes the GPU of its "
            "own number"
        )
    number, found = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
    if number >= found:
        raise ConfigError(
            f"{found} GPUs for at least {number + 1} processes on this machine; expected one each; lower "
            "--nproc_per_node, or set model.device to cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
