"""Thousands of requests of mixed kinds from many clients -> whether each got its own answer, and what was left behind.

    OMP_NUM_THREADS=1 python benchmarks/serving_soak.py --out benchmarks/results/serving          # 10,000 requests
    OMP_NUM_THREADS=1 python benchmarks/serving_soak.py --requests 300 --clients 16

Starts `mass serve` with --model and records on a free port of this machine. First each request is asked alone; then
--clients clients ask them again and again, in an order that --seed draws: plain, streamed, three answers, adapted whole
and as a stream, where the model is uncertain, with examples, given up, and bad ones (`serving_cases.SHARES`).

Ten parts of equal size are each followed by silence, in which the server must have nothing left to do, and in which its
memory is read and the plain requests are asked alone again. At the end its records are read: one for each adaptation,
with the problem and the practice that the client was told. Exits with 1 where a request was lost, got another's
practice, or has not its record, where a plain answer changed, or memory grew by over 5% since the first part.

Stops after the part in which --seconds have passed, and says how many requests that were. Writes soak.json and soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import serving_cases as kinds
from serving_cases import Case, Known, alike, cases, verdict
from serving_client import (
    CHAT,
    MODEL,
    Reply,
    Served,
    ask,
    client_of,
    keep,
    machine,
    machine_sentence,
    quiet,
    served,
)

from mass.serving.records import Entry, Records
from mass.tasks import load

PARTS = 10
GROWTH = 0.05
EXAMPLE_SETS, EXAMPLES_EACH = 2, 6
LINES_BEFORE_LEAVING = 2


@dataclass
class Found:
    """What came of the run so far."""

    about: dict[str, Any]
    verdicts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind."""
    memory: list[float] = field(default_factory=list[float])
    """Bytes of the server after each part, in silence."""
    changed: int = 0
    """Plain answers that were others than those before, asked alone in the silences."""
    unmarked: int = 0
    """Pairs of cases whose replies could not be told apart."""
    records: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0
    surprises: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The first replies that were not the case's own."""

    @property
    def count(self) -> int:
        return sum(counter.total() for counter in self.verdicts.values())

    def total(self, kind: str) -> int:
        return sum(counter[kind] for counter in self.verdicts.values())

    @property
    def growth(self) -> float:
        return self.memory[-1] / self.memory[0] - 1 if self.memory else 0.0

    def line(self) -> str:
        """Return how far it is."""
        memory = f"{self.memory[-1] / 1e6:.0f} MB"
        return f"{self.count} requests in {self.seconds:.0f} s, {memory}; {'; '.join(self.faults()) or 'no fault'}"

    def faults(self) -> list[str]:
        """Return what must not be, a line each."""
        counted = {
            "requests lost": self.total(kinds.LOST),
            "replies with another's practice": self.total(kinds.OTHERS),
            "plain answers that differ": sum(self.verdicts[k][kinds.DIFFERS] for k in (kinds.PLAIN, kinds.STREAMED)),
            "plain answers that changed": self.changed,
            "pairs of cases that cannot be told apart": self.unmarked,
            "adaptations without their record": self.records.get("missing", 0),
            "records of another problem or practice": self.records.get("wrong", 0),
        }
        grown = [f"memory grew by {self.growth:.1%}"] if self.growth > GROWTH else []
        return [f"{count} {what}" for what, count in counted.items() if count] + grown


