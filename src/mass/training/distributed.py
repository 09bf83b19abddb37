"""The processes that torchrun started -> one run: the share of each, sums over all, agreement. Only this module knows
torch.distributed.

A process that was started alone is a group of one, and torch.distributed is not touched. Else the environment says who
this one is: RANK of WORLD_SIZE, and LOCAL_RANK among those of its machine, whose number is that of its GPU. Tensors on
a GPU are summed by NCCL, all else goes over gloo.

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
"""How long one process waits for the others: their shares of a step may take them longer by this much."""


class LostProcess(RunError):
    """Another process of the run ended, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. Each method but `portion` is to be called by all of them alike."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run folder and speaks to the user."""
        return self.rank == 0

    def portion(self, count: int, stack: int) -> list[range]:
        """The numbers below `count` that this process takes, in stacks of at most `stack`.

        Shares are contiguous and in the order of the ranks. They are made of the stacks that a process alone would cut
        where those can be dealt out evenly; else of single numbers, and then differ by one number at most.
        """
        unit = stack if -(-count // stack) % self.size == 0 else 1
        units = -(-count // unit)
        start, end = (min(count, units * rank // self.size * unit) for rank in (self.rank, self.rank + 1))
        return [range(at, min(at + stack, end)) for at in range(start, end, stack)]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place: one all-reduce. Raises LostProcess."""
        if self.size > 1:
            import torch.distributed as dist

            with self._reaching_all():
                dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The small value of each process, in their order. Raises LostProcess."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[T | None] = [None] * self.size
        with self._reaching_all():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """The value that the first process has; tensors in it should be on the CPU. Raises LostProcess."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value if self.first else None]
        with self._reaching_all():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """What fails with a MassError in the block of one process fails in all of them, with what that one has to say.

        They wait for each other at the end of the block.
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
        """Raises RunError where `digest` is not the same in all processes."""
        found = self.gather(digest)
        if other := [rank for rank, one in enumerate(found) if one != found[0]]:
            raise RunError(
                f"{what} of process {other[0]} differ from those of process 0; expected the same bits in each; go on "
                "with --resume, and where it comes again use machines and builds of torch of one kind"
            )

    @contextmanager
    def _reaching_all(self) -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LostProcess(
                f"process {self.rank} of {self.size} ends because another has ended or cannot be reached "
                f"({reason[:120]}); see what the other said; --resume goes on from the last checkpoint"
            ) from error


def at_start() -> Ranks:
    """What the environment says, before the processes have met: this one's rank, and how many there are."""
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if _launched() else Ranks()


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process tells the user what happened: the first does. That a process was lost the second says too,
    as the first may be the lost one."""
    return at_start().rank <= (1 if isinstance(error, LostProcess) else 0)


@contextmanager
def joined(device: str) -> Generator[tuple[Ranks, str], None, None]:
    """The processes of this run, met, for the length of the block; and the device that this one is to use.

    Args:
        device: as `ModelConfig.device` has it.

    Raises:
        ConfigError: the processes do not meet, or there are fewer GPUs than processes.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():  # by the caller, whose group it is
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
    dist.destroy_process_group()  # not after an error: NCCL would wait for the others


@contextmanager
def _ended_by_torchrun(ranks: Ranks) -> Generator[None, None, None]:
    """Within the block, SIGTERM raises LostProcess: torchrun sends it to the others when one has ended."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        raise LostProcess(
            f"process {ranks.rank} of {ranks.size} was told to end (SIGTERM), as torchrun does when another has ended; "
            "see what the other said; --resume goes on from the last checkpoint"
        )

    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _launched() -> bool:
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _own_device(name: str) -> str:
    """'auto' and 'cuda' as the GPU with this process's number on its machine."""
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
