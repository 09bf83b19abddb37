"""A model's name -> its report: loads the first layers, then makes each check with each attention."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mass.adapter import LoraSites
from mass.config import LoraConfig
from mass.doctor import derivatives, precision
from mass.doctor.loading import Base, load
from mass.doctor.problem import Point, Problem, make_point, make_problem
from mass.doctor.report import CHECKPOINTING, MICRO_BATCHES, Check, Report
from mass.doctor.wide import widen
from mass.errors import ModelError
from mass.inner.verification import relative_error
from mass.lm import LM
from mass.lm.attention import always_fused
from mass.prompts import PLAIN

EXACT_ATTENTIONS = ("eager", "sdpa")
"""Those that `mass.lm` differentiates twice."""
EXACT, SAME = 1e-6, 1e-9
"""Bounds: against central differences; between two ways to the same number in float64."""
OTHER_ATTENTION = "try another --attention; where the model has kernels of its own, replace them by plain PyTorch"
NO_SECOND = 'use another --attention, or adapt(..., mode="finite_difference") in float32'
STATEFUL = "turn dropout off (model.eval()); a layer that keeps something between calls has to go"


def examine(
    name: str,
    *,
    layers: int | None = None,
    attentions: Sequence[str] = ("eager", "sdpa"),
    dtype: str = "float32",
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load the first layers of a model and measure on them, in float64, what the engine relies on; then in `dtype`.

    Args:
        name: 'tiny', a local folder, or a hub name.
        layers: how many; None: as many as hold each kind of layer, at least 2.
        attentions: implementations as transformers names them.
        dtype: the precision the model will be run in.
        seed: of adapter and directions.
        progress: is told what is being done.

    Raises ModelError or ConfigError when the model cannot be loaded.
    """
    began = time.monotonic()
    progress(f"loading {name}")
    base = load(name, layers, dtype, seed)
    checks, exact = [_tokenizer(base.tokenizer)], dict[str, Point]()
    for attention in attentions:
        with always_fused():
            found, point = examine_attention(base, attention, seed, progress)
        checks += found
        if point is not None:
            checks += _agreement(exact, attention, point)
            exact[attention] = point
    return Report(base.loaded, base.reach, tuple(checks), time.monotonic() - began)


def _tokenizer(tokenizer: Any) -> Check:
    missing = [name for name in ("pad_token", "eos_token") if getattr(tokenizer, f"{name}_id") is None]
    way_out = f"tokenizer.{missing[0]} = ...; tokenizer.save_pretrained(folder)" if missing else ""
    note = f"has no {' and no '.join(missing)}" if missing else "has padding and end tokens"
    return Check("tokenizer", "fail" if missing else "pass", note=note, way_out=way_out)


def examine_attention(
    base: Base, attention: str, seed: int, progress: Callable[[str], None]
) -> tuple[list[Check], Point | None]:
    """All checks with this attention, and the meta-gradients in float64 where they were had."""
    progress(f"{attention}: preparing float64")
    try:
        wide = make_problem(_language_model(base, attention, torch.float64), base.rows)
        at = make_point(wide, seed)
    except Exception as error:  # whatever a model or kernel raises is what we are here to report
        failed = Check("runs", "fail", attention, note=_one_line(error), way_out="use another --attention")
        return [failed], None
    rows = _Rows(attention, progress)
    found = [Check("runs", "pass", attention, note=""), _repeats(rows, wide, at)]
    found += list(_derivatives(rows, wide, at, seed))
    exact = rows.attempt("meta-gradient", functools.partial(wide.meta_gradients, at))
    if isinstance(exact, Check):
        return [*found, replace(exact, way_out=NO_SECOND)], None
    found += list(_meta_gradients(rows, wide, at, exact, seed))
    found += list(_economies(rows, wide, at, exact))
    found.append(_precision(rows, base, wide, at, exact))
    return found, exact


def _language_model(base: Base, attention: str, dtype: torch.dtype) -> LM:
    """A copy of the model. In float64 its experts are plain: grouped kernels have no float64."""
    if attention not in EXACT_ATTENTIONS:  # before transformers looks for its kernels on the hub
        raise ModelError(f"attention {attention!r} has no exact second derivative; expected eager or sdpa")
    model = copy.deepcopy(base.model).to(dtype)
    model.set_attn_implementation(attention)
    if dtype == torch.float64 and getattr(model.config, "_experts_implementation", None) not in (None, "eager"):
        model.set_experts_implementation("eager")
    lm = LM(model, base.tokenizer, base.loaded.model, PLAIN, LoraSites(model, LoraConfig(rank=4, alpha=8.0)))
    if dtype == torch.float64:
        widen(model)
    return lm


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of one attention."""

    attention: str
    progress: Callable[[str], None]

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or the failed check of what it raised."""
        self.progress(f"{self.attention}: {name}")
        try:
            return make()
        except Exception as error:  # as above
            return Check(name, "fail", self.attention, note=_one_line(error))

    def error(
        self, name: str, bound: float, note: str, way_out: str, make: Callable[[], float], *, needed: bool = True
    ) -> Check:
        """A check of a relative error."""
        measured = self.attempt(name, make)
        if isinstance(measured, Check):
            return replace(measured, bound=bound, way_out=way_out, needed=needed)
        good = measured <= bound
        return Check(
            name, "pass" if good else "fail", self.attention, measured, bound, note, "" if good else way_out, needed
        )