class Soak:
    """One run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.found = Found({**machine(), "requests": given.requests, "clients": given.clients, "seed": given.seed})
        self.cases = made(given)
        self.known: dict[int, Known] = {}
        self.told: dict[str, tuple[int, tuple[str, ...]]] = {}
        """Identity of each adaptation that a client was told of -> its case, and its practice."""

    async def run(self, server: Served) -> None:
        """Ask everything alone, then everything at once, in parts."""
        async with client_of(server, 2 * self.given.clients) as client:
            await self.alone(client)
            order, began = drawn(self.cases, self.given), time.monotonic()
            sizes = [len(some) for some in _parts(range(self.given.requests))]
            for part, size in enumerate(sizes, 1):
                await self.together(client, itertools.islice(order, size))
                await self.silence(client)
                self.found.seconds = time.monotonic() - began
                print(self.found.line(), flush=True)
                self.keep()
                if self.found.seconds > self.given.seconds and part < PARTS:
                    print(f"stopped after {part} of {PARTS} parts", flush=True)
                    return

    async def alone(self, client: httpx2.AsyncClient) -> None:
        """Learn what each case gets while nobody else asks."""
        for index, case in enumerate(self.cases):
            if case.leaves or case.kind == kinds.BAD:
                continue
            reply = await ask(client, case.body)
            if reply.status != 200 or not reply.whole:
                raise RuntimeError(f"alone, {case.kind!r} got status {reply.status}: {reply.body}")
            self.known[index] = Known.of(reply)
            self.heard(index, reply)
        self.found.unmarked = alike(self.known, self.cases)
        print(f"{len(self.known)} cases asked alone; {self.found.unmarked} pairs cannot be told apart", flush=True)

    async def together(self, client: httpx2.AsyncClient, order: Iterator[int]) -> None:
        async def work() -> None:
            for index in order:
                await self.one(client, index)

        await asyncio.gather(*(work() for _ in range(self.given.clients)))

    async def one(self, client: httpx2.AsyncClient, index: int) -> None:
        """Ask once, and judge what comes. Nothing that comes ends the run."""
        case = self.cases[index]
        try:
            reply = await (left(client, case.body) if case.leaves else ask(client, case.body))
        except (httpx2.HTTPError, ValueError) as error:
            reply = Reply(0, {"error": f"{type(error).__name__}: {error}"})
        found = verdict(case, reply, self.known, self.cases, index)
        self.found.verdicts[case.kind][found] += 1
        if found != kinds.OWN and len(self.found.surprises) < 20:
            alone = asdict(self.known[index]) if index in self.known else None
            self.found.surprises.append(
                {"case": asdict(case), "verdict": found, "reply": asdict(reply), "alone": alone}
            )
        if case.practises:
            self.heard(index, reply)

    def heard(self, index: int, reply: Reply) -> None:
        """Note an adaptation that must have a record."""
        if reply.mass.get("adapted") or reply.mass.get("fallback"):
            self.told[reply.mass["id"]] = index, Known.of(reply).practice

    async def silence(self, client: httpx2.AsyncClient) -> None:
        """Wait until nothing is in flight, read the memory, and ask the plain requests alone."""
        self.found.memory.append((await quiet(client))["process_resident_memory_bytes"])
        for index, case in enumerate(self.cases):
            if case.kind == kinds.PLAIN:
                self.found.changed += Known.of(await ask(client, case.body)) != self.known[index]

    def read_records(self, folder: Path) -> None:
        """Compare the records with what clients were told."""
        with Records(folder) as records:
            entries = {id: records.get(id, owner=None) for id in self.told}
        wrong = [id for id, entry in entries.items() if entry is not None and not self.is_right(id, entry)]
        missing = sum(entry is None for entry in entries.values())
        self.found.records = {"told": len(self.told), "missing": missing, "wrong": len(wrong)}

    def is_right(self, id: str, entry: Entry) -> bool:
        index, practice = self.told[id]
        case = self.cases[index]
        texts = tuple(example.text for example in entry.record.examples)
        own = entry.record.problem == case.body["messages"][0]["content"]
        return own and (case.kind == kinds.EXAMPLES or texts == practice)

    def keep(self) -> None:
        if self.given.out is not None:
            data = {**vars(self.found), "seconds": round(self.found.seconds, 1)}
            keep(Path(self.given.out), "soak", data, table(self.found))


def made(given: argparse.Namespace) -> list[Case]:
    tasks = load("minimath-terms", split="test", size=given.problems + EXAMPLE_SETS * EXAMPLES_EACH, seed=given.seed)
    solved = [(task.problem, task.solution or f"Answer: {task.answer}") for task in tasks[given.problems :]]
    sets = [solved[i * EXAMPLES_EACH : (i + 1) * EXAMPLES_EACH] for i in range(EXAMPLE_SETS)]
    return cases(given.model, [task.problem for task in tasks[: given.problems]], sets)


def drawn(all_cases: Sequence[Case], given: argparse.Namespace) -> Iterator[int]:
    """Yield cases without end, their kinds by their shares, those of one kind in turn."""
    rng = random.Random(given.seed)
    turns = {
        kind: itertools.cycle([i for i, case in enumerate(all_cases) if case.kind == kind]) for kind in kinds.SHARES
    }
    while True:
        (kind,) = rng.choices(list(kinds.SHARES), list(kinds.SHARES.values()))
        yield next(turns[kind])


async def left(client: httpx2.AsyncClient, body: dict[str, Any]) -> Reply:
    """Ask for a stream, read its first lines, and close the connection."""
    async with client.stream("POST", CHAT, json=body) as found:
        lines = 0
        async for _ in found.aiter_lines():
            lines += 1
            if lines == LINES_BEFORE_LEAVING:
                break
    return Reply(found.status_code, {})


def _parts(requests: Sequence[int]) -> list[Sequence[int]]:
    return [requests[len(requests) * i // PARTS : len(requests) * (i + 1) // PARTS] for i in range(PARTS)]


def table(found: Found) -> str:
    """Return what was found in Markdown."""
    verdicts = (kinds.OWN, kinds.OTHERS, kinds.DIFFERS, kinds.LOST)
    lines = [
        machine_sentence(found.about),
        f"{found.count} requests of {found.about['clients']} clients in {found.seconds:.0f} s.",
        "",
        f"| request | {' | '.join(verdicts)} |",
        f"| --- | {' | '.join('---:' for _ in verdicts)} |",
    ]
    for kind in kinds.SHARES:
        lines.append(f"| {kind} | {' | '.join(str(found.verdicts[kind][name]) for name in verdicts)} |")
    memory = ", ".join(f"{value / 1e6:.0f}" for value in found.memory)
    lines += [
        "",
        f"Memory after each part, MB: {memory} ({found.growth:+.1%}). Plain answers that changed: {found.changed}.",
        f"Records: {found.records or 'not read yet'}. Faults: {'; '.join(found.faults()) or 'none'}.",
    ]
    return "\n".join(lines)


def main() -> int:
    given = arguments()
    soak = Soak(given)
    with TemporaryDirectory() as folder:
        with served("--records", folder, model=given.model) as server:
            asyncio.run(soak.run(server))
        soak.read_records(Path(folder))
    soak.keep()
    print(table(soak.found))
    return 1 if soak.found.faults() else 0


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--problems", type=int, default=8, help="problems that the cases are made of")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the part that takes longer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="a folder for soak.json and soak.md")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
