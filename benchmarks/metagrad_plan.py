"""The sweeps: which settings, and which routes at each; what a point will need of memory and time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from metagrad_problem import Setting
from metagrad_routes import BASELINE, ROUTES, Route

STEPS, EXAMPLES, LENGTHS = (1, 2, 4, 8, 16, 32), (2, 6, 12, 24), (32, 128, 512)
SIZES = ((64, 2), (256, 4), (512, 8))
SWEEP_STEPS = 4
"""K of the sweeps over m, T and size."""

EVERY = tuple(ROUTES)
MAIN = (
    BASELINE,
    "mass",
    "mass, micro_batch 1",
    "mass, micro_batch 1, checkpoint",
    "mass, micro_batch 2",
    "mass, budget of 1/40",
    "unroll, model as mass prepares it",
    "mass, budget of the unroll",
    "unroll, steps checkpointed",
    "jax unroll, steps checkpointed",
    "jax mixflow",
)
LONG = (*MAIN, "torchopt MetaSGD")
"""Where a repeat takes long."""
SHOWN = (*LONG, "mass, first_order", "jax unroll")
"""Along K where it does not; the routes that the plots of the sweeps show."""


@dataclass(frozen=True)
class Entry:
    setting: Setting
    routes: tuple[str, ...]


def full(base: Setting) -> list[Entry]:
    entries = [Entry(replace(base, steps=k), EVERY if k == 8 else LONG if k > 8 else SHOWN) for k in STEPS]
    short = replace(base, steps=SWEEP_STEPS)
    others = [
        *(replace(short, examples=m) for m in EXAMPLES),
        *(replace(short, length=length) for length in LENGTHS),
        *(replace(short, width=width, layers=layers) for width, layers in SIZES),
    ]
    return merged([*entries, *(Entry(setting, MAIN) for setting in others)])


def quick(base: Setting) -> list[Entry]:
    return [Entry(replace(base, steps=k), (*MAIN, "one forward", "one gradient", "mass, first_order")) for k in (1, 8)]


def smoke(base: Setting) -> list[Entry]:
    """Every route and every sweep on a model so small that it takes a minute or two; its numbers mean nothing."""
    tiny = replace(base, length=16, width=64, layers=1)
    changes = [{"steps": 8}, {"steps": 1}, {"steps": 4}, {"steps": 4, "examples": 2}, {"steps": 4, "length": 32}]
    entries = [Entry(replace(tiny, **change), EVERY if change == {"steps": 8} else MAIN) for change in changes]
    return [*entries, Entry(replace(tiny, steps=4, layers=2), MAIN)]


PLANS = {"full": full, "quick": quick, "smoke": smoke}


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for each setting, with the routes of all; in the order of the first mention."""
    wanted: dict[Setting, set[str]] = {}
    for entry in entries:
        wanted.setdefault(entry.setting, set()).update(entry.routes)
    return [Entry(setting, tuple(n for n in EVERY if n in names)) for setting, names in wanted.items()]


def chosen(entries: Sequence[Entry], settings: Sequence[str], routes: Sequence[str]) -> list[Entry]:
    """Those whose key contains one of `settings`, with the routes named; no names: all. The baseline stays."""
    kept = [e for e in entries if not settings or any(text in e.setting.key for text in settings)]
    return [Entry(e.setting, tuple(n for n in e.routes if not routes or n in routes or n == BASELINE)) for e in kept]


def estimated_bytes(route: Route, steps: int, unroll_bytes: Sequence[float]) -> float:
    """From the plain unroll's bytes at 1 and at 2 steps: it grows by the same at every further step."""
    first, second = unroll_bytes
    grown = first + (second - first) * (steps - 1)
    return max(route.graphs * grown, 1.3 * first)


def estimated_seconds(entry: Entry, repeats: int) -> float:
    """On one slow core, after a trial; only its proportions are used once something was measured."""
    setting = entry.setting
    tokens = setting.examples * setting.length * (1 + setting.length / 1024)
    one = 0.45 * setting.steps * tokens / 860 * (setting.width / 256) ** 1.7 * setting.layers / 4
    runs = [(3 + repeats) * one * ROUTES[name].work + (25 if not ROUTES[name].torch else 10) for name in entry.routes]
    return sum(runs) + 5 * one + 8
