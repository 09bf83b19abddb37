"""Continuous decoding of requests with an adapter each -> rows per second beside those of one after another.

    OMP_NUM_THREADS=1 python benchmarks/continuous.py [--model tiny-terms] [--clients 1 8 64] [--rounds 3]

Each client asks for one answer at a time, under an adapter of its own, and asks again when it has it. The alternative
is `LM.sample` of the same rows one after another. The ways take turns in each round; a ratio compares two of one round.

A second table has one step of 64 rows of which half are the base's and half have one of eight adapters, three ways:
adapters added to their rows only (`mass.lm.lora_places`), an adapter of zeros for the base's rows, and two passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from mass.config import LoraConfig, ModelConfig, SamplingConfig
from mass.lm import LM, load_lm
from mass.lm.continuous import Ask, ContinuousDecoder
from mass.lm.continuous.mixture import LaidOut, Mixture
from mass.lm.sampling import decoding_cache
from mass.types import Params

PROBLEMS = ("Compute 17 + 25.", "Find the sum of 3, 14 and 8.", "What is 12 times 7?", "A zorp of 9 is what?")
ROWS, BASE, ADAPTERS, CACHED = 64, 32, 8, 200


def random_adapter(lm: LM, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.01 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in lm.init_adapter(0).items()}


def asks_of(lm: LM, count: int, tokens: int) -> list[Ask]:
    config = SamplingConfig(tokens, 1.0)
    prompts = [lm.solve_prompt(problem) for problem in PROBLEMS]
    return [Ask(prompts[i % 4], config, i, random_adapter(lm, i), lm.stops) for i in range(count)]


def alone_s(lm: LM, asks: Sequence[Ask]) -> float:
    begun = time.perf_counter()
    for ask in asks:
        lm.sample([ask.prompt], ask.config, [ask.seed], ask.adapter)
    return time.perf_counter() - begun


def together_s(lm: LM, asks: Sequence[Ask], clients: int) -> float:
    with ContinuousDecoder(lm) as decoder, ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda ask: decoder.submit(ask).result(), asks))
        return time.perf_counter() - begun


def requests_table(lm: LM, clients: Sequence[int], rounds: int, tokens: int) -> None:
    print("| clients | one after another, rows/s | together, rows/s | ratio (rounds) |\n| --- | --- | --- | --- |")
    for count in clients:
        asks, plain, shared, ratios = (
            asks_of(lm, max(8, 2 * count), tokens),
            list[float](),
            list[float](),
            list[float](),
        )
        few = asks[:16]
        for _ in range(rounds):
            plain.append(len(few) / alone_s(lm, few))
            shared.append(len(asks) / together_s(lm, asks, count))
            ratios.append(shared[-1] / plain[-1])
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"| {count} | {statistics.median(plain):.2f} | {statistics.median(shared):.2f} | "
            f"{statistics.median(ratios):.2f} ({spread}) |",
            flush=True,
        )


@torch.no_grad()
def mixed_table(lm: LM, rounds: int) -> None:
    known = LaidOut(lm.model.get_input_embeddings().weight.dtype)
    adapters = [random_adapter(lm, i) for i in range(ADAPTERS)]
    each = (ROWS - BASE) // ADAPTERS
    adapted: list[Params | None] = [adapter for adapter in adapters for _ in range(each)]
    zeros = {name: torch.zeros_like(t) for name, t in adapters[0].items()}
    ways: dict[str, list[list[Params | None]]] = {
        "all of the base": [[None] * ROWS],
        "only their rows": [[*adapted, *[None] * BASE]],
        "an adapter of zeros": [[*adapted, *[zeros] * BASE]],
        "two passes": [adapted, [None] * BASE],
    }
    steps = {name: [step(lm, known, owners) for owners in batches] for name, batches in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, passes in steps.items():
            begun = time.perf_counter()
            for _ in range(10):
                for run in passes:
                    run()
            taken[name].append((time.perf_counter() - begun) / 10)
    print("\n| step | ms, median (rounds) |\n| --- | --- |")
    for name, seconds in taken.items():
        spread = ", ".join(f"{1e3 * s:.1f}" for s in seconds)
        print(f"| {name} | {1e3 * statistics.median(seconds):.1f} ({spread}) |", flush=True)


def step(lm: LM, known: LaidOut, owners: list[Params | None]) -> Callable[[], None]:
    """Return a function that runs one step of these rows after `CACHED` tokens."""
    cache, in_use = decoding_cache(lm), Mixture(lm.adapters, known, lm.device).of(owners)
    length = min(CACHED, lm.context - 100)
    mask = torch.ones(len(owners), length, dtype=torch.int64)
    lm.model(input_ids=mask + 4, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run() -> None:
        nonlocal mask
        mask = torch.cat([mask, mask.new_ones(len(owners), 1)], 1)
        with lm.adapters.resume(in_use):
            lm.model(input_ids=mask[:, -1:] + 4, attention_mask=mask, past_key_values=cache, use_cache=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-terms")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    lm = load_lm(ModelConfig(given.model), LoraConfig())
    requests_table(lm, given.clients, given.rounds, given.tokens)
    mixed_table(lm, given.rounds)


if __name__ == "__main__":
    main()
