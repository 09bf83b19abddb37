"""Answers in ordinary prose, as small instruct models write them, and what a reader takes for the answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.types import Task
from mass.verify import check, prose
from mass.verify.extract import MAX_MARKS, final_answer

READ = [
    ("Answer:\n\n$$\n\\frac{3}{4}\n$$", r"\frac{3}{4}"),
    ("The result is\n\\[\n\\boxed{7}\n\\]", "7"),
    ("We find\n\\begin{equation}\nA = 12\\pi\n\\end{equation}\nas wanted.", r"12\pi"),
    ("\\begin{gather*}\n2x = 8 \\\\\nx = 4\n\\end{gather*}", "4"),
    ("$$\\begin{aligned}\nS &= 1 + 2 \\\\\n  &= 3.\n\\end{aligned}$$", "3"),
    (r"\[ 3x = 12 \implies x = 4 \]", "x = 4"),
    (r"Hence $f(x)=\begin{cases}1 & x>0\\0 & x\le 0\end{cases}$.", r"\begin{cases}1 & x>0\\0 & x\le 0\end{cases}"),
    ("Therefore, the area of the triangle is 24 square units.", r"24\text{ square units}"),
    ("So, the total cost is $45.50.", "$45.50"),
    ("Therefore, Janet makes $18 every day at the farmers' market.", "$18"),
    ("Thus, it takes 3 hours and 20 minutes.", r"3\text{ hours} and 20\text{ minutes}"),
    ("The probability is 3/8.", "3/8"),
    ("The probability is approximately 0.375 (or 37.5%).", "0.375"),
    ("In total, they have 1,250 stickers.", "1,250"),
    ("So she needs 2 more.", "2"),
    ("Answer: 42 students passed.", "42"),
    ("Answer: Maria read 42 pages on Monday.", "42"),
    ("Answer: Out of 60 pages, Maria read 42.", "42"),
    ("Final answer: the train arrives at 7:45 PM.", r"7:45\text{ PM}"),
    ("The final answer is: $x = 3$ or $x = -3$.", "3 or -3"),
    ("The answer is at most 5.", "at most 5"),
    ("The answer is less than 10.", "less than 10"),
    ("Answer: it is 12.5% of the total.", "12.5%"),
    ("The speed is 60 miles per hour.", r"60\text{ miles per hour}"),
    ("The speed is 60 km/h.", r"60\text{ km/h}"),
    ("The density is 2.5 g/cm^3.", r"2.5\text{ g/cm}^3"),
    ("The volume is 27 cubic inches.", r"27\text{ cubic inches}"),
    ("The acceleration is 9.8 m/s².", r"9.8\text{ m/s}^2"),
    ("The population grew to 3 million.", r"3\text{ million}"),
    ("They sold 4 dozen eggs.", r"4\text{ dozen}"),
    ("**Final Answer: 17**", "17"),
    ("**Final Answer:** $17$ dollars", r"17\text{ dollars}"),
    ("### Final Answer\n\n17", "17"),
    ("## Answer\n$\\dfrac{2}{3}$", r"\dfrac{2}{3}"),
    ("Final Answer:\n\n**17**", "17"),
    ("#### EUR 1,200", "1,200"),
    ("#### $1,200", "$1,200"),
    ("#### 17 apples", "17 apples"),
    ("#### She has 17 apples", "17"),
    ("#### Step 1: add 4 and 5\n4 + 5 = 9\n#### Step 2: halve it\nThat gives 4.5", "4.5"),
    ("The number of ways is **120** (that is 5!).", "120"),
    ("There are **12** red and 7 blue ones.", "12"),
    ("So the answer should be 31.", "31"),
    ("I get 31 as the answer.", "31"),
    ("Hence 31 is our final answer.", "31"),
    ("Answer = 31", "31"),
    ("Answer - 31", "31"),
    ("Answer: -31", "-31"),
    ("answer: 31, since 62/2 = 31", "31"),
    ("The answer is 31, so we are done with 4 steps.", "31"),
    ("The answer is 31. I checked 2 cases.", "31"),
    ("The answer is 31 (not 32).", "31"),
    ("The answer is 31 rather than 32.", "31"),
    ("The answer is not 32 but 31.", "31"),
    ("The correct answer isn't 32, it's 31.", "31"),
    ("The answer is exactly $31$.", "31"),
    ("The answer is roughly 31.", "31"),
    ("Answer: about 31 days", "31 days"),
    (r"Answer: $31\text{ days}$", r"31\text{ days}"),
    ("La respuesta final es 31.", "31"),
    ("Réponse : 31", "31"),
    ("Die Antwort lautet 31.", "31"),
    ("答案：31", "31"),
    ("所以答案是31。", "31"),
    ("Ответ: 31", "31"),
    ("<answer>31</answer>", "31"),
    ("<think>maybe \\boxed{30}</think>\nThe answer is 31.", "31"),
    (r"\boxed{\text{Ann has 31 coins}}", "31"),
    (r"\boxed{31 \text{ coins}}", r"31 \text{ coins}"),
    (r"\fbox 31", "31"),
    (r"Either \boxed{1} or \boxed{2}.", "1, 2"),
    (r"\boxed{1}. No, wait: \boxed{2}.", "2"),
    ("In 2019 there were 300 of them.", "300"),
    ("There were 300 of them in 2019.", "300"),
    ("She saved 25 dollars, which is 5 more than 20.", r"25\text{ dollars}"),
    ("Each gets 6 cookies since 24/4 = 6 cookies.", "6"),
    ("The sum of the digits of 2^{10} is 7.", "7"),
    ("The value of $n$ is 13.", "13"),
    ("The minimum occurs at $x = 2$, giving $f(2) = -1$.", "-1"),
    ("So 3 + 4 * 2 = 11 apples", "11"),
    ("x = 3, y = 4, so x + y = 7.", "7"),
    ("Total: 5 + 6 = 11", "11"),
    ("Total = 11 kg", r"11\text{ kg}"),
    ("1. Add: 5 + 6 = 11\n2. Halve: 11 / 2 = 5.5", "5.5"),
    ("The ratio of boys to girls is 3:2.", "3:2"),
    ("The coordinates are (3, -2).", "(3, -2)"),
    ("The interval is [0, 5).", "[0, 5)"),
    ("The solution set is {1, 2, 3}.", "{1, 2, 3}"),
    ("The base is 3 and the height is 4, so the area is 6.", "6"),
    ("Tom has 5 marbles left.\n\nNote: he started with 12.", "5"),
    ("Tom has 5 marbles left.\n\nCheck: 5 + 7 = 12.", "5"),
    ("No number here", None),
    ("The 3rd one is it", None),
    ("It's a 10-year plan", None),
    ("The answer is Paris", "Paris"),
    ("Answer: no real solutions", "no real solutions"),
    ("Answer: Team 3", "Team 3"),
    ("Answer: 3 red and 2 blue", "3 red and 2 blue"),
    ("Answer: 5 feet 3 inches", "5 feet 3 inches"),
    ("Answer: 5 and a half", "5 and a half"),
    ("Answer: x^2 + 3x - 1", "x^2 + 3x - 1"),
    ("Answer: y = 2x + 1", "y = 2x + 1"),
    ("Answer: 2, 3, and 5", "2, 3, and 5"),
    (r"Answer: \(\frac{1}{2}\) of the cake", r"\frac{1}{2}"),
    (r"The final answer is $\boxed{9}$. I hope it is correct.", "9"),
    (r"The answer is \$31.", r"\$31"),
    (r"So the perimeter is $4\sqrt{5}$ cm.", r"4\sqrt{5}\text{ cm}"),
    (r"So the angle is $60^\circ$.", r"60^\circ"),
    ("So the angle is 60°.", "60°"),
    ("So the angle is 60 degrees.", r"60\text{ degrees}"),
    ("The change is -5.", "-5"),
    ("The change is −5 points.", "−5"),
    ("It comes to 1.5 × 10^6.", "1.5 × 10^6"),
    ("It comes to 2/3 of a cup.", "2/3"),
    ("It comes to 1 1/2 cups.", r"1 1/2\text{ cups}"),
    ("Your answer is 31 euros. Thanks!", "31 euros"),
    ("So the final result is:\n\n$$\\sum_{k=1}^{4} k = 10$$", "10"),
    (r"Thus $\sin\theta = \frac{3}{5}$.", r"\frac{3}{5}"),
    ("The slope is -2/3.", "-2/3"),
    ("It has exactly two solutions, 3 and 7.", "3 and 7"),
    (r"Therefore, $a + b + c = 1 + 2 + 3 = \boxed{6}$.", "6"),
    ("**Answer**\n\nThe farmer has **14** cows left.", "14"),
    (r"\textbf{Answer:} 14", "14"),
    ("Answer: `14`", "14"),
    ("Answer: ~14", "14"),
    ("Answer: ≈ 14", "14"),
    ("So the answer is $$14$$", "14"),
    ("Therefore the company made a profit of $2.5 million.", r"$2.5\text{ million}"),
    ("Therefore, 40% of the class passed.", "40%"),
    ("It lasts 90 min.", r"90\text{ min}"),
    ("It weighs 4.2kg", r"4.2\text{ kg}"),
    ("So I would say 14?", "14"),
    ("Result: 14", "14"),
    ("Therefore n=14", "14"),
    ("Therefore n = 14.", "14"),
    ("The remainder when 17 is divided by 5 is 2.", "2"),
    ("Of the 30 students, 18 are girls.", "18"),
    ("After 6 months he will have $900.", "$900"),
    ("He will have $900 after 6 months.", "$900"),
    ("The roots are $x = 2$ or $x = 5$.", "2 or 5"),
    ("So the solutions are 2, 3 and 7.", "2, 3 and 7"),
    ("Thus Joy needs 120 / 24 = 5 hours to read 120 pages.", r"5\text{ hours}"),
    ("So he saves $1600 - $1360 = $240 in 20 days.", "$240"),
    ("That is 6/3 = 2 hours, which is 120 minutes.", r"120\text{ minutes}"),
    ("So 160 = Y.", "160"),
    (r"Thus $2!\cdot 5=10$.", "10"),
    (r"There are $7$ triples in all such that $a < b < c$.", "7"),
    ("Then $x=2$, $y=3$ and $x+y=5$.", "5"),
    ("There are 6 million of them.", r"6\text{ million}"),
    ("The wall is 5 feet 3 inches high.", r"5\text{ feet} 3\text{ inches}"),
    ("The answer is $6$ million.", r"6\text{ million}"),
    ("The answer is $5$ feet $3$ inches.", r"5\text{ feet} 3\text{ inches}"),
    ("The answer is $2$ or $3$.", "2 or 3"),
    ("The answer is 5 less than x", "5 less than x"),
    ("She read 12 of the 30 pages.", "12"),
]


@pytest.mark.parametrize(("text", "answer"), READ)
def test_a_reader_and_the_extraction_agree(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("5", "The answer is greater than 5."),
        ("5", "The answer is at least 5."),
        ("5", "The answer is not 5."),
        ("5", "The answer is not 5 but 6."),
        ("6", "The answer is 5, not 6."),
        ("12", "She has 5 of the 12 apples."),
        ("2019", "There were **73** owners (out of 2019)."),
        ("3", "The root is 2 or 3."),
        ("3", r"\boxed{2} or \boxed{3}"),
        ("3", "Answer: 2 and 3"),
        ("3", "It is x^3"),
        ("2", "The area is 9 cm^2."),
        (r"5\text{ m}", "The length is 5 cm."),
        ("7", "So n + 1 = 7, hence n = 6."),
    ],
)
def test_no_word_that_makes_another_value_is_dropped(gold: str, text: str) -> None:
    assert check(Task("p", answer=gold), text).correct is False


@pytest.mark.parametrize("verifier", ["math", "exact"])
@pytest.mark.parametrize(
    "text", ["She walked 5 miles.", "So it costs 2 + 3 = 5 dollars.", "Answer: She has 5 hours.", "It weighs $5$ kg."]
)
def test_a_unit_does_not_hide_the_number(verifier: str, text: str) -> None:
    assert check(Task("p", answer="5", verifier=verifier), text).correct is True
    assert check(Task("p", answer="6", verifier=verifier), text).correct is False


SENTENCES = ["So she has {} left.", "**{}**", "Answer: it is {}.", "Therefore, the total is {} in the end."]


@given(st.sampled_from(SENTENCES), st.integers(0, 10**9))
def test_the_only_number_is_found(sentence: str, number: int) -> None:
    assert check(Task("p", answer=str(number), verifier="exact"), sentence.format(number)).correct is True


@given(st.text(alphabet="aI5 .,;:()$*=<>/%\\'-\n2x", max_size=80))
def test_any_text_is_read(text: str) -> None:
    value = prose.stated(text)
    assert value is None or (value.text and 0 <= value.start < value.end <= len(text))


def test_marks_are_read_from_the_last_one_back() -> None:
    assert final_answer("Answer: 3\n" + "The answer is correct.\n" * (MAX_MARKS - 1)) == "3"


UNITS = (
    *(
        "the answer is not ",
        "5 and ",
        "5, ",
        "(5, ",
        "**5** ",
        "$5$ or ",
        "\\[ x = ",
        "$$",
        "5 cm ",
        "than 5 ",
        "x = 5; ",
    ),
    *("\\begin{align} ", "is the answer ", "<answer>", "\\boxed{5} or ", "答案", "which is 5 than ", "#### step\n"),
)


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_text(unit: str) -> None:
    text = unit * (500_000 // len(unit))
    begin = time.process_time()
    final_answer(text)
    assert time.process_time() - begin < 5
