"""One exact meta-gradient of a real model: peak memory beyond its weights, and time against the first-order one.

    python benchmarks/real_metagrad.py --model FOLDER --out results/real_metagrad  # Qwen 0.5 B: some minutes a route

m rows of random tokens, half of each counted, K inner steps of SGD with a learned rate for each tensor, and the same
number of tokens as outer loss. A route is a process of its own: the model is loaded, the high-water mark of the process
is set back, and `--rounds` are timed by the process's own time, which other processes change little. The peak is the
mark less the weights and what the process held before it loaded them; what PyTorch's operations and the allocator need
beside tensors, and what loading left in its arenas, is in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from forecast import high_water_mark, resident

from mass.config import LoraConfig, ModelConfig
from mass.inner import SGD, adapt
from mass.lm import LM, load_lm
from mass.runs.folder import replace_text
from mass.types import Batch

ROUTES = ("exact", "first_order")


def batch_of(lm: LM, rows: int, tokens: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(lm.vocabulary, (rows, tokens), generator=generator).tolist()
    return lm.batch([(row[: tokens // 2], row[tokens // 2 :]) for row in ids])


def meta_gradient(lm: LM, route: str, args: argparse.Namespace, tokens: int) -> float:
    """Seconds, the outer loss and its gradient included."""
    practice, outer = batch_of(lm, args.examples, tokens, 0), batch_of(lm, 1, tokens, 1)
    start = {name: t.requires_grad_() for name, t in lm.init_adapter(0).items()}
    weights = torch.full((args.examples,), 1 / args.examples, requires_grad=True)
    rates = {name: torch.tensor(0.1, requires_grad=True) for name in start}
    began = time.process_time()
    adapted = adapt(
        lambda params, index: lm.losses(practice.select(index), params), start, weights, SGD(rates), args.steps,
        args.micro_batch, mode=route, memory_gb=args.memory_gb if args.micro_batch is None else None,
    )  # fmt: skip
    lm.losses(outer, adapted).sum().backward()
    assert weights.grad is not None
    assert bool(weights.grad.isfinite().all())
    return time.process_time() - began


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own does."""
    torch.set_num_threads(args.threads)
    before = resident()
    lm = load_lm(ModelConfig(name=args.model, dtype=args.dtype), LoraConfig(r=args.rank, lora_alpha=2.0 * args.rank))
    weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in lm.model.parameters()}.values())
    Path("/proc/self/clear_refs").write_text("5")  # the mark is now what is resident
    left = resident() - before - weights
    seconds = [meta_gradient(lm, args.route, args, args.tokens) for _ in range(args.rounds)]
    peak = high_water_mark() - before - weights
    return {"seconds": seconds, "peak_gb": peak / 1e9, "left_by_loading_gb": left / 1e9, "weights_gb": weights / 1e9}


def report(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| route | peak beyond the weights, GB | seconds (range) |", "|---|---|---|"]
    for route, one in found.items():
        times = sorted(one["seconds"])
        spread = f"{statistics.median(times):.1f} ({times[0]:.1f}-{times[-1]:.1f})"
        lines.append(f"| {route} | {one['peak_gb']:.2f} | {spread} |")
    pairs = zip(*(found[route]["seconds"] for route in ROUTES), strict=True)
    ratios = sorted(exact / first for exact, first in pairs)
    lines.append(
        f"\nexact / first order: {statistics.median(ratios):.2f} times the time ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--examples", type=int, default=6, help="m")
    parser.add_argument("--tokens", type=int, default=256, help="of a row")
    parser.add_argument("--steps", type=int, default=2, help="K")
    parser.add_argument("--r", dest="rank", type=int, default=16)
    parser.add_argument("--memory_gb", type=float, default=4.0, help="the engine chooses micro-batches for it")
    parser.add_argument("--micro_batch", type=int, help="instead of a budget")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder")
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.route:
        print(json.dumps(measure(args)))
        return
    found: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        done = subprocess.run([sys.executable, *sys.argv, "--route", route], stdout=subprocess.PIPE, check=True)
        found[route] = json.loads(done.stdout.splitlines()[-1])
    print(report(found))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(args).items() if name not in ("out", "route", "model")}
        replace_text(args.out / "real_metagrad.json", json.dumps({"settings": settings, **found}, indent=1) + "\n")
        replace_text(args.out / "real_metagrad.md", report(found) + "\n")


if __name__ == "__main__":
    main()
