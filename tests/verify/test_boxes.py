"""What the last box holds."""

from __future__ import annotations

import pytest

from mass.verify.boxes import boxed


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed7.", "7"),
        (r"\fbox 7,", "7"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed \dfrac{1}{2}$", r"\dfrac{1}{2}"),
        (r"$\boxed x$", "x"),
        (r"\boxed{-\frac{\sqrt{3}}{2}}", r"-\frac{\sqrt{3}}{2}"),
        (r"\boxed{x = \boxed{7}}", "7"),
        (r"\boxed{\{1\}} and more", r"\{1\}"),
        (r"\boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"$\boxed{1}$ or $\boxed{2}$", "1, 2"),
        (r"$x = \boxed{1}$, $x = \boxed{2}$, and $x = \boxed{3}$", "1, 2, 3"),
        (r"\boxed{5} and \boxed{5}", "5"),
        (r"\boxed{5}. \boxed{6}", "6"),
        (r"\boxed{5} or \boxed{}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5", ""),
        (r"the \boxed notation", ""),
        ("box 7", ""),
        ("", ""),
    ],
)
def test_boxed(text: str, inside: str) -> None:
    assert boxed(text) == inside
