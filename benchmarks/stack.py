"""A stack of tasks in one inner loop against a loop over the tasks -> time of a meta-gradient, and equality of the two.

    OMP_NUM_THREADS=1 python benchmarks/stack.py --out results/stack

A point is B tasks with m practice examples of L tokens each. `loop` adapts one task after the other; `n` passes n rows
of the whole stack at a time, each row with the adapter of its task, as `mass.adaptation.batch` does. One meta-gradient
is an adaptation and its backward from random cotangents to the weights, the start and the rates. The routes of a point
take turns in one process; each is compared with the loop of its own round. Passes over --max_tokens are not run, and
said.

Writes stack.json, stack.md and stack.png; run again with the same --out it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from research.models import TINY
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mass.adaptation.batch import Practice
from mass.cli.allocator import restart_with_kept_memory
from mass.config import LoraConfig, ModelConfig
from mass.inner import SGD, adapt
from mass.lm import LM, load_lm
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.runs.folder import replace_text
from mass.types import Batch, Params

Run = Callable[[], list[Tensor]]
"""One meta-gradient: cotangents of the weights, the start and the rates, the loop's in the stack's shapes."""
STACKED: dict[str, Any] = {"stacked": True} if "stacked" in inspect.signature(adapt).parameters else {}


@dataclass(frozen=True)
class Point:
    model: str
    tasks: int
    examples: int
    tokens: int
    """Of a row."""
    steps: int

    @property
    def rows(self) -> int:
        return self.tasks * self.examples


def small_llama(tokenizer: Any, width: int, layers: int, vocabulary: int, device: str, dtype: torch.dtype) -> LM:
    """A Llama at random weights, made on the device."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    return LM(model, tokenizer, f"llama {width}x{layers}", PLAIN, LoraSites(model, LoraConfig()))


def load(name: str, device: str, dtype: Literal["float32", "bfloat16", "float64"] = "float32") -> LM:
    """`tiny`, or `WIDTHxLAYERS` of a Llama at random weights."""
    tiny = load_lm(ModelConfig(name=str(TINY), device=device, dtype=dtype), LoraConfig())
    if name == "tiny":
        return tiny
    width, layers = (int(part) for part in name.split("x"))
    return small_llama(tiny.tokenizer, width, layers, 4096, device, getattr(torch, dtype))


def random_practice(lm: LM, point: Point, seed: int = 0) -> Practice:
    """Rows of equal length, whose second half counts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, lm.model.config.vocab_size, (point.rows, point.tokens), generator=generator).to(lm.device)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    counted[:, point.tokens // 2 :] = True
    rows = torch.arange(point.rows, device=lm.device)
    batch = Batch(ids, torch.ones_like(ids), counted)
    return Practice(lm, batch, rows // point.examples, rows % point.examples)


def random_stack(lm: LM, count: int, seed: int = 0) -> Params:
    """Adapters whose B is not zero, so that nothing in a pass is. Made on the device: there may be many of them."""
    generator = torch.Generator(lm.device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": lm.device, "dtype": lm.adapter_dtype}
    return {name: 0.02 * torch.randn(count, *shape, **options) for name, shape in shapes_of(lm.adapters).items()}


def shapes_of(sites: LoraSites) -> dict[str, tuple[int, int]]:
    rank = sites.config.r
    shapes: dict[str, tuple[int, int]] = {}
    for site in sites.sites:
        shapes[f"{site.name}.lora_A"] = (rank, site.in_features)
        shapes[f"{site.name}.lora_B"] = (site.out_features, rank)
    return shapes


@dataclass(frozen=True)
class Problem:
    """What all routes of a point share."""

    practice: Practice
    stack: Params
    weights: Tensor
    cotangents: Params
    steps: int


def problem_of(lm: LM, point: Point) -> Problem:
    stack = random_stack(lm, point.tasks)
    weights = torch.full((point.rows,), 1.0 / point.examples, device=lm.device, dtype=lm.adapter_dtype)
    return Problem(random_practice(lm, point), stack, weights, random_stack(lm, point.tasks, seed=1), point.steps)


def gradients(
    losses: Callable[[Params, Tensor | None], Tensor],
    start: Params,
    weights: Tensor,
    cotangents: Params,
    steps: int,
    **options: Any,
) -> list[Tensor]:
    """One meta-gradient, as the training loop asks for it: shared rates, differentiable too."""
    start = {name: t.detach().requires_grad_() for name, t in start.items()}
    rates = {name: torch.full((), 0.1, device=t.device, requires_grad=True) for name, t in start.items()}
    weights = weights.detach().requires_grad_()
    adapted = adapt(losses, start, weights, SGD(lr=rates), steps, **options)
    inputs = [weights, *start.values(), *rates.values()]
    return list(torch.autograd.grad(list(adapted.values()), inputs, [cotangents[name] for name in adapted]))


def stack_route(problem: Problem, size: int | None) -> Run:
    return lambda: gradients(
        problem.practice.losses,
        problem.stack,
        problem.weights,
        problem.cotangents,
        problem.steps,
        micro_batch=size,
        **STACKED,
    )


def loop_route(problem: Problem, tasks: int, examples: int) -> Run:
    """One adaptation for each task, with an adapter without a leading axis; the results put together as a stack's."""
    lm, batch = problem.practice.lm, problem.practice.batch

    def one(task: int) -> list[Tensor]:
        rows = slice(task * examples, (task + 1) * examples)
        mine = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.target_mask[rows])
        start = {name: t[task] for name, t in problem.stack.items()}
        cotangents = {name: t[task] for name, t in problem.cotangents.items()}

        def losses(params: Params, index: Tensor | None) -> Tensor:
            return lm.losses(mine if index is None else mine.select(index), params)

        return gradients(losses, start, problem.weights[rows], cotangents, problem.steps)

    def run() -> list[Tensor]:
        parts = list(zip(*(one(task) for task in range(tasks)), strict=True))
        tensors = len(problem.stack)
        starts, rates = parts[1 : 1 + tensors], parts[1 + tensors :]
        return [torch.cat(parts[0]), *map(torch.stack, starts), *(torch.stack(rate).sum(0) for rate in rates)]

    return run


