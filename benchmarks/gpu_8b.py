"""Llama-3.1-8B's architecture at random weights in bf16 -> what fits the card, its speed, and stacks against loops.

    python benchmarks/gpu_8b.py --out results/gpu --time_limit_s 540     # again until it says that all is done
    python benchmarks/gpu_8b.py --out results/small --small              # the same script in small, on a CPU

LoRA of rank 16 on all linear layers. A meta-gradient is an adaptation and its backward from random cotangents to the
weights, the start and the rates; the outer loss is not part of it. Three parts, each a list of points:

fit    the largest m for each row length and K, by doubling and bisection, with `memory_gb` the card's free memory; the
       engine chooses micro-batches and layer checkpointing. What does not fit is recorded with the error.
time   seconds of a meta-gradient against its arithmetic: K first-order and K second-order passes, counted by formula
       and by torch's FLOP counter on models of one and two layers without data. TFLOP/s and share of the peak.
stack  B tasks side by side against one after the other, on the tiny model and one like Llama-3.2-1B.

Writes gpu.json after each point and gpu.md; points found there are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gpu_flops
import stack
import torch
from research.models import TINY
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mass.config import LoraConfig
from mass.errors import ConfigError
from mass.lm import LM
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.runs.folder import replace_text
from mass.types import Params

RANK = 16
MOST_TOKENS = 32768
"""Of a pass of a stack."""
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16, from the data sheets."""
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Plan:
    """The points."""

    config: LlamaConfig
    dtype: torch.dtype
    lengths: tuple[int, ...]
    most_examples: int
    steps: tuple[int, ...]
    timed: tuple[tuple[int, int, int], ...]
    """(m, row length, K)."""
    stacks: dict[str, LlamaConfig | None]
    """Name -> architecture; None: the tiny model."""
    stack_tasks: tuple[int, ...]
    stack_lengths: tuple[int, ...]
    stack_examples: int
    rounds: int


