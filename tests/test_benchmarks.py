"""The routes of benchmarks/metagrad.py on a small model: each exact one gives the unroll's meta-gradient."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import metagrad_live  # noqa: E402
import metagrad_plan  # noqa: E402
from metagrad_problem import (  # noqa: E402
    Gradients,
    MetaGradient,
    Problem,
    Setting,
    Unavailable,
    errors,
    make_problem,
)
from metagrad_routes import BASELINE, ROUTES  # noqa: E402
from peers import plain  # noqa: E402

SMALL = Setting(steps=3, examples=3, length=12, width=32, layers=1, vocabulary=50)
COMPILED = [n for n, r in ROUTES.items() if r.compiled or not r.torch]
COMPILED_ONCE = [n for n in COMPILED if n != "mass, micro_batch 1, compiled"]
"""Without one whose compiled pass is that of the others: a compilation takes most of a minute."""
IN_TORCH = [n for n, r in ROUTES.items() if r.part != "unit" and n not in (*COMPILED, "betty, darts")]
OTHER = {"mass, finite_difference": (1e-7, 1e-2), "mass, truncated(1)": (1e-2, 10.0), "mass, first_order": (1e-2, 10.0)}
"""Routes that compute something near: least and greatest error."""


@functools.cache
def problem(prepared: bool = False) -> Problem:
    return make_problem(SMALL, prepared=prepared)


@functools.cache
def reference() -> Gradients:
    return plain.prepare(make_problem(SMALL, torch.float64))()


def prepared(name: str) -> MetaGradient:
    route = ROUTES[name]
    budget = 40e9 if name == "mass, budget of 1/40" else 1e9  # so that one example fits in 1/40 of it
    try:
        return route.prepare(problem(route.prepared), budget)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", IN_TORCH)
def test_a_route_gives_the_meta_gradient(name: str) -> None:
    found = errors(prepared(name)(), reference())
    least, greatest = OTHER.get(name, (0.0, 2e-5))
    assert found["error_w"] is not None
    assert least <= found["error_w"] < greatest
    if not name.startswith("betty"):
        assert found["error_theta"] is not None
        assert least <= found["error_theta"] < greatest


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED_ONCE)
def test_a_compiled_route_gives_the_meta_gradient(name: str) -> None:
    found = errors(prepared(name)(), reference())
    assert max(found["error_w"] or 1.0, found["error_theta"] or 1.0) < 2e-5


def test_the_reference_with_steps_checkpointed_is_that_of_the_whole_graph() -> None:
    found = plain.prepare(make_problem(SMALL, torch.float64), checkpointed=True)()
    assert all(torch.equal(found[name], gradient) for name, gradient in reference().items())


def test_a_wrong_meta_gradient_is_seen_in_its_error() -> None:
    wrong = {name: gradient * 1.01 for name, gradient in reference().items()}
    found = errors(wrong, reference())
    assert found["error_w"] == pytest.approx(0.01)
    assert found["error_theta"] == pytest.approx(0.01)
    assert errors({"w": wrong["w"]}, reference())["error_theta"] is None


def test_live_bytes_are_those_of_the_tensors_alive_at_the_peak() -> None:
    before = torch.ones(1000)

    def run() -> torch.Tensor:
        kept = before + 1  # 4000 bytes
        (before.view(10, 100) * 2).sum()  # 4000 and 4 more, freed at once; the view holds none of its own
        return kept.clone()  # 4000

    assert metagrad_live.live_bytes(run) == 8004
    assert 8004 <= metagrad_live.allocated_bytes(run) < 8100  # with what kernels hold of their own
    assert metagrad_live.live_bytes(lambda: before.view(-1)) == 0


def test_flops_are_those_of_torch_and_counted_inside_checkpointed_layers() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        prepared("unroll")()
    unroll = counter.get_total_flops()
    assert metagrad_live.flops(prepared("unroll")) == unroll
    assert metagrad_live.flops(prepared("mass")) > unroll
    assert metagrad_live.flops(prepared("mass, checkpoint")) > metagrad_live.flops(prepared("mass"))


def test_the_unroll_grows_with_k_by_the_same_bytes_each_step() -> None:
    sizes = [
        metagrad_live.live_bytes(plain.prepare(make_problem(Setting(**{**SMALL.to_json(), "steps": k}))))
        for k in (1, 2, 5)
    ]
    estimate = metagrad_plan.estimated_bytes(ROUTES[BASELINE], 5, sizes[:2])
    assert estimate == pytest.approx(sizes[2], rel=0.02)


@pytest.mark.parametrize("plan", metagrad_plan.PLANS)
def test_every_plan_names_routes_that_exist_and_measures_the_baseline(plan: str) -> None:
    entries = metagrad_plan.PLANS[plan](Setting())
    assert len({entry.setting.key for entry in entries}) == len(entries)
    assert all(BASELINE in entry.routes and set(entry.routes) <= set(ROUTES) for entry in entries)


def test_options_have_underscores() -> None:
    """ADR 22, for the scripts too: in their parsers, docstrings and calls of each other, and on the pages."""
    pages = [path for path in (BENCHMARKS.parent / "docs").rglob("*.md") if "0022" not in path.name]
    lines = [line for path in pages for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()]
    texts = [path.read_text(encoding="utf-8") for path in BENCHMARKS.rglob("*.py")]
    called = [line for line in lines if "benchmarks/" in line]
    assert called
    assert [found for text in [*texts, *called] for found in re.findall(r"--[a-z]+-[a-z-]+", text)] == []