def sizes_of(point: Point, max_tokens: int) -> list[int]:
    """Rows of a pass: about 64, 256, 1024, ... tokens, and the whole stack; within `max_tokens`, but one row always."""
    sizes = sorted({max(1, min(point.rows, 64 * 4**k // point.tokens)) for k in range(10)} | {point.rows})
    return [n for n in sizes if n == 1 or n * point.tokens <= max_tokens]


def seconds_of(run: Run, device: torch.device) -> float:
    """Of the processor on a CPU: with one thread that is the wall clock's time on an idle machine."""
    if device.type != "cuda":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def relative_error(mine: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm, largest of weights, start and rates taken tensor by tensor."""
    pairs = zip(mine, reference, strict=True)
    return max(float((a - b).double().norm() / b.double().norm().clamp_min(1e-300)) for a, b in pairs)


def measure(lm: LM, point: Point, max_tokens: int, rounds: int, budget_s: float) -> dict[str, Any]:
    """Times of all routes of a point, taking turns for `rounds` rounds; fewer, but 3, once `budget_s` has passed."""
    problem = problem_of(lm, point)
    routes: dict[str, Run] = {"loop": loop_route(problem, point.tasks, point.examples)}
    routes |= {str(n): stack_route(problem, n) for n in sizes_of(point, max_tokens)}
    reference = routes["loop"]()
    errors = {name: relative_error(run(), reference) for name, run in routes.items()}  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in routes}
    started = time.perf_counter()
    while len(times["loop"]) < rounds and (len(times["loop"]) < 3 or time.perf_counter() - started < budget_s):
        for name, run in routes.items():
            times[name].append(seconds_of(run, lm.device))
    found = {name: summary(values, times["loop"], point, errors[name]) for name, values in times.items()}
    left_out = [] if point.rows * point.tokens <= max_tokens else [f"{point.rows} rows in a pass"]
    return {**asdict(point), "rounds": len(times["loop"]), "routes": found, "not_run": left_out}


def summary(values: list[float], loop: list[float], point: Point, error: float) -> dict[str, float]:
    ratios = [a / b for a, b in zip(values, loop, strict=True)]
    return {
        "ms_per_task": round(1e3 * statistics.median(values) / point.tasks, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "error": error,
    }


def grid(args: argparse.Namespace, model: str) -> Iterator[Point]:
    """Leaves out the points whose loop over tasks passes more than --max_work tokens, all steps together."""
    for steps, tokens, examples, tasks in itertools.product(args.steps, args.tokens, args.examples, args.tasks):
        if tasks * examples * tokens * steps <= args.max_work:
            yield Point(model, tasks, examples, tokens, steps)


def known(out: Path) -> list[dict[str, Any]]:
    """The points that an earlier run into the same folder measured."""
    path = out / "stack.json"
    return json.loads(path.read_text())["points"] if path.is_file() else []


def is_point(found: dict[str, Any], point: Point) -> bool:
    return {key: found[key] for key in asdict(point)} == asdict(point)


def table(points: Sequence[dict[str, Any]]) -> str:
    """One line for each point: the loop, the whole stack, the fastest number of rows."""
    lines = [
        "| model | B | m | L | K | loop, ms per task | all rows at once / loop "
        "| fastest: rows (tokens) | / loop | error, worst tensor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in points:
        routes = {int(n): r for n, r in p["routes"].items() if n != "loop"}
        n, best = min(routes.items(), key=lambda item: item[1]["ratio"])
        whole = routes.get(p["tasks"] * p["examples"])
        error = max(r["error"] for r in routes.values())
        lines.append(
            f"| {p['model']} | {p['tasks']} | {p['examples']} | {p['tokens']} | {p['steps']} "
            f"| {p['routes']['loop']['ms_per_task']:.1f} | {spread(whole) if whole else 'not run'} "
            f"| {n} ({n * p['tokens']}) | {spread(best)} | {error:.0e} |"
        )
    return "\n".join(lines) + "\n"


def spread(route: dict[str, float]) -> str:
    return f"{route['ratio']:.2f} ({route['ratio_low']:.2f}-{route['ratio_high']:.2f})"


def by_tokens(points: Sequence[dict[str, Any]], model: str) -> str:
    """How far each number of tokens in a pass is from the fastest of its point: median and worst over points."""
    found: dict[int, list[float]] = {}
    for p in points:
        routes = {int(n): r["ratio"] for n, r in p["routes"].items() if n != "loop"}
        if p["model"] == model and len(routes) > 1:
            for n, ratio in routes.items():
                found.setdefault(bucket(n * p["tokens"]), []).append(ratio / min(routes.values()))
    lines = ["| tokens in a pass, about | points | over the fastest, median | worst |", "|---|---|---|---|"]
    lines += [f"| {t} | {len(r)} | {statistics.median(r):.2f} | {max(r):.2f} |" for t, r in sorted(found.items())]
    return "\n".join(lines) + "\n"


def bucket(tokens: int) -> int:
    """The power of two below."""
    return 1 << (tokens.bit_length() - 1)


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(p["model"] for p in points))
    figure, axes = plt.subplots(1, len(models), figsize=(6.2 * len(models), 4.4), sharey=True, squeeze=False)
    colours = plt.get_cmap("viridis")
    lengths = sorted({p["tokens"] for p in points})
    for axis, model in zip(axes[0], models, strict=True):
        for p in (p for p in points if p["model"] == model and p["tasks"] > 1):
            routes = sorted((int(n) * p["tokens"], r["ratio"]) for n, r in p["routes"].items() if n != "loop")
            colour = colours(lengths.index(p["tokens"]) / max(1, len(lengths) - 1))
            axis.plot(*zip(*routes, strict=True), color=colour, alpha=0.55, linewidth=1, marker=".", markersize=4)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="tokens in a pass", title=model)
        axis.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("time of a meta-gradient, relative to the loop over tasks")
    handles = [plt.Line2D([], [], color=colours(i / max(1, len(lengths) - 1))) for i in range(len(lengths))]
    axes[0][-1].legend(handles, [f"{n} tokens a row" for n in lengths], fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


def write(out: Path, points: list[dict[str, Any]], args: argparse.Namespace) -> None:
    about = {
        "device": device_name(args.device),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kept_memory": "MALLOC_MMAP_MAX_" in os.environ,
        "max_tokens": args.max_tokens,
    }
    replace_text(out / "stack.json", json.dumps({**about, "points": points}, indent=1) + "\n")
    parts = [table(points)]
    for model in dict.fromkeys(p["model"] for p in points):
        title = f"{model}: time by tokens in a pass, relative to the fastest of each point"
        parts.append(f"{title}\n\n{by_tokens(points, model)}")
    replace_text(out / "stack.md", "\n".join(parts))
    plot(points, out / "stack.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "256x4"], help="tiny, or WIDTHxLAYERS")
    parser.add_argument("--tasks", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--examples", nargs="+", type=int, default=[2, 6])
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--max_tokens", type=int, default=16384, help="largest pass")
    parser.add_argument("--max_work", type=int, default=1 << 30, help="leave out points of more tokens x steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--point_seconds", type=float, default=5.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--out", type=Path, default=Path("results/stack"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    points = known(args.out)
    for model in args.models:
        lm = load(model, args.device, args.dtype)
        for point in grid(args, model):
            if any(is_point(found, point) for found in points):
                continue
            points.append(measure(lm, point, args.max_tokens, args.rounds, args.point_seconds))
            print(table(points[-1:]).splitlines()[-1], flush=True)
            write(args.out, points, args)


if __name__ == "__main__":
    restart_with_kept_memory()
    main()
