"""A server under load -> adapted answers per second, what practice costs the neighbours, and where the seconds go.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --out benchmarks/results/serving
    OMP_NUM_THREADS=1 python benchmarks/serving.py --rounds 2 --answers 32 --seconds 20

Starts `mass serve` with --model on a free port of this machine, and stops it at the end. Each round measures everything
once, so that a ratio compares two measurements of one round; the tables have the median and all rounds.

1. Adapted answers per second with 1, 8 and 64 clients at once, each of which asks again when it has its answer
   (`mass.adapt` "always", a problem and a seed of its own each time), against one client: one after another.
2. The 95th percentile of the seconds of plain answers to 8 clients, beside 8 clients that adapt, over the same beside 8
   more plain ones.
3. The shares of an adapted answer's seconds (`mass.seconds`) that were neither the model's nor the queue's (`other`),
   and that were spent in the queue and on others' inner loops.

A measurement ends after --answers answers, or begins no more after --seconds. Writes serving.json and serving.md after
each round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from serving_client import (
    MODEL,
    Reply,
    Served,
    ask,
    client_of,
    conversation,
    keep,
    machine,
    machine_sentence,
    percentile,
    quiet,
    served,
)

from mass.tasks import load

PROBLEMS = 512
Body = dict[str, Any]


@dataclass(frozen=True)
class Crowd:
    """One measurement of clients that adapt."""

    clients: int
    answers: int
    per_s: float
    median_s: float
    other: float
    """Share of the seconds of all answers; so are the next two."""
    queue: float
    waiting: float
    adapted: int


@dataclass(frozen=True)
class Beside:
    """One measurement of clients that answer plainly beside others."""

    answers: int
    p95_plain_s: float
    """Beside as many plain clients."""
    p95_adapting_s: float
    """Beside as many adapting clients."""


@dataclass
class Round:
    crowds: list[Crowd] = field(default_factory=list[Crowd])
    beside: Beside | None = None


def main() -> None:
    given = arguments()
    about = {**machine(), "model": given.model, "answers": given.answers, "seconds": given.seconds}
    problems = [task.problem for task in load("minimath-terms", split="test", size=PROBLEMS, seed=given.seed)]
    with served(model=given.model) as server:
        rounds, first_s = asyncio.run(measured(given, server, problems, about))
    print(table(rounds, about, first_s))


async def measured(
    given: argparse.Namespace, server: Served, problems: Sequence[str], about: dict[str, Any]
) -> tuple[list[Round], float]:
    """Return all rounds, and the seconds from the server's start to its first answer."""
    rounds: list[Round] = []
    plain = (conversation(problem, given.model) for problem in itertools.cycle(problems))
    adapting = adapting_bodies(given, problems)
    async with client_of(server, 2 * max(*given.clients, given.plain_clients)) as client:
        began = time.perf_counter()
        first = await ask(client, next(plain))
        first_s = server.ready_s + time.perf_counter() - began
        print(f"first answer {first_s:.1f} s after the start (status {first.status})", flush=True)
        for _ in range(given.rounds):
            rounds.append(await one_round(given, client, plain, adapting))
            shown = table(rounds, about, first_s)
            if given.out is not None:
                data = {"about": about, "first_answer_s": first_s, "rounds": [asdict(one) for one in rounds]}
                keep(Path(given.out), "serving", data, shown)
    return rounds, first_s


def adapting_bodies(given: argparse.Namespace, problems: Sequence[str]) -> Iterator[Body]:
    for seed, problem in enumerate(itertools.cycle(problems)):
        yield conversation(problem, f"{given.model}+mass", mass={"adapt": "always", "seed": seed})


async def one_round(
    given: argparse.Namespace, client: httpx2.AsyncClient, plain: Iterator[Body], adapting: Iterator[Body]
) -> Round:
    found = Round()
    for clients in given.clients:
        began = time.perf_counter()
        replies = await asked(client, adapting, clients, bound(given, clients))
        found.crowds.append(crowd(clients, replies, time.perf_counter() - began))
        await quiet(client)
        print(f"{clients} clients: {found.crowds[-1].per_s:.2f} adapted answers a second", flush=True)
    found.beside = await beside(given, client, plain, adapting)
    print(f"p95 of plain answers: {found.beside.p95_plain_s:.3f} s beside plain, {found.beside.p95_adapting_s:.3f} s "
          "beside adapting clients", flush=True)  # fmt: skip
    return found