def llama(shrink: int = 1, **changes: int) -> LlamaConfig:
    """Llama-3.1-8B, each width divided by `shrink`, the layers by half of it."""
    return LlamaConfig(
        **{
            "hidden_size": 4096 // shrink,
            "intermediate_size": 14336 // shrink,
            "num_hidden_layers": max(2, min(32, 64 // shrink)),
            "num_attention_heads": max(2, 32 // shrink),
            "num_key_value_heads": max(1, 8 // shrink),
            "vocab_size": 128256 // shrink,
            **changes,
        },
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def plan_of(args: argparse.Namespace) -> Plan:
    if not args.small:
        timed = ((6, 512, 1), (6, 512, 2), (6, 2048, 1), (24, 512, 1))
        stacks = {"tiny": None, "1B": llama(**LLAMA_1B)}
        lengths, bf16 = (256, 512, 1024, 2048, 4096, 8192), torch.bfloat16
        return Plan(llama(), bf16, lengths, 24, (1, 8), timed, stacks, (1, 4, 16, 64), (64, 256), 6, 5)
    small = llama(args.shrink)
    timed, stacks = ((2, 32, 1), (2, 32, 2)), {"tiny": None, "shrunk": small}
    return Plan(small, torch.float32, (16, 32), 4, (1, 2), timed, stacks, (1, 4), (16,), 2, 1)


def build(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> LM:
    """Random weights, made on the device: no copy on the CPU, no download."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    sites = LoraSites(model, LoraConfig(r=RANK, lora_alpha=2.0 * RANK))
    return LM(model, AutoTokenizer.from_pretrained(TINY), "random Llama", PLAIN, sites)


def meta_gradient(lm: LM, examples: int, tokens: int, steps: int, memory_gb: float) -> list[Tensor]:
    """One task. Raises ConfigError or OutOfMemoryError where it does not fit."""
    practice = stack.random_practice(lm, stack.Point("", 1, examples, tokens, steps))

    def losses(params: Params, index: Tensor | None) -> Tensor:
        batch = practice.batch if index is None else practice.batch.select(index)
        return lm.losses(batch, params)

    weights = torch.full((examples,), 1 / examples, device=lm.device, dtype=lm.adapter_dtype)
    start, cotangents = ({n: t[0] for n, t in stack.random_stack(lm, 1, seed).items()} for seed in (0, 1))
    return stack.gradients(losses, start, weights, cotangents, steps, memory_gb=memory_gb)


class Device:
    """Clock and memory of the device."""

    def __init__(self, name: str, memory_gb: float | None) -> None:
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"
        self.memory_gb = memory_gb
        self.name = torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    def budget_gb(self) -> float:
        """What may be used beside what is used now; a twentieth of the card stays for the allocator's gaps."""
        if self.memory_gb is not None or not self.cuda:
            return self.memory_gb or 8.0
        free, total = torch.cuda.mem_get_info(self.device)
        return (free - 0.05 * total) / 1e9

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def measure(self, run: Callable[[], object]) -> dict[str, Any]:
        """Seconds and peak memory above what was held, or why it did not run."""
        self.clean()
        held = torch.cuda.memory_allocated(self.device) if self.cuda else 0
        try:
            seconds = stack.seconds_of(run, self.device)  # type: ignore[arg-type]
        except (ConfigError, *OUT_OF_MEMORY) as error:
            kind = "memory_gb" if isinstance(error, ConfigError) else "out of memory"
            return {"fits": False, "why": kind, "error": str(error).splitlines()[0][:200]}
        peak = (torch.cuda.max_memory_allocated(self.device) - held) / 1e9 if self.cuda else None
        return {"fits": True, "seconds": seconds, "peak_gb": peak}


# ------------------------------------------------------------------------------------------------ points


Points = dict[str, dict[str, Any]]


class Book:
    """The points measured so far, in a file; and the time that is left."""

    def __init__(self, out: Path, limit_s: float) -> None:
        self.path, self.out = out / "gpu.json", out
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {"points": {}}
        self.points: Points = self.data["points"]
        self._end = time.monotonic() + limit_s
        self._longest = 0.0

    def point(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The point as it is in the file, else measured now. Raises TimeoutError when the time does not suffice."""
        if key not in self.points:
            if time.monotonic() + self._longest > self._end:
                raise TimeoutError
            started = time.monotonic()
            self.points[key] = run()
            self._longest = max(self._longest, time.monotonic() - started)
            replace_text(self.path, json.dumps(self.data, indent=1) + "\n")
            print(key, {k: v for k, v in self.points[key].items() if k != "routes"}, flush=True)
        return self.points[key]


def fit_points(book: Book, lm: LM, device: Device, plan: Plan) -> None:
    for steps, tokens in itertools.product(plan.steps, plan.lengths):
        fits = partial(fit_point, book, lm, device, tokens, steps)
        book.data.setdefault("largest", {})[f"L={tokens} K={steps}"] = largest(fits, plan.most_examples)


def fit_point(book: Book, lm: LM, device: Device, tokens: int, steps: int, m: int) -> bool:
    def run() -> object:
        return meta_gradient(lm, m, tokens, steps, device.budget_gb())

    return book.point(f"fit m={m} L={tokens} K={steps}", partial(device.measure, run))["fits"]


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest m in 1..most that fits, 0 for none: `most`, else doubling from 1, then bisection."""
    if fits(most):
        return most
    good, bad = 0, 1
    while bad < most and fits(bad):
        good, bad = bad, min(most, 2 * bad)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def time_points(book: Book, lm: LM, device: Device, plan: Plan, peak_tflops: float | None) -> None:
    for shape in plan.timed:
        key = "time m={} L={} K={}".format(*shape)
        book.point(key, partial(time_point, lm, device, plan, shape, peak_tflops))


def time_point(
    lm: LM, device: Device, plan: Plan, shape: tuple[int, int, int], peak_tflops: float | None
) -> dict[str, Any]:
    """The first run, which also warms up, is not among the times."""
    flops = {
        "formula": gpu_flops.formula_flops(plan.config, RANK, *shape),
        "counter": gpu_flops.counted_flops(plan.config, RANK, *shape),
    }
    runs: list[dict[str, Any]] = []
    for _ in range(1 + plan.rounds):
        runs.append(device.measure(lambda: meta_gradient(lm, *shape, device.budget_gb())))
        if not runs[-1]["fits"]:
            return {**runs[-1], **flops}
    seconds = sorted(run["seconds"] for run in runs[1:])
    tflops = flops["formula"] / statistics.median(seconds) / 1e12
    share = None if peak_tflops is None else tflops / peak_tflops
    return {**runs[-1], **flops, "all_seconds": seconds, "tflops": tflops, "share_of_peak": share}


def stack_points(book: Book, device: Device, plan: Plan) -> None:
    for name, config in plan.stacks.items():
        load = cache(partial(stack_model, config, plan.dtype, device))  # not before a point needs it
        for tokens, tasks in itertools.product(plan.stack_lengths, plan.stack_tasks):
            point = stack.Point(name, tasks, plan.stack_examples, tokens, 1)
            book.point(f"stack {name} B={tasks} L={tokens}", partial(stack_point, load, point, device, plan.rounds))


def stack_model(config: LlamaConfig | None, dtype: torch.dtype, device: Device) -> LM:
    return stack.load("tiny", str(device.device)) if config is None else build(config, dtype, device.device)


def stack_point(load: Callable[[], LM], point: stack.Point, device: Device, rounds: int) -> dict[str, Any]:
    device.clean()
    try:
        return stack.measure(load(), point, MOST_TOKENS, rounds, budget_s=20.0)
    except OUT_OF_MEMORY as error:
        return {"fits": False, "error": str(error).splitlines()[0][:200]}


# ------------------------------------------------------------------------------------------------ table


def tables(data: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{data['device']}, {data['parameters'] / 1e9:.2f} B parameters\n",
            *fit_table(data),
            *time_table(data),
            *stack_table(data),
        ]
    )


def fit_table(data: dict[str, Any]) -> Iterator[str]:
    yield "| row length, K | largest m that fits | seconds | peak GB |\n|---|---|---|---|"
    for key, m in data.get("largest", {}).items():
        tokens, steps = key.split()
        found = data["points"].get(f"fit m={m} {tokens} {steps}", {})
        yield f"| {key} | {m} | {number(found.get('seconds'))} | {number(found.get('peak_gb'))} |"
    yield ""


def time_table(data: dict[str, Any]) -> Iterator[str]:
    yield "| point | seconds (range) | TFLOP by formula | by counter | TFLOP/s | share of peak |"
    yield "|---|---|---|---|---|---|"
    for key, p in data["points"].items():
        if key.startswith("time") and p["fits"]:
            low, middle, high = min(p["all_seconds"]), statistics.median(p["all_seconds"]), max(p["all_seconds"])
            flops = f"{p['formula'] / 1e12:.3g} | {p['counter'] / 1e12:.3g}"
            yield (
                f"| {key[5:]} | {middle:.3g} ({low:.3g}-{high:.3g}) | {flops} | {p['tflops']:.3g} "
                f"| {number(p['share_of_peak'])} |"
            )
    yield ""


def stack_table(data: dict[str, Any]) -> Iterator[str]:
    found = [p for key, p in data["points"].items() if key.startswith("stack") and "routes" in p]
    if found:
        yield stack.table(found)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--parts", nargs="+", default=["fit", "time", "stack"], choices=["fit", "time", "stack"])
    parser.add_argument("--time_limit_s", type=float, default=math.inf, help="stop before a point that may not fit it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory_gb", type=float, help="budget; otherwise what the card has free (8 on a CPU)")
    parser.add_argument("--peak_tflops", type=float, help="of the device in bf16; known for H100, H200 and A100")
    parser.add_argument("--small", action="store_true", help="the same architecture in small, few points, float32")
    parser.add_argument("--shrink", type=int, default=8, help="with --small: divide the widths by this")
    args = parser.parse_args()
    if not args.small and not args.device.startswith("cuda"):
        parser.error("no CUDA device: give --small to try the script on a CPU")
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    book, device, plan = Book(args.out, args.time_limit_s), Device(args.device, args.memory_gb), plan_of(args)
    peak = args.peak_tflops or next((v for name, v in PEAK_TFLOPS.items() if name in device.name), None)
    book.data |= {"device": device.name, "torch": torch.__version__, "config": plan.config.to_dict()}
    done = True
    try:
        if {"fit", "time"} & set(args.parts):
            lm = build(plan.config, plan.dtype, device.device)
            book.data["parameters"] = sum(p.numel() for p in lm.model.parameters())
            if "time" in args.parts:
                time_points(book, lm, device, plan, peak)
            if "fit" in args.parts:
                fit_points(book, lm, device, plan)
            del lm
        if "stack" in args.parts:
            stack_points(book, device, plan)
    except TimeoutError:
        done = False
    replace_text(book.path, json.dumps(book.data, indent=1) + "\n")
    replace_text(args.out / "gpu.md", tables(book.data) + "\n")
    print("all points are done" if done else "time limit reached: run again with the same --out to go on")


if __name__ == "__main__":
    main()
