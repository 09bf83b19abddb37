"""Precision of base, adapter and arithmetic -> error of the meta-gradient against the same model in float64.

    OMP_NUM_THREADS=1 python benchmarks/precision.py --out results/precision

Each way computes the gradient of the target's loss after K inner steps with respect to the weights of the examples, to
theta and to the learning rates. Two references in float64 throughout: `same weights`, whose base and adapter were
rounded to the precision of the way, so that only the arithmetic differs; and `given weights`, before any rounding.
Relative error (norm of the difference over the norm) and cosine, median and range over seeds of model and data.

Writes precision.json and precision.md.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from research.models import TINY
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mass import tasks
from mass.cli.allocator import restart_with_kept_memory
from mass.config import LoraConfig, ModelConfig
from mass.inner import SGD, AdamW, Optimizer, adapt
from mass.lm import LM, load_lm
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.runs.folder import replace_text
from mass.types import Batch, Params

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
QUANTITIES = ("weights", "theta", "rates")
RATES = {"sgd": 0.2, "adamw": 1e-3, "adamw, eps_root 1e-6": 1e-3}
"""Update rules and learning rates at which curvature counts; the row `first order` says how much."""


@dataclass(frozen=True)
class Way:
    """One way to compute a meta-gradient."""

    name: str
    base: torch.dtype
    adapter: torch.dtype
    mode: str = "exact"
    autocast: bool = False

    @property
    def weights_seen(self) -> torch.dtype:
        """The precision that the base's weights have where they are multiplied."""
        return BF16 if self.autocast else self.base


WAYS = (
    Way("float32", FP32, FP32),
    Way("float32, finite difference", FP32, FP32, "finite_difference"),
    Way("float32, first order", FP32, FP32, "first_order"),
    Way("bf16 base, float32 adapter", BF16, FP32),
    Way("bf16 base, bf16 adapter", BF16, BF16),
    Way("float32 base, autocast bf16", FP32, FP32, autocast=True),
    Way("bf16 base, finite difference", BF16, FP32, "finite_difference"),
    Way("bf16 base, first order", BF16, FP32, "first_order"),
)
HAS_MODES = "mode" in inspect.signature(adapt).parameters