def bound(given: argparse.Namespace, clients: int) -> Callable[[int], bool]:
    """Return what says whether to begin request number i: one client needs fewer answers for the same precision."""
    most, end = max(min(given.answers, 16 * clients), clients), time.monotonic() + given.seconds
    return lambda index: index < most and time.monotonic() < end


async def asked(
    client: httpx2.AsyncClient, bodies: Iterator[Body], clients: int, begins: Callable[[int], bool]
) -> list[Reply]:
    """Ask with so many clients at once. Raises RuntimeError for a request that is not answered."""
    replies: list[Reply] = []
    counter = itertools.count()

    async def work() -> None:
        while begins(next(counter)):
            reply = await ask(client, next(bodies))
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}: {reply.body}")
            replies.append(reply)

    await asyncio.gather(*(work() for _ in range(clients)))
    return replies


def crowd(clients: int, replies: Sequence[Reply], took_s: float) -> Crowd:
    spent = [reply.mass["seconds"] for reply in replies]
    total = sum(seconds["total"] for seconds in spent)
    other, queue, waiting = (sum(s.get(stage, 0.0) for s in spent) / total for stage in ("other", "queue", "waiting"))
    adapted = sum(reply.mass["adapted"] for reply in replies)
    median_s = statistics.median(reply.seconds for reply in replies)
    return Crowd(clients, len(replies), len(replies) / took_s, median_s, other, queue, waiting, adapted)


async def beside(
    given: argparse.Namespace, client: httpx2.AsyncClient, plain: Iterator[Body], adapting: Iterator[Body]
) -> Beside:
    """Measure plain answers beside plain ones, and then beside adaptations."""
    found: list[list[Reply]] = []
    for neighbours in (plain, adapting):
        others = asyncio.ensure_future(asked(client, neighbours, given.plain_clients, lambda _: True))
        found.append(await asked(client, plain, given.plain_clients, bound(given, given.answers)))
        others.cancel()
        await asyncio.wait({others})
        if not others.cancelled():
            others.result()  # it has failed
        await quiet(client)
    p95 = [percentile([reply.seconds for reply in replies], 0.95) for replies in found]
    return Beside(min(len(replies) for replies in found), *p95)


# --- the tables


def table(rounds: Sequence[Round], about: dict[str, Any], first_s: float) -> str:
    """Return the tables in Markdown."""
    lines = [
        machine_sentence(about),
        f"First answer {first_s:.1f} s after the start. Medians of {len(rounds)} rounds, in brackets all of them.",
        "",
        "| clients | answers | adapted answers/s | of one after another | median s | other | queue | others' loops |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [row([one.crowds[i] for one in rounds], rounds) for i in range(len(rounds[0].crowds))]
    measured = [one.beside for one in rounds if one.beside is not None]
    lines += [
        "",
        "| p95 of plain answers | s |",
        "| --- | ---: |",
        f"| beside as many plain clients | {spread([one.p95_plain_s for one in measured], '.3f')} |",
        f"| beside as many adapting clients | {spread([one.p95_adapting_s for one in measured], '.3f')} |",
        f"| ratio | {spread([one.p95_adapting_s / one.p95_plain_s for one in measured], '.2f')} |",
    ]
    return "\n".join(lines)


def row(some: Sequence[Crowd], rounds: Sequence[Round]) -> str:
    ratios = [one.per_s / each.crowds[0].per_s for one, each in zip(some, rounds, strict=True)]
    shares = [[getattr(one, name) for one in some] for name in ("other", "queue", "waiting")]
    cells = [
        str(some[0].clients),
        str(sum(one.answers for one in some)),
        spread([one.per_s for one in some], ".2f"),
        spread(ratios, ".2f"),
        spread([one.median_s for one in some], ".2f"),
        *(f"{statistics.median(values):.1%}" for values in shares),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="the first is what others go by")
    parser.add_argument("--plain_clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=192, help="most answers of a measurement; 16 of each client")
    parser.add_argument("--seconds", type=float, default=60.0, help="a measurement begins no request after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="a folder for serving.json and serving.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
