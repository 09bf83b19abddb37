"""A program and the tests that were written with it: found in the text, and run with the program's own rights."""

from __future__ import annotations

import pytest

from mass.verify import asserted
from mass.verify.asserted import tests_in as found_in

DOUBLE = "```python\ndef double(x):\n    return 2 * x\n```"


def test_the_lines_are_found_in_any_markup_each_once() -> None:
    text = (
        "Write double. It should pass:\n\nassert double(2) == 4\n- `assert double(0) == 0`\n"
        "  assert double(2) == 4\nWe assert that it works.\n2. assert (double(1) == 2)\nassertion == 3"
    )
    assert found_in(text) == ("assert double(2) == 4", "assert double(0) == 0", "assert (double(1) == 2)")


def test_the_first_text_with_tests_decides_and_none_may_have_some() -> None:
    assert found_in("no tests", "assert f(1)\nassert f(2)") == ("assert f(1)", "assert f(2)")
    assert found_in("assert g(1)", "assert f(1)") == ("assert g(1)",)
    assert found_in("none", "") == ()
    assert len(found_in("\n".join(f"assert f({i})" for i in range(50)))) == asserted.MAX_TESTS


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        (DOUBLE, ["assert double(2) == 4", "assert double(-1) == -2"], True),
        (DOUBLE, ["assert double(2) == 4", "assert double(3) == 7"], False),
        ("```python\ndef double(x):\n    return x +\n```", ["assert double(2) == 4"], False),
        (DOUBLE, ["assert True"], False),
        (DOUBLE, ["assert double(2) == 4 and ("], False),
        ("import sys\ndef double(x):\n    return 4\nsys.exit(0)", ["assert double(2) == 4"], False),
        ("def double(x):\n    while True: pass", ["assert double(2) == 4"], False),
        (DOUBLE, [], None),
    ],
    ids=["right", "wrong", "no program", "calls nothing", "no test", "exits", "never ends", "none"],
)
def test_a_program_passes_all_its_tests_or_fails(program: str, tests: list[str], expected: bool | None) -> None:
    assert asserted.check(program, tests).correct is expected


def test_tests_have_no_more_rights_than_the_program() -> None:
    tests = ["assert double(2) == 4", "assert not __import__('os').path.exists('/root/.ssh') and open('/etc/shadow')"]
    assert asserted.check(DOUBLE, tests).correct is False
