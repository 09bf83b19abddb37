"""The model class for lm-evaluation-harness without the harness: one adaptation a document, answers as `Mass` gives
them, likelihoods as a plain forward pass gives them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lm_eval_requests import Asked, Asks

from mass.adaptation import adapt
from mass.adaptation.checkpoint import init_state
from mass.adaptation.origin import UNTRAINED
from mass.config import AdaptConfig, InnerConfig, SamplingConfig, SynthesisConfig
from mass.errors import ConfigError, DataError, ModelError, RunError
from mass.evaluation.lm_eval import practice as practices
from mass.evaluation.lm_eval import registration
from mass.evaluation.lm_eval.asking import Scored, TextSampler
from mass.evaluation.lm_eval.model import MassModel
from mass.evaluation.lm_eval.practice import TOO_LONG
from mass.lm import LM
from mass.model import Mass
from mass.seeds import derive
from small_lms import full_logits, make_lm, random_adapter, small_sums

OWN = "Problem: {question}\nSolution:"
"""Our own prompt as a task's text, so that a request is what `mass.solve` asks."""
UNTIL = ["\nProblem:", "\nSimilar problem:"]
Made = Callable[..., MassModel]


class Cache:
    """Stands for the harness's cache of answers."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, args: Any, answer: Any) -> None:
        self.kept.append((kind, args, answer))


class Base:
    """Stands for the harness's base class."""

    def __init__(self) -> None:
        self.cache_hook = Cache()


class Model(MassModel, Base):
    pass


@pytest.fixture(scope="module")
def mass(lm: LM) -> Mass:
    """A model that answers short, and after practice at this rate otherwise than before."""
    config = AdaptConfig(
        synthesis=SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=32)),
        inner=InnerConfig(learning_rate=1.0),
        answer=SamplingConfig(max_new_tokens=14, temperature=0.0),
    )
    return Mass(lm, init_state(lm, config, 0), config, UNTRAINED, state_seed=0)


@pytest.fixture
def made(mass: Mass) -> Made:
    def make(**given: Any) -> MassModel:
        model = Model(mass, max_gen_toks=14, **given)
        model.tasks = {"sums": Asks(OWN), "shots": Asks(OWN)}
        return model

    return make


def ask(number: int, *more: Any, shots: str = "", task: str = "sums") -> Asked:
    problem = small_sums()[number].problem
    return Asked((f"{shots}{OWN.replace('{question}', problem)}", *more), {"question": problem}, task, number)


def generations(numbers: range, **changes: Any) -> list[Asked]:
    return [ask(number, {"until": UNTIL, "do_sample": False}, **changes) for number in numbers]


def choices(numbers: range, **changes: Any) -> list[Asked]:
    return [ask(number, f" {a}+{a}={a + a}", **changes) for number in numbers for a in (1, 2, 3, 4)]


# --- generation


def test_an_answer_is_that_of_solve(mass: Mass, made: Made) -> None:
    answers = made().generate_until(generations(range(5)))
    alone = [mass.solve(t.problem, seed=derive(0, "eval", n)) for n, t in enumerate(small_sums()[:5])]
    assert [answer.strip() for answer in answers] == [solution.text for solution in alone]
    assert len(set(answers)) > 2, "they differ from problem to problem"
    plain = made(adapt=False).generate_until(generations(range(5)))
    assert [answer.strip() for answer in plain] == [mass.solve(t.problem, adapt=False).text for t in small_sums()[:5]]
    assert plain != answers, "adaptation matters here, so the first comparison means something"


def test_adapters_are_those_of_solve_bit_for_bit(mass: Mass, made: Made) -> None:
    model = made()
    model.generate_until(generations(range(3)))
    for number, entry in enumerate(model.practice.entries.values()):
        record = mass.solve(small_sums()[number].problem, seed=derive(0, "eval", number)).adaptation
        assert record is not None
        assert entry.adaptation is not None
        assert entry.adaptation.adapter_hash == record.adapter_hash
        assert entry.adaptation.base_fingerprint == record.base_fingerprint


@pytest.mark.parametrize("size", [2, 5])
def test_documents_side_by_side_answer_as_alone(made: Made, size: int) -> None:
    alone, together = made(), made(batch_size=size)
    assert together.generate_until(generations(range(5))) == alone.generate_until(generations(range(5)))
    scores = [model.loglikelihood(choices(range(2))) for model in (alone, together)]
    for one, other in zip(*scores, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]


