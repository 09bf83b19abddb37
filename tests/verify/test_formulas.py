"""What a formula comes to."""

from __future__ import annotations

import pytest

from mass.verify.formulas import FORMULA, content, right_side


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("5", "5"),
        ("2 + 3 = 5", "5"),
        (r"x &= 2 + 3 \\ &= 5", "5"),
        (r"x &= 2 + 3 \\[4pt] &= 5. \\", "5"),
        (r"2x = 4 \implies x = 2", "2"),
        ("20 = y", "20"),
        (r"\frac{1}{3} \approx 0.33", r"\frac{1}{3}"),
        (r"2\pi r \approx 6.28", "6.28"),
        (r"x \approx 6.28", "6.28"),
        ("3! = 6", "6"),
        ("2!=2", "2"),
        ("x != 2", "x != 2"),
        (
            r"f(x) = \begin{cases} 1 & x = 0 \\ 2 & x = 1 \end{cases}",
            r"\begin{cases} 1 & x = 0 \\ 2 & x = 1 \end{cases}",
        ),
        (r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{3} k"),
        (r"a \le b", r"a \le b"),
        (r"\{x : x = 1\}", r"\{x : x = 1\}"),
        ("x =", "x ="),
        ("", ""),
    ],
)
def test_right_side(formula: str, value: str) -> None:
    assert right_side(formula) == value


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("$5$", "5"),
        ("$$\n5\n$$", "5"),
        (r"\(x = 5\)", "x = 5"),
        (r"\[ x = 5. \]", "x = 5"),
        (r"$ \frac{1}{2} $", r"\frac{1}{2}"),
        (r"\begin{equation} x = 5 \end{equation}", "x = 5"),
        (r"\begin{align*} x &= 4 + 1 \\ &= 5 \end{align*}", "5"),
        (r"$$\begin{aligned} x &= 4 + 1 \\ &= 5 \end{aligned}$$", "5"),
        (r"\begin{gather} a = 1 \\ b = 2 \tag{3} \end{gather}", "2"),
        (r"$\$18$", r"\$18"),
        (r"$1, 2, \ldots$", r"1, 2, \ldots"),
    ],
)
def test_content(text: str, inside: str) -> None:
    match = FORMULA.fullmatch(text)
    assert match is not None
    assert content(match) == inside


@pytest.mark.parametrize("text", ["$5 or $6", "from $5 to $6.50", "$ 5 and some $ 6", r"\$5", "$"])
def test_money_is_no_formula(text: str) -> None:
    assert FORMULA.search(text) is None