class WideNorm(torch.nn.Module):
    """RMSNorm in the precision of its input; that of transformers goes through float32, also in a float64 model."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.weight, self.eps = like.weight, like.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def given_model(name: str, seed: int) -> tuple[Any, Any]:
    """The model in float32 as it is given, and a tokenizer: the tiny one, or a Llama at random weights."""
    tiny = load_lm(ModelConfig(name=str(TINY), device="cpu"), LoraConfig())
    if name == "tiny":
        model = copy.deepcopy(tiny.model)
        for module in model.modules():
            module._forward_hooks.clear()  # the copy's adapter sites are made anew
        return model, tiny.tokenizer
    width, layers = (int(part) for part in name.split("x"))
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        initializer_range=width**-0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config), tiny.tokenizer


def lm_of(given: Any, tokenizer: Any, dtype: torch.dtype, rounded_to: torch.dtype | None = None) -> LM:
    """The model in `dtype`, its weights rounded first. Buffers stay in float32, as `from_pretrained` leaves them."""
    model = copy.deepcopy(given).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(rounded_to or dtype).to(dtype)
    if dtype == FP64:
        for name, module in list(model.named_modules()):
            if type(module).__name__ == "LlamaRMSNorm":
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, WideNorm(module))
    return LM(model, tokenizer, "measured", PLAIN, LoraSites(model, LoraConfig()))


@dataclass(frozen=True)
class Data:
    practice: Batch
    target: Batch
    start: Params
    """In float32, as given."""
    weights: Tensor


def random_batch(rows: int, tokens: int, vocabulary: int, generator: torch.Generator) -> Batch:
    """The second half of a row counts."""
    ids = torch.randint(3, vocabulary, (rows, tokens), generator=generator)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    counted[:, tokens // 2 :] = True
    return Batch(ids, torch.ones_like(ids), counted)


def data_of(lm: LM, model: str, examples: int, tokens: int, seed: int) -> Data:
    """Problems of minimath for the tiny model, random tokens for one at random weights.

    The adapter's B is not zero: where it is, the gradient of A is, and AdamW divides by it.
    """
    generator = torch.Generator().manual_seed(seed)
    start = {
        name: t.float() + 0.02 * torch.randn(t.shape, generator=generator) for name, t in lm.init_adapter(seed).items()
    }
    weights = torch.rand(examples, generator=generator).softmax(0)
    if model == "tiny":
        found = tasks.load("minimath", split="validation", size=examples + 2, seed=seed)
        rows = [lm.example_row(task.problem, task.solution) for task in found]
        return Data(lm.batch(rows[:-2]), lm.batch(rows[-2:]), start, weights)
    vocabulary = lm.model.config.vocab_size
    practice = random_batch(examples, tokens, vocabulary, generator)
    return Data(practice, random_batch(2, tokens, vocabulary, generator), start, weights)


def optimizer_of(kind: str, rates: Params) -> Optimizer:
    return SGD(lr=rates) if kind == "sgd" else AdamW(lr=rates, eps_root=1e-6 if "1e-6" in kind else 1e-8)


@torch.no_grad()
def practice_losses(lm: LM, data: Data, kind: str, steps: int) -> tuple[float, float]:
    """Mean practice loss before and after the inner loop: how far it goes."""
    rates = {name: torch.full((), RATES[kind]) for name in data.start}

    def losses(params: Params, index: Tensor | None) -> Tensor:  # noqa: ARG001
        return lm.losses(data.practice, params)

    adapted = adapt(losses, data.start, data.weights, optimizer_of(kind, rates), steps)
    return float(losses(data.start, None).mean()), float(losses(adapted, None).mean())


def meta_gradient(
    lm: LM, data: Data, kind: str, rate: float, steps: int, way: Way, rounded_to: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The three gradients, each as one vector in float64."""
    wide = FP64 if way.adapter == FP64 else FP32
    start = {n: t.to(rounded_to or way.adapter).to(way.adapter).requires_grad_() for n, t in data.start.items()}
    rates = {name: torch.full((), rate, dtype=wide, requires_grad=True) for name in start}
    weights = data.weights.to(wide).requires_grad_()

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return lm.losses(data.practice if index is None else data.practice.select(index), params)

    mode: dict[str, Any] = {"mode": way.mode} if way.mode != "exact" else {}
    with torch.autocast("cpu", dtype=BF16) if way.autocast else nullcontext():
        adapted = adapt(losses, start, weights, optimizer_of(kind, rates), steps, **mode)
        loss = lm.losses(data.target, adapted).sum()
    grads = torch.autograd.grad(loss, [weights, *start.values(), *rates.values()])
    count = len(start)
    parts = (grads[:1], grads[1 : 1 + count], grads[1 + count :])
    return {q: torch.cat([g.double().flatten() for g in part]) for q, part in zip(QUANTITIES, parts, strict=True)}


