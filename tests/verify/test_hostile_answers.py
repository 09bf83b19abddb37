"""Hostile answers to a mathematical task: each is judged in time, none is taken for right, no worker is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mass.types import Task, Verdict
from mass.verify import check, check_all, math
from mass.verify.pool import Pool

GOLD = Task("p", answer=r"\frac{7919}{3}")
ANSWERS = {
    "a tower of powers": r"9^{9^{9^{9^9}}}",
    "a number of 10^9 digits": r"10^{10^9}",
    "its factorial": r"(10^9)!",
    "a million digits": "7" * 1_000_000,
    "a long fraction": rf"\frac{{{'7' * 400}}}{{{'3' * 400}}}",
    "a huge exponent": "1e999999999",
    "a huge sum": r"\sum_{n=1}^{10^{12}} \frac{1}{n^2}",
    "a huge product": r"\prod_{n=1}^{10^{9}} n",
    "a hard integral": r"\int_0^1 \sin(\sin(\sin(x^x))) dx",
    "fractions in fractions": r"\frac{1}{" * 90 + "x" + "}" * 90,
    "deeper than any stack": r"\frac{1}{" * 20_000 + "x" + "}" * 20_000,
    "roots in roots": r"\sqrt{" * 120 + "2" + "}" * 120,
    "brackets": "(" * 450 + "7919" + ")" * 450,
    "half a million braces": "{" * 500_000,
    "boxes that never close": r"\boxed{" * 50_000,
    "a power of a sum": r"(x+y+z+w)^{5000}",
    "code": "__import__('os').system('touch MARK')",
    "code in mathematics": r"\operatorname{exec}(\text{open('MARK','w')})",
    "a file to read": r"\input{/etc/passwd}",
    "a command to write": r"\immediate\write18{touch MARK}",
    "Arabic digits": "٧٩١٩/٣",
    "superscripts": "⁷⁹¹⁹⁄₃",
    "full width": "7919/4",
    "circled digits": "⑦⑨①⑨",
    "a null byte": "7919\0/3",
    "text that turns round": "\u202e3/9197",
    "half a surrogate pair": "\ud800",
    "not a number": r"\text{nan}",
    "infinity": r"\infty",
    "nothing over nothing": r"\frac{0}{0}",
    "both": r"\frac{7919}{3} \text{ or } \frac{7920}{3}",
    "a list of guesses": ",".join(rf"\frac{{{n}}}{{3}}" for n in range(7900, 7930)),
    "everything": r"x \in \mathbb{R}",
    "an interval around it": "(2639, 2640)",
    "a variable": "x",
    "a million words": "seven " * 200_000,
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Verdict]]:
    mark = tmp_path_factory.mktemp("outside") / "mark"
    with pytest.MonkeyPatch.context() as patch:
        pool = Pool(size=2, timeout_s=1)
        patch.setattr(math, "POOL", pool)
        texts = [rf"So $\boxed{{{answer.replace('MARK', str(mark))}}}$" for answer in ANSWERS.values()]
        yield dict(zip(ANSWERS, check_all([(GOLD, text) for text in texts]), strict=True))
        assert not mark.exists()
        assert pool.equal("x^2-1", "(x-1)(x+1)")
        pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_passes(verdicts: dict[str, Verdict], name: str) -> None:
    verdict = verdicts[name]
    assert verdict.correct is not True, verdict
    assert verdict.reason
    assert len(verdict.reason) < 1000
    assert "crashed:" not in verdict.reason
    if verdict.correct is None:
        assert "timed out" in verdict.reason or "failed" in verdict.reason or "math-verify crashed" in verdict.reason


def test_choices_too() -> None:
    task = Task("p", answer="B", verifier="choice")
    for text in ("A or B", "ABCD", "(A) (B) (C)\n(D)", "Ⓑ", "В", "b" * 10**6, "\\boxed{A,B}", "not B, but (C)"):
        assert check(task, text).correct is not True, text


def test_a_worker_has_no_powers() -> None:
    pool = Pool(size=1)
    pool.equal("x", "x+0")
    (worker,) = pool._workers
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    pool.close()
    if not os.path.exists("/sys/kernel/security"):
        pytest.skip("this kernel says nothing of its security modules")
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