def _repeats(rows: _Rows, problem: Problem, at: Point) -> Check:
    """The same loss bit for bit, after another random state and a call at other parameters in between."""

    def difference() -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            before = problem.losses(at.start)
            torch.manual_seed(2)
            problem.losses({name: 1.1 * p for name, p in at.start.items()})
            after = problem.losses(at.start)
        return float((after - before).abs().max() / before.abs().max())

    return rows.error("same loss twice", 0.0, "bit for bit: no dropout, no state", STATEFUL, difference)


def _derivatives(rows: _Rows, problem: Problem, at: Point, seed: int) -> Generator[Check, None, None]:
    yield rows.error(
        "first derivative", EXACT, "central differences", OTHER_ATTENTION,
        lambda: derivatives.first_derivative(problem, at, seed + 100),
    )  # fmt: skip
    yield rows.error(
        "second derivative", EXACT, "central differences of gradients", NO_SECOND,
        lambda: derivatives.second_derivative(problem, at, seed + 200),
    )  # fmt: skip


def _meta_gradients(rows: _Rows, problem: Problem, at: Point, exact: Point, seed: int) -> Generator[Check, None, None]:
    for part in ("weights", "start", "rates"):
        yield rows.error(
            f"meta-gradient of {part}", EXACT, "central differences, K = 2", NO_SECOND,
            functools.partial(derivatives.meta_gradient, problem, at, part, exact, seed + 300),
        )  # fmt: skip


def _economies(rows: _Rows, problem: Problem, at: Point, exact: Point) -> Generator[Check, None, None]:
    """What saves memory must not change numbers."""
    yield rows.error(
        MICRO_BATCHES, SAME, "all examples at once", "leave micro_batch unset",
        lambda: _difference(problem.meta_gradients(at, micro_batch=1), exact), needed=False,
    )  # fmt: skip
    sizes = rows.attempt(CHECKPOINTING, lambda: [problem.saved_bytes(at.start, flag) for flag in (False, True)])
    if isinstance(sizes, Check):
        yield replace(sizes, needed=False, way_out="leave checkpoint unset")
    elif sizes[1] >= 0.9 * sizes[0]:
        yield Check(
            CHECKPOINTING, "skipped", rows.attention, note="this model's layers cannot be checkpointed", needed=False
        )
    else:
        yield rows.error(
            CHECKPOINTING, SAME, f"none; its graph is {sizes[1] / sizes[0]:.2f} as large",
            "leave checkpoint unset", lambda: _difference(problem.meta_gradients(at, checkpoint=True), exact),
            needed=False,
        )  # fmt: skip


def _precision(rows: _Rows, base: Base, wide: Problem, at: Point, exact: Point) -> Check:
    """The meta-gradients in the precision asked for, against float64 with the same weights."""
    name = f"in {base.loaded.dtype}"
    dtype: torch.dtype = getattr(torch, base.loaded.dtype)
    if dtype == torch.float64:
        return Check(name, "skipped", rows.attention, note="is the reference itself")
    allowed = rows.attempt(name, lambda: precision.explained(wide, at, exact, dtype))
    if isinstance(allowed, Check):
        return replace(allowed, way_out="give --dtype float64 to leave this out")
    narrow = "float32" if dtype != torch.float32 else "float64"
    experts = getattr(base.model.config, "_experts_implementation", None) not in (None, "eager")
    way_out = '"experts_implementation": "eager" in config.json, or ' if experts else ""
    return rows.error(
        name, precision.bound_of(allowed), f"float64; rounding explains {allowed:.1g}",
        f"{way_out}--dtype {narrow}",
        lambda: precision.error_of(make_problem(_language_model(base, rows.attention, dtype), base.rows), at, exact),
    )  # fmt: skip


def _agreement(others: dict[str, Point], attention: str, point: Point) -> list[Check]:
    if not others:
        return []
    name, other = next(iter(others.items()))
    error = _difference(point, other)
    status, way_out = ("pass", "") if error <= SAME else ("fail", "use the one whose other checks pass")
    return [Check("same as others", status, attention, error, SAME, f"meta-gradients with {name}", way_out, False)]


def _difference(got: Point, expected: Point) -> float:
    parts = expected.parts()
    return max(relative_error(got.parts()[part], parts[part]) for part in parts)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:159]}…"