def compare(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    return {
        q: {
            "error": float((mine[q] - reference[q]).norm() / reference[q].norm()),
            "cosine": float(torch.nn.functional.cosine_similarity(mine[q], reference[q], dim=0)),
        }
        for q in QUANTITIES
    }


def measure(
    args: argparse.Namespace, model: str, kind: str, seed: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All ways and numbers of steps for one model, one update rule and one seed."""
    given, tokenizer = given_model(model, seed)
    exact = Way("float64", FP64, FP64)
    ways = [way for way in WAYS if HAS_MODES or way.mode == "exact"]
    lms = {dtype: lm_of(given, tokenizer, dtype) for dtype in (FP32, BF16)}
    references = {dtype: lm_of(given, tokenizer, FP64, dtype) for dtype in (FP32, BF16)}
    data = data_of(lms[FP32], model, args.examples, args.tokens, seed)
    rows: list[dict[str, Any]] = []
    for steps in args.steps:
        known: dict[Any, dict[str, Tensor]] = {}
        before, after = practice_losses(lms[FP32], data, kind, steps)

        def reference(base: torch.dtype, adapter: torch.dtype) -> dict[str, Tensor]:
            if (base, adapter) not in known:  # noqa: B023
                options = (data, kind, RATES[kind], steps, exact, adapter)  # noqa: B023
                known[base, adapter] = meta_gradient(references[base], *options)  # noqa: B023
            return known[base, adapter]  # noqa: B023

        for way in ways:
            started = time.perf_counter()
            mine = meta_gradient(lms[way.base], data, kind, RATES[kind], steps, way)
            seconds = time.perf_counter() - started
            same = compare(mine, reference(way.weights_seen, way.adapter))
            given_weights = compare(mine, reference(FP32, FP32))
            key = {
                "model": model,
                "optimizer": kind,
                "steps": steps,
                "way": way.name,
                "seed": seed,
                "loss": [before, after],
            }
            rows.append({**key, "seconds": round(seconds, 3), "same": same, "given": given_weights})
        say(f"{model} {kind} K={steps} seed={seed}: practice loss {before:.3f} -> {after:.3f}")
    return rows


def table(rows: Sequence[dict[str, Any]], model: str, kind: str) -> str:
    """Error against the same weights for each of the three gradients, that of all against the given weights, cosine."""
    lines = [
        "| way | K | ∂/∂weights | ∂/∂θ | ∂/∂rates | lowest cosine | given weights: ∂/∂weights | ∂/∂θ | ∂/∂rates |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    mine = [row for row in rows if (row["model"], row["optimizer"]) == (model, kind)]
    for way, steps in dict.fromkeys((row["way"], row["steps"]) for row in mine):
        found = [row for row in mine if (row["way"], row["steps"]) == (way, steps)]
        same = [spread([row["same"][q]["error"] for row in found]) for q in QUANTITIES]
        given = [spread([row["given"][q]["error"] for row in found]) for q in QUANTITIES]
        lowest = min(row["same"][q]["cosine"] for row in found for q in QUANTITIES)
        lines.append(f"| {way} | {steps} | {' | '.join(same)} | {lowest:.5f} | {' | '.join(given)} |")
    return "\n".join(lines) + "\n"


def compact(rows: Sequence[dict[str, Any]], model: str, kind: str) -> str:
    """Errors against the same weights alone, K side by side."""
    mine = [row for row in rows if (row["model"], row["optimizer"]) == (model, kind)]
    steps = sorted({row["steps"] for row in mine})
    heads = [f"{q}, K={k}" for q in ("∂/∂weights", "∂/∂θ") for k in steps]
    lines = [f"| way | {' | '.join(heads)} | lowest cosine |", "|---" * (len(heads) + 2) + "|"]
    for way in dict.fromkeys(row["way"] for row in mine):
        of_way = [row for row in mine if row["way"] == way]
        cells = [
            spread([row["same"][q]["error"] for row in of_way if row["steps"] == k])
            for q in ("weights", "theta")
            for k in steps
        ]
        lowest = min(row["same"][q]["cosine"] for row in of_way for q in QUANTITIES)
        lines.append(f"| {way} | {' | '.join(cells)} | {lowest:.3f} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1e} ({min(values):.0e}-{max(values):.0e})"


def write(out: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    about = {"torch": torch.__version__, "examples": args.examples, "tokens": args.tokens, "seeds": args.seeds}
    replace_text(out / "precision.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
    parts = {
        f"{model}, {kind}, learning rate {RATES[kind]:g}": (model, kind)
        for model, kind in dict.fromkeys((row["model"], row["optimizer"]) for row in rows)
    }
    texts = [f"{title}\n\n{show(rows, *key)}" for show in (compact, table) for title, key in parts.items()]
    replace_text(out / "precision.md", "\n".join(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "256x4"], choices=["tiny", "256x4"])
    parser.add_argument("--optimizers", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("results/precision"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for model in args.models:
            for kind in args.optimizers:
                rows += measure(args, model, kind, seed, lambda text: print(text, flush=True))
                write(args.out, rows, args)


if __name__ == "__main__":
    restart_with_kept_memory()
    main()
