"""A route at a setting -> peak memory, error, operations, and repeats timed on command; the work of one process.

Memory is read with an allocator that gives every large tensor back to the kernel at once, so that the resident set is
that of live tensors; time with one that keeps what it has, so that page faults are not timed. Two numbers:

live_bytes: peak of the bytes that tensors hold, above those held before (metagrad_live; on CUDA
    `max_memory_allocated`; for JAX what XLA plans, from the compiled program). Exact and repeatable: the one to quote.
resident_bytes: peak resident set above the one before (VmHWM of /proc, reset before); with libraries' own buffers.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from metagrad_live import allocated_bytes, flops, live_bytes
from metagrad_problem import Gradients, MetaGradient, Problem, Setting, Unavailable, errors, make_problem
from metagrad_routes import ROUTES, Route

MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Every allocation of 64 KiB or more is a mapping of its own."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt


@dataclass(frozen=True)
class Point:
    """What one process measures."""

    route: str
    setting: Setting
    threads: int
    reference: str
    """A file of gradients, written by `write_reference`; empty: no error is measured."""
    budget_bytes: float | None

    @staticmethod
    def read(text: str) -> Point:
        raw = json.loads(text)
        return Point(**{**raw, "setting": Setting(**raw["setting"])})


def serve(point: Point, commands: TextIO, replies: TextIO) -> None:
    """Measure, reply, then time one run for each line of `commands`: "repeat", or "cold" to warm up again first and
    give all memory back after. One line of JSON each; {"unavailable": reason} is the only one where it cannot run."""
    _use_threads(point.threads)
    try:
        measured, run = measure(point)
    except Unavailable as reason:
        _reply(replies, {"unavailable": str(reason)})
        return
    _keep_memory()
    if ROUTES[point.route].torch and not ROUTES[point.route].compiled:
        measured["flops"] = flops(run)  # which warms up as well
    else:
        run()
    _reply(replies, measured)
    for command in commands:
        if command.strip() == "cold":
            run()
        _reply(replies, {"seconds": _timed(run, point.setting)})
        if command.strip() == "cold":
            _release()


def measure(point: Point) -> tuple[dict[str, Any], MetaGradient]:
    """Memory and errors, and the route ready to run. Raises Unavailable."""
    route = ROUTES[point.route]
    _load_code(route, point)
    problem = make_problem(point.setting, prepared=route.prepared)
    run = _prepared(route, problem, point.budget_bytes)
    found, memory = _peak_memory(run, point.setting)
    measured: dict[str, Any] = {**memory, "forward_flops": flops(ROUTES["one forward"].prepare(problem, None))}
    if route.torch and point.setting.device == "cpu":
        measured["live_bytes"] = (allocated_bytes if route.compiled else live_bytes)(run)
    elif not route.torch:
        measured |= {"live_bytes": getattr(run, "temporary_bytes", None), "compile_s": getattr(run, "compile_s", None)}
    if point.reference and route.part != "unit":
        measured |= errors(found, torch.load(point.reference))
    return measured, run


def _prepared(route: Route, problem: Problem, budget_bytes: float | None) -> MetaGradient:
    """Raises Unavailable also where a peer fails in code of its own: what no longer runs is said."""
    try:
        return route.prepare(problem, budget_bytes)
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(_short(error)) from error


def _load_code(route: Route, point: Point) -> None:
    """Run a tiny problem first, so that what libraries load on first use is not counted as memory of the point."""
    tiny = replace(point.setting, steps=2, examples=2, length=8, width=32, layers=1)
    try:
        _prepared(route, make_problem(tiny, prepared=route.prepared), None if point.budget_bytes is None else 1e9)()
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(_short(error)) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _peak_memory(run: MetaGradient, setting: Setting) -> tuple[Gradients, dict[str, float]]:
    _release()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = run()
        torch.cuda.synchronize()
        return found, {"live_bytes": torch.cuda.max_memory_allocated() - before}
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    found = run()
    return found, {"resident_bytes": _status("VmHWM") - before}


def _timed(run: MetaGradient, setting: Setting) -> float:
    gc.collect()
    _synchronise(setting)
    began = time.perf_counter()
    run()
    _synchronise(setting)
    return time.perf_counter() - began


def _synchronise(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _use_threads(threads: int) -> None:
    """No route has more than `threads` cores, whatever its own settings are."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-threads:])
    torch.set_num_threads(threads)


def _glibc() -> Any:
    return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None


def _keep_memory() -> None:
    """From here on the allocator gives nothing back to the kernel."""
    if (libc := _glibc()) is not None:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            libc.mallopt(parameter, value)


def _release() -> None:
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reply(replies: TextIO, message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def write_reference(setting: Setting, file: Path, threads: int) -> dict[str, Any]:
    """The meta-gradient by the unroll in float64, into a file; and the unroll's memory at 1 and 2 steps, in bytes.

    Each step is recomputed, so that the reference is smaller than what it is compared with; the gradients are those of
    the whole graph.
    """
    from peers import plain

    _use_threads(threads)
    found = plain.prepare(make_problem(setting, torch.float64), checkpointed=True)()
    torch.save({name: gradient.cpu() for name, gradient in found.items()}, file)
    small = [make_problem(replace(setting, steps=steps, device="cpu")) for steps in (1, 2)]
    return {"unroll_bytes": [live_bytes(plain.prepare(problem)) for problem in small]}
