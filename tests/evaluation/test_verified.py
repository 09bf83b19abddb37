"""tt-ss-verified beside tt-ss: the same practice, of which less is learned, and the cost of verifying it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mass import load
from mass.config import AdaptConfig, EvalConfig, RunConfig, SamplingConfig, SynthesisConfig, VerifyConfig
from mass.evaluation.evaluate import evaluate
from mass.preflight.dryrun.lengths import Lengths
from mass.preflight.dryrun.room import StepRows
from small_lms import small_sums

SHORT = SamplingConfig(max_new_tokens=24)
VERIFY = VerifyConfig(solutions=2, sampling=SHORT, least_share=0.7)
PRACTICE = SynthesisConfig(examples=3, sampling=SHORT, verify=VERIFY)


def test_verified_practice_is_that_of_tt_ss_with_less_of_it_used(taught_base: Path) -> None:
    config = EvalConfig(answer=replace(SHORT, temperature=0.0), synthesis=PRACTICE, resamples=50)
    model = load(str(taught_base), config=AdaptConfig(PRACTICE))
    found = evaluate(model, small_sums()[:5], ["base", "tt-ss", "tt-ss-verified"], config=config)
    plain, verified = ([r for r in found.records if r.method == m] for m in ("tt-ss", "tt-ss-verified"))
    used = [0, 0]
    for one, other in zip(plain, verified, strict=True):
        assert one.attempt.record is not None
        assert other.attempt.record is not None
        before, after = one.attempt.record, other.attempt.record
        assert [e.tokens for e in before.examples] == [e.tokens for e in after.examples]
        assert all(
            a.rejected == b.rejected for b, a in zip(before.examples, after.examples, strict=True) if not b.valid
        )
        assert {a.rejected for b, a in zip(before.examples, after.examples, strict=True) if b.valid} <= {
            "",
            "no agreement",
            "too long",
        }
        used = [used[0] + sum(e.valid for e in before.examples), used[1] + sum(e.valid for e in after.examples)]
        spent = sum(e.verification_tokens for e in after.examples)
        assert spent > 0 or not any(e.valid for e in before.examples)
        assert other.attempt.tokens == sum(after.tokens.values())
        assert after.tokens.get("verification", 0) == spent
    assert used[0] > used[1]


@pytest.mark.parametrize(("kind", "rows"), [("math", 24), ("code", None)])
def test_the_forecast_counts_the_solutions_that_are_compared(kind: str, rows: int | None) -> None:
    config = RunConfig(adapt=AdaptConfig(replace(PRACTICE, verify=replace(VERIFY, enabled=True))))
    compared = StepRows(config, Lengths(9, 9, 9, 11, 99, 9, 9, 9), 1, "cpu", kind).compared(12)
    assert (compared and compared.count) == rows
    if compared is not None:
        assert (compared.prompt, compared.counted) == (11, 24)
    off = RunConfig(adapt=AdaptConfig(PRACTICE))
    assert StepRows(off, Lengths(9, 9, 9, 11, 99, 9, 9, 9), 1, "cpu", kind).compared(12) is None