def test_shots_change_the_answer_and_not_the_practice(made: Made) -> None:
    """What stands before the document is read when answering; the adapter is the same bit for bit."""
    bare, shown = made(), made()
    shots = "Problem: Compute 3 + 3.\nSolution: 7\n\n" * 2
    asked, told = generations(range(5)), generations(range(5), shots=shots)
    without, withs = bare.generate_until(asked), shown.generate_until(told)
    hashes = [[e.adaptation.adapter_hash for e in m.practice.entries.values() if e.adaptation] for m in (bare, shown)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 5
    assert without != withs
    assert not any("3 + 3" in entry.problem for entry in shown.practice.entries.values())


def test_one_practice_for_all_requests_of_a_document(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    practised: list[list[str]] = []
    right = practices.practise

    def practise(lm: LM, state: Any, problems: list[str], *rest: Any, **options: Any) -> Any:
        practised.append(list(problems))
        return right(lm, state, problems, *rest, **options)

    monkeypatch.setattr(practices, "practise", practise)
    model = made(batch_size=2)
    answers = model.loglikelihood([*choices(range(3)), choices(range(1))[0]])
    problems = [task.problem for task in small_sums()[:3]]
    assert practised == [problems[:2], problems[2:]]
    assert answers[-1] == answers[0], "asked again, as the harness does to fill the shares of several processes"
    kept = [entry.adaptation for entry in model.practice.entries.values()]
    model.generate_until(generations(range(2)))
    assert practised[2:] == [problems[:2]], "adapted again,"
    assert [entry.adaptation for entry in model.practice.entries.values()] == kept, "on the same practice"


def test_the_same_document_of_two_tasks_is_two(made: Made) -> None:
    model = made()
    model.generate_until([*generations(range(1)), *generations(range(1), task="shots")])
    assert list(model.practice.entries) == [("sums", 0), ("shots", 0)]


def test_repeated_samples_differ_and_repeat(made: Made) -> None:
    asked = [ask(0, {"until": UNTIL, "do_sample": True, "temperature": 1.5})] * 6
    answers = made().generate_until(asked)
    assert len(set(answers)) > 1
    assert made().generate_until(asked) == answers
    assert made(seed=1).generate_until(asked) != answers


def test_requests_that_stop_differently_are_asked_apart(made: Made) -> None:
    long, short = ask(0, {"until": UNTIL}), ask(1, {"until": ["+"], "max_gen_toks": 3})
    both = made(batch_size=2).generate_until([long, short])
    assert both == [made().generate_until([one])[0] for one in (long, short)]
    assert "+" not in both[1]


def test_a_text_that_does_not_fit_is_cut_from_the_left(made: Made) -> None:
    shots = "Problem: Compute 1 + 1.\nSolution: 2\n\n" * 40
    model = made()
    (answer,) = model.generate_until(generations(range(1), shots=shots))
    assert answer
    assert model.asking.cut == 1
    with pytest.raises(ConfigError, match=r"^256 tokens are to be generated, and '.*' reads 256; give fewer"):
        made().generate_until([ask(0, {"max_gen_toks": 256})])


def test_a_problem_that_is_too_long_is_answered_unadapted(made: Made) -> None:
    problem = "Compute 1 + 2. " * 80
    long = Asked((OWN.replace("{question}", problem), {"until": UNTIL}), {"question": problem}, "sums", 5)
    model, plain = made(batch_size=2), made(adapt=False)
    answers = model.generate_until([long, *generations(range(1))])
    assert answers[0] == plain.generate_until([long])[0]
    assert answers[1] == made().generate_until(generations(range(1)))[0]
    assert model.get_model_info()["mass"]["fallbacks"] == {TOO_LONG: 1}
    assert model.get_model_info()["mass"]["adapted"] == 1


# --- likelihoods


def reference(lm: LM, context: list[int], tokens: list[int], adapter: Any) -> tuple[float, bool]:
    batch = lm.batch([(context, tokens)])
    logprobs = full_logits(lm, batch, adapter)[0].double().log_softmax(-1)[len(context) - 1 : -1]
    wanted = torch.tensor(tokens)
    return float(logprobs.gather(1, wanted[:, None]).sum()), bool((logprobs.argmax(-1) == wanted).all())


@pytest.mark.parametrize("stacked", [True, False])
def test_likelihoods_are_those_of_a_forward_pass(stacked: bool) -> None:
    """Choices of one token share a row; others do not; greedy or not."""
    lm = make_lm("Llama")
    stack = random_adapter(lm, 1, 2)
    asking, asked = TextSampler(lm), list[Scored]()
    for which, context in ((0, [3, 4, 5]), (1, [6, 7]), (0, [3, 4, 5])):
        adapter = {n: t[which] for n, t in stack.items()}
        likely = full_logits(lm, lm.batch([(context, [1])]), adapter)[0, len(context) - 1].argmax()
        for tokens in ([8], [9], [8, 9], [8, 10], [8, 10, 11], [int(likely)]):
            asked.append(Scored(tuple(context), tuple(tokens), which if stacked else 0))
    asked.append(Scored((1, 2), (), 0))
    adapter = stack if stacked else {n: t[0] for n, t in stack.items()}
    found = asking.likelihoods(asked, adapter)
    assert found.pop() == (0.0, True)
    for scored, (total, greedy) in zip(asked, found, strict=False):
        own = {n: t[scored.weights] for n, t in stack.items()}
        expected = reference(lm, list(scored.context), list(scored.tokens), own)
        assert total == pytest.approx(expected[0], abs=1e-9)
        assert greedy == expected[1]
    assert any(greedy for _, greedy in found)


def test_choices_of_one_token_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = make_lm("Llama"), list[int]()
    right = lm.predictions
    monkeypatch.setattr(lm, "predictions", lambda batch, *rest: rows.append(len(batch)) or right(batch, *rest))
    TextSampler(lm).likelihoods([Scored((1, 2), (3,)), Scored((1, 2), (4,)), Scored((1, 2), (5, 6))], None)
    assert rows == [2]
    lm.decode_rows = 1
    TextSampler(lm).likelihoods([Scored((1, 2), (3,)), Scored((1, 2), (4,)), Scored((1, 2), (5, 6))], None)
    assert rows == [2, 1, 1]


def test_space_before_a_continuation_is_its_own(lm: LM) -> None:
    asking = TextSampler(lm)
    one, other = asking.encode_pair("Compute 1 + 2. ", "3"), asking.encode_pair("Compute 1 + 2.", " 3")
    assert one == other
    assert lm.tokenizer.decode(one[1]) == " 3"
    three = lm.tokenizer("3", add_special_tokens=False)["input_ids"]
    assert asking.encode_pair("", "3") == ([asking.prefix_id], three)
    begun = lm.tokenizer.decode([asking.prefix_id])
    assert asking.encode(f"{begun}1").count(asking.prefix_id) == 1


READS_16 = functools.cache(lambda: make_lm("Llama", max_position_embeddings=16))


@settings(max_examples=40)
@given(st.integers(1, 90))
def test_windows_predict_each_token_once(count: int) -> None:
    lm = READS_16()
    text = "".join(str(i % 10) for i in range(count))
    tokens = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = TextSampler(lm).windows(text)
    assert [token for window in windows for token in window.tokens] == tokens
    assert all(len(w.context) >= 1 and len(w.context) + len(w.tokens) <= lm.context for w in windows)


def test_perplexity_is_the_unadapted_weights_own(mass: Mass, made: Made) -> None:
    """The text of such a task is its gold: nothing is practised."""
    model = made()
    text = "Problem: Compute 1 + 2.\nSolution: 1+2=3. Answer: 3"
    (total,) = model.loglikelihood_rolling([Asked((text,), {}, "wiki", 0)])
    tokens = mass.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected, _ = reference(mass.lm, [model.asking.prefix_id], tokens, mass.state.theta)
    assert total == pytest.approx(expected, abs=1e-3)
    assert model.practice.entries == {}


def test_practice_is_asked_for_by_the_kind_of_problem(made: Made) -> None:
    def kinds(model: Model) -> set[str]:
        return {entry.adaptation.kind for entry in model.practice.entries.values() if entry.adaptation}

    generated, scored, told = made(), made(), made(kind="code")
    generated.generate_until(generations(range(1)))
    scored.loglikelihood(choices(range(1)))
    told.loglikelihood(choices(range(1)))
    assert [kinds(model) for model in (generated, scored, told)] == [{"math"}, {"choice"}, {"code"}]
    with pytest.raises(ConfigError, match="kind"):
        made(kind="poetry")


# --- chat templates, records, processes


def test_chat_templates() -> None:
    chat, plain = Model(untrained(make_lm("Llama", chat=True))), Model(untrained(make_lm("Llama")))
    turns = [{"role": "user", "content": "Find x."}]
    assert chat.apply_chat_template(turns) == "<user>Find x.</user><assistant>"
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    assert chat.apply_chat_template(begun, add_generation_prompt=False) == "<user>Find x.</user><assistant>It is"
    assert chat.chat_template(True) == chat.tokenizer.chat_template
    assert chat.chat_template(False) == ""
    for model in (chat, plain):
        assert "/" not in model.tokenizer_name
    with pytest.raises(ModelError, match=r"^the tokenizer of 'small Llama' has no such chat template"):
        plain.apply_chat_template(turns)


def untrained(lm: LM) -> Mass:
    return Mass(lm, init_state(lm, AdaptConfig(), 0), AdaptConfig(), state_seed=0)


def test_each_document_is_recorded_with_its_cost(made: Made, tmp_path: Path) -> None:
    model = made(out=str(tmp_path / "log"), batch_size=2)
    answers = model.generate_until(generations(range(3)))
    model.loglikelihood(choices(range(3, 4)))
    lines = [json.loads(line) for line in (tmp_path / "log" / "documents.jsonl").read_text().splitlines()]
    assert [(line["task"], line["doc_id"]) for line in lines] == [("sums", n) for n in range(4)]
    assert [line["answers"] for line in lines[:3]] == [[answer] for answer in answers]
    for line, task in zip(lines, small_sums(), strict=False):
        assert line["problem"] == task.problem
        assert len(line["adaptation"]["examples"]) == 3
        assert line["seconds"]["answer"] > 0
    info = model.get_model_info()["mass"]
    assert info["documents"] == 4
    assert info["tokens_per_document"] == sum(sum(line["tokens"].values()) for line in lines) / 4
    assert model.cache_hook.kept[0] == ("generate_until", generations(range(1))[0].args, answers[0])
    with pytest.raises(RunError, match=r"which holds records already; give a new folder$"):
        made(out=str(tmp_path / "log"))


def test_m_and_k_are_those_given(made: Made) -> None:
    model = made(examples=2, steps=0)
    model.generate_until(generations(range(1)))
    (entry,) = model.practice.entries.values()
    assert entry.adaptation is not None
    assert (len(entry.adaptation.examples), entry.adaptation.update_norm) == (2, 0.0)
    assert model.get_model_info()["mass"]["steps"] == 0


def test_alone_nothing_is_gathered(made: Made) -> None:
    model = made()
    assert model.all_gather(torch.tensor(3)).tolist() == [3]
    assert model.gather_object({"a": 1}) == [{"a": 1}]
    model.barrier()
    assert (model._rank, model._world_size, model._device) == (0, 1, torch.device("cpu"))


def test_a_model_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^pretrained is missing in --model_args; expected pretrained=tiny-terms"):
        Model()


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(registration.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'mass-adapt\[eval\]'"):
        registration.register()


def test_tasks_are_found_in_groups() -> None:
    @dataclasses.dataclass
    class Config:
        task: str | None

    class Told(Asks):
        config: Any

    one, two = Told(), Told()
    object.__setattr__(one, "config", Config("named"))
    object.__setattr__(two, "config", Config(None))
    tree: Mapping[Any, Any] = {"tasks": {"one": one}, "groups": {"all": {"two": two}}, "group_map": {"all": ["two"]}}
    assert registration.tasks_of(tree) == {"named": one, "two": two}


def test_the_error_of_an_unknown_task_comes_before_any_practice(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "practise", pytest.fail)
    monkeypatch.setattr(practices, "practise", pytest.fail)
    wrong = Asked(("Something else", {}), {"question": "Find x."}, "sums", 8)
    with pytest.raises(DataError, match=r"^document 8 of task 'sums' is not in its request"):
        made().generate_until([*generations(range(3)), wrong])
