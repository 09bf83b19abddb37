"""From lm-evaluation-harness's requests to problems, without the harness: no gold, no shots, one document once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.config import SamplingConfig
from mass.errors import ConfigError, DataError
from mass.evaluation.lm_eval.arguments import AUTO_BATCH, arguments_of
from mass.evaluation.lm_eval.framing import FORMS, prompts
from mass.evaluation.lm_eval.problem import FRAMES, cut, unframed
from mass.evaluation.lm_eval.requests import Continuation, Document, continuation_of, documents_of, rounds
from mass.types import Task

SHOTS = [Task("What is 2 + 2?", "2 + 2 = 4\n#### 4", "4"), Task("Half of 10?\n\nExactly.", "10 / 2 = 5\n#### 5", "5")]
PROBLEM = "A robe takes 2 bolts\n\nof blue.\nA. 1\nB. 3"


@dataclass(frozen=True)
class Asked:
    """A request as the harness makes them."""

    args: tuple[Any, ...]
    doc: Mapping[str, Any]
    task_name: str = "sums"
    doc_id: int = 0


@dataclass(frozen=True)
class Asks:
    template: str = "Question: {question}\nAnswer:"

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        return self.template.replace("{question}", doc["question"])


class Sealed(dict[str, Any]):
    """A document whose gold must not be looked at, not even by who goes through all of it."""

    def __getitem__(self, name: str) -> Any:
        assert name != "answer", "the gold was read"
        return super().__getitem__(name)

    def _sealed(self, *_: Any) -> Any:
        raise AssertionError("the gold was read")

    keys = values = items = __iter__ = copy = _sealed  # type: ignore[assignment]


def request(question: str, number: int = 0, shots: str = "", **changes: Any) -> Asked:
    doc = Sealed(question=question, answer="42")
    return Asked((f"{shots}Question: {question}\nAnswer:", changes.pop("second", {})), doc, doc_id=number, **changes)


# --- the problem


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shots", [[], SHOTS])
def test_the_problem_of_each_known_data_set_is_found_among_its_shots(name: str, shots: list[Task]) -> None:
    asked = prompts(name, shots, "abstract_algebra").render_solve(PROBLEM)
    text = FORMS[name].problem.replace("{problem}", PROBLEM)
    found = cut(text, asked)
    assert found == text
    assert unframed(found) == PROBLEM
    if shots:
        assert "2 + 2" in asked
        assert len(asked) > len(text)


def test_of_several_places_the_last_is_the_documents() -> None:
    """A shot may be the very document that is asked."""
    text = "Question: Find x.\nAnswer:"
    asked = f"{text} 3\n\n{text}"
    assert cut(text, asked) == text
    assert cut("Find x.\nAnswer: 3\n\nQuestion: Find x.\nAnswer:", asked) is not None
    assert cut(" \n" + text + "\n", asked) == text, "as a chat template trims it"
    assert cut("Find y.", asked) is None
    assert cut("  ", asked) is None


@given(st.text(min_size=1).filter(lambda text: text.strip() == text), st.sampled_from(FRAMES))
def test_a_frame_is_taken_off_and_nothing_else(problem: str, frame: str) -> None:
    found = unframed(frame.replace("{problem}", problem))
    assert found
    assert found in frame.replace("{problem}", problem)
    plain = not any(half.strip() in problem for one in FRAMES for half in one.split("{problem}") if half.strip())
    if plain:
        assert found == problem


def test_a_frame_without_a_problem_is_left() -> None:
    assert unframed("Question: \nAnswer:", ["Question: {problem}\nAnswer:"]) == "Question: \nAnswer:"
    assert unframed("Goal: {x}\n", ["Goal: {problem}"]) == "{x}"


# --- documents


def test_requests_of_a_document_are_one_document_and_no_gold_is_read() -> None:
    shots = "Question: What is 1 + 1?\nAnswer: 2\n\n"
    asked = [
        request("Find x.", 7, shots, second=" A"),
        request("Find y.", 2, shots, second=" A"),
        request("Find x.", 7, shots, second=" B"),
        request("Find x.", 7, shots, task_name="others"),
    ]
    found = documents_of(asked, {"sums": Asks(), "others": Asks()})
    assert found == [
        Document(("sums", 7), "Find x.", (0, 2)),
        Document(("sums", 2), "Find y.", (1,)),
        Document(("others", 7), "Find x.", (3,)),
    ]


def test_without_practice_no_task_is_needed() -> None:
    assert documents_of([request("Find x.")], {}, practise=False) == [Document(("sums", 0), "", (0,))]


@pytest.mark.parametrize(
    ("tasks", "error", "says"),
    [
        ({}, ConfigError, r"^the task 'sums' of a request is not known to mass; run the harness by `mass lm-eval`"),
        ({"sums": Asks("{question}?")}, DataError, r"^document 3 of task 'sums' is not in its request \('Find x\.\?'"),
    ],
)
def test_what_cannot_be_found_is_an_error(tasks: dict[str, Asks], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        documents_of([request("Find x.", 3)], tasks)


def test_a_task_that_asks_several_texts_is_an_error() -> None:
    @dataclass(frozen=True)
    class Which:
        answer: int = 1
        config: Any = field(default=None)

        def doc_to_text(self, doc: Any) -> int:  # noqa: ARG002
            return self.answer

    with pytest.raises(DataError, match=r"^task 'sums' asks each document as several texts"):
        documents_of([request("Find x.")], {"sums": Which()})


def test_rounds_ask_each_document_once_and_in_one_way() -> None:
    documents = [Document(("a", 0), "", (0, 1, 4)), Document(("a", 1), "", (2,)), Document(("b", 0), "", (3,))]
    assert list(rounds(documents, lambda place: place == 3)) == [[(0, 0), (1, 2)], [(2, 3)], [(0, 1)], [(0, 4)]]
    assert list(rounds([], str)) == []


# --- generation arguments


def test_generation_is_read_as_the_harness_reads_it() -> None:
    greedy = {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.7}
    assert continuation_of(greedy, 256) == Continuation(("Question:", "</s>"), SamplingConfig(256, 0.0))
    assert continuation_of({"until": "\n\n", "max_new_tokens": 9}, 256) == Continuation(
        ("\n\n",), SamplingConfig(9, 0.0)
    )
    assert continuation_of({"temperature": 0.6, "top_p": 0.9}, 5).sampling == SamplingConfig(5, 0.6, 0.9)
    assert continuation_of({"do_sample": True}, 5).sampling.temperature == 1.0
    assert continuation_of({"max_tokens": 3, "max_gen_toks": 4}, 5).sampling.max_new_tokens == 4
    with pytest.raises(ConfigError, match=r"^generation argument top_k=5 is none that --model mass takes; did you"):
        continuation_of({"top_k": 5}, 256)


# --- model arguments


def test_model_arguments() -> None:
    found = arguments_of(
        {"pretrained": "tiny-terms", "adapt": "False", "steps": "0", "examples": 3, "max_batch_size": None}
    )
    assert (found.pretrained, found.adapt, found.steps, found.examples, found.batch_size) == (
        "tiny-terms",
        False,
        0,
        3,
        1,
    )
    assert arguments_of({"batch_size": "auto:4"}).batch_size == AUTO_BATCH
    assert arguments_of({"device": "cuda:0", "checkpoint": None}).device == "auto"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("chekpoint", "a", r"^--model_args has chekpoint=a, .* did you mean 'checkpoint'\?$"),
        ("steps", "two", r"^steps is 'two'; expected a whole number; change it in --model_args$"),
        ("adapt", 1, r"^adapt is 1; expected true or false"),
        ("batch_size", 0, r"^batch_size is 0; expected at least 1"),
        ("examples", 0, r"^examples is 0; expected at least 1"),
    ],
)
def test_a_wrong_model_argument_is_an_error(name: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        arguments_of({name: value})
