"""OpenAI's own client, unmodified: sync, async and streaming."""

from __future__ import annotations

import asyncio

import openai
import pytest
from servers import ADAPTING, BASE, PROBLEM, Running

from mass.adaptation.gate import PASSED
from mass.model import Mass

QUESTION = [{"role": "user", "content": PROBLEM}]


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_models_are_listed_with_their_parents(client: openai.OpenAI) -> None:
    found = {one.id: one.model_extra["parent"] for one in client.models.list()}
    assert found == {BASE: None, ADAPTING: BASE, "default": ADAPTING}
    assert client.models.retrieve(ADAPTING).id == ADAPTING


def test_an_adapted_answer_is_that_of_the_library(client: openai.OpenAI, judged: Mass) -> None:
    record = judged.solve(PROBLEM, seed=3).adaptation
    reply = client.chat.completions.create(
        model=ADAPTING, messages=QUESTION, seed=3, extra_body={"mass": {"adapt": "always", "include": ["practice"]}}
    )
    assert record is not None
    assert reply.choices[0].message.content == record.text
    assert reply.choices[0].finish_reason == "stop"
    told = reply.model_extra["mass"]
    assert told["adapted"]
    assert told["gate"]["reason"] == PASSED
    assert told["unadapted"] == [record.unadapted_text]
    assert [one["text"] for one in told["practice"]] == [one.text for one in record.examples]
    assert told["tokens"]["synthesis"] == record.tokens["synthesis"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == told["tokens"]["answer"]
    assert 0 <= told["seconds"]["other"] < told["seconds"]["total"]


def test_a_plain_answer_is_that_of_the_base(client: openai.OpenAI, model: Mass) -> None:
    reply = client.chat.completions.create(model=BASE, messages=QUESTION, logprobs=True, n=2, temperature=1.0, seed=5)
    first, second = reply.choices
    assert first.message.content != second.message.content
    assert not reply.model_extra["mass"]["adapted"]
    assert first.logprobs is not None
    content = first.logprobs.content
    assert content is not None
    assert "".join(one.token for one in content if one.token not in model.lm.tokenizer.all_special_tokens).strip() == (
        first.message.content
    )
    assert all(one.logprob <= 0 for one in content)


def test_completions_continue_a_text(client: openai.OpenAI) -> None:
    text = f"Problem: {PROBLEM}\nSolution:"
    raw = client.completions.create(model=BASE, prompt=text, logprobs=0)
    chat = client.chat.completions.create(model=BASE, messages=QUESTION)
    assert raw.choices[0].text.strip() == chat.choices[0].message.content
    assert raw.choices[0].logprobs is not None
    cut = client.completions.create(model=BASE, prompt=text, stop=["Answer"])
    assert cut.choices[0].text == raw.choices[0].text.partition("Answer")[0]
    short = client.completions.create(model=BASE, prompt=text, max_tokens=2)
    assert short.choices[0].finish_reason == "length"


@pytest.mark.parametrize(("name", "adapt"), [(BASE, "auto"), (ADAPTING, "never"), (ADAPTING, "always")])
def test_the_parts_of_a_stream_are_the_whole_answer(client: openai.OpenAI, name: str, adapt: str) -> None:
    body = {"mass": {"adapt": adapt}}
    whole = client.chat.completions.create(model=name, messages=QUESTION, seed=1, n=2, temperature=0.8, extra_body=body)
    texts, ends, last = ["", ""], {}, None
    for chunk in client.chat.completions.create(
        model=name, messages=QUESTION, seed=1, n=2, temperature=0.8, stream=True,
        stream_options={"include_usage": True}, extra_body=body,
    ):  # fmt: skip
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        last = chunk
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert last is not None
    assert last.usage == whole.usage
    assert last.model_extra["mass"]["adapted"] == (adapt == "always")


def test_a_stream_tells_of_the_practice(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=ADAPTING, messages=QUESTION, seed=0, stream=True,
        extra_body={"mass": {"adapt": "always", "include": ["practice"]}},
    )  # fmt: skip
    told = [(chunk.model_extra or {}).get("mass") for chunk in stream]
    stages = {one["stage"]: one for one in told if one and "stage" in one}
    assert set(stages) == {"unadapted", "written", "learned"}
    assert all(one["loss_before"] is None for one in stages["written"]["practice"])
    assert any(one["loss_before"] > one["loss_after"] for one in stages["learned"]["practice"] if one["weight"])
    assert told[-1]["practice"] == stages["learned"]["practice"]


def test_many_at_once_by_the_async_client(server: Running, judged: Mass) -> None:
    problems = [f"Find the malk of the vector ({i}, {9 - i})." for i in range(1, 9)]
    alone = [judged.solve(problem, seed=0).text for problem in problems]

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(
                    model=ADAPTING,
                    messages=[{"role": "user", "content": problem}],
                    seed=0,
                    extra_body={"mass": {"adapt": "always"}},
                )
                for problem in problems
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == alone


@pytest.mark.parametrize(
    ("values", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, openai.BadRequestError, "messages"),
        ({"extra_body": {"mass": {"adapt": "always"}}}, openai.BadRequestError, "mass.adapt"),
    ],
)
def test_errors_are_the_clients_own(
    client: openai.OpenAI, values: dict[str, object], error: type[openai.APIStatusError], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**{"model": BASE, "messages": QUESTION, "stream": stream, **values})
        assert caught.value.body["param"] == param
