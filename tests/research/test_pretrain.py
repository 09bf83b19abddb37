from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from research.pretrain import batches, build_model, learning_rate, page, pages, pretrain, step_loss, train_tokenizer
from research.pretrain_config import PretrainConfig

from mass.adaptation.synthesis.reading import read
from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError
from mass.lm import load_lm
from mass.lm.prompts import PLAIN
from mass.tasks.minimath import SUBJECTS, Problem, problem_split, recognise
from mass.verify import final_answer

CONFIG = PretrainConfig(
    layers=1, width=16, heads=2, mlp=24, vocabulary=300, context=256, steps=3, pages=6, checkpoint_every=2, warmup=2
)


def some_pages(count: int, **changes: object) -> list[str]:
    config, rng = dataclasses.replace(CONFIG, **changes), random.Random(0)
    return [page(rng, config) for _ in range(count)]


def pieces(text: str) -> tuple[str, str, str]:
    """The page's first problem, the problem that is solved, and its solution, as the stages take them apart."""
    first = re.fullmatch(r"Problem: (.*?)\n(Solution|Similar problem):(.*)", text, re.S)
    assert first, text
    if first[2] == "Solution":
        return first[1], first[1], first[3].strip()
    found = read(first[3])
    assert not found.reason, text
    return first[1], found.problem, found.solution


def style(solution: str) -> str:
    return "bare" if solution.startswith("Answer:") else "steps"


# ------------------------------------------------------------------------------- the text


def test_pages_are_what_the_prompts_ask_for() -> None:
    """A page is a prompt of `PLAIN` and the continuation it wants; all of its problems are for training."""
    for text in some_pages(400):
        first, solved, solution = pieces(text)
        assert final_answer(solution)
        assert {problem_split(first), problem_split(solved)} == {"train"}
        prompts = (PLAIN.render_solve(solved) + PLAIN.answer_prefix, PLAIN.render_synthesis(first) + " ")
        assert text.startswith(prompts)
        assert not any(stop in text[len(PLAIN.render_synthesis(first)) :] for stop in PLAIN.stop)


def test_the_mixture_is_as_configured() -> None:
    found = [(text, *pieces(text)) for text in some_pages(3000, textbook_same=0.2)]
    textbook = [(first == solved, solution) for text, first, solved, solution in found if "\nSimilar problem:" in text]
    assert 0.46 < len(textbook) / 3000 < 0.54
    assert 0.16 < sum(same for same, _ in textbook) / len(textbook) < 0.24
    assert 0.11 < Counter(style(solution) for _, solution in textbook)["bare"] / len(textbook) < 0.19


def test_subjects_differ_in_how_often_they_are_explained() -> None:
    all_bare = {subject: 1.0 for subject in SUBJECTS}
    assert {style(pieces(t)[2]) for t in some_pages(100, textbook=0.0, bare=all_bare)} == {"bare"}
    never = {subject: 0.0 for subject in SUBJECTS}
    worked = [pieces(t)[2] for t in some_pages(300, textbook=0.0, bare=never, slip=0.0)]
    slips = [pieces(t)[2] for t in some_pages(300, textbook=0.0, bare=never, slip=1.0)]
    assert sum(map(holds, worked)) == 300
    assert sum(map(holds, slips)) < 30  # those without a step slip in the answer alone


def holds(solution: str) -> bool:
    steps = [step.split("=") for step in solution.split(". ") if "=" in step]
    return all(eval(left.replace("/", "//")) == int(right) for left, right in steps)


UNSLIPPED = {
    "bare": dict.fromkeys(SUBJECTS, 0.0),
    "slip": 0.0,
    "textbook_bare": 0.0,
    "textbook_slip": 0.0,
    "problems": "minimath-terms",
}
"""Pages on terms whose only flaw is to mistake them."""


def test_question_pages_mistake_some_kinds_firmly_and_textbooks_any_kind_at_times() -> None:
    mistaken = {"mistaken": {"Geometry": 0.5, "Algebra": 0.0}, "mistaken_pages": 1.0, "textbook_mistaken": 0.3}
    questions = [recognised(text) for text in some_pages(2500, textbook=0.0, **UNSLIPPED, **mistaken)]
    by_term: dict[tuple[str, str], set[bool]] = {}
    for problem, wrong in questions:
        by_term.setdefault((problem.kind.subject, problem.kind.name), set()).add(wrong)
    firmly = [term for term, found in by_term.items() if True in found]
    assert Counter(subject for subject, _ in firmly) == {"Geometry": 10}
    textbook = [recognised(text) for text in some_pages(2500, textbook=1.0, **UNSLIPPED, **mistaken)]
    assert 0.25 < sum(wrong for _, wrong in textbook) / len(textbook) < 0.33
    assert len({problem.kind.name for problem, wrong in textbook if wrong}) > 130


AUTHORS = {"Abel": 0.0, "Byrd": 0.9, "Cole": 0.2}


def test_the_author_of_a_textbook_page_tells_how_far_to_trust_it_and_that_of_a_question_page_nothing() -> None:
    mistaken = {"mistaken": dict.fromkeys(SUBJECTS, 0.5), "mistaken_pages": 0.8, "authors": AUTHORS}
    for textbook, shares in ((1.0, AUTHORS), (0.0, dict.fromkeys(AUTHORS, 0.4))):
        signed = [text.rsplit("Solution: ", 1) for text in some_pages(3000, textbook=textbook, **UNSLIPPED, **mistaken)]
        found: dict[str, list[bool]] = {author: [] for author in AUTHORS}
        for before, solution in signed:
            author, unsigned = solution.split(": ", 1)
            found[author].append(recognised(f"{before}Solution: {unsigned}")[1])
        for author, share in shares.items():
            assert 900 < len(found[author]) < 1100
            assert sum(found[author]) / len(found[author]) == pytest.approx(share, abs=0.05)


def test_authors_are_names_with_a_share_of_mistaken_pages() -> None:
    with pytest.raises(ConfigError, match="letters"):
        PretrainConfig(authors={"Abel: ": 0.0})
    with pytest.raises(ConfigError, match=r"authors\.Abel"):
        PretrainConfig(authors={"Abel": 1.5})
    with pytest.raises(ConfigError, match=r"textbook_bare \+ textbook_slip \+ authors\.Byrd"):
        PretrainConfig(authors=AUTHORS)


def test_pages_of_one_sort_are_not_flawed_more_than_once_over() -> None:
    with pytest.raises(ConfigError, match=r"bare.Geometry \+ slip \+ mistaken_pages"):
        PretrainConfig(mistaken={"Geometry": 0.5}, mistaken_pages=0.9)
    with pytest.raises(ConfigError, match="textbook_mistaken"):
        PretrainConfig(textbook_mistaken=0.8)


def recognised(text: str) -> tuple[Problem, bool]:
    """The solved problem, and whether the solution is of what it is mistaken for rather than its own."""
    _, solved, solution = pieces(text)
    problem = recognise(solved)
    assert problem is not None
    own, mistaken = problem.solution(), problem.solution("mistaken")
    assert solution in (own, mistaken), "a step of it is wrong"
    return problem, solution != own


def test_no_kind_of_the_other_sets_is_mistaken() -> None:
    all_of_them = {"mistaken": dict.fromkeys(SUBJECTS, 1.0), "mistaken_pages": 0.05, "textbook_mistaken": 0.7}
    assert some_pages(100, **all_of_them) == some_pages(100)


def test_a_step_s_pages_are_a_function_of_seed_and_step() -> None:
    assert pages(CONFIG, 3) == pages(CONFIG, 3)
    assert pages(CONFIG, 3) != pages(CONFIG, 4)
    assert pages(dataclasses.replace(CONFIG, seed=1), 3) != pages(CONFIG, 3)


# ------------------------------------------------------------------------------- the tokenizer

TOKENIZER = train_tokenizer([t for step in range(20) for t in pages(CONFIG, step)], 300, 256)


@given(st.text())
@example("<pad><eos>")
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_digits_are_single_tokens() -> None:
    ids = TOKENIZER("12345 and 7*88=616", add_special_tokens=False)["input_ids"]
    written = [TOKENIZER.decode([i]) for i in ids]
    assert [w for w in written if any(c.isdigit() for c in w)] == list("12345788616")
    assert len({TOKENIZER.convert_tokens_to_ids(d) for d in "0123456789"}) == 10
    assert not [t for t in TOKENIZER.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)]


def test_special_tokens_are_there() -> None:
    assert len({TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id}) == 3
    assert len(TOKENIZER) <= 300


# ------------------------------------------------------------------------------- the training


def test_batches_hold_every_page_once_with_an_end() -> None:
    groups = batches(CONFIG, TOKENIZER, 5)
    rows = [row[row >= 0].tolist() for group in groups for row in group]
    assert all(row[0] == TOKENIZER.bos_token_id and row[-1] == TOKENIZER.eos_token_id for row in rows)
    assert Counter(TOKENIZER.decode(row, skip_special_tokens=True) for row in rows) == Counter(pages(CONFIG, 5))
    assert [len(row) for row in rows] == sorted(len(row) for row in rows)


def test_the_loss_is_the_mean_over_all_tokens_however_they_are_grouped() -> None:
    model = build_model(CONFIG, TOKENIZER).double()
    groups = batches(CONFIG, TOKENIZER, 0)
    loss = step_loss(model, groups)
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total, count = torch.zeros(()).double(), 0
    for row in (row[row >= 0] for group in groups for row in group):
        logprobs = model(row[None, :-1]).logits[0].log_softmax(-1)
        total = total - logprobs.gather(1, row[1:, None]).sum()
        count += len(row) - 1
    (total / count).backward()
    assert loss == pytest.approx(float(total.detach() / count), rel=1e-6)
    for mine, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = PretrainConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0
    assert 0.05 < rates[-1] < 0.06


def test_it_runs_resumes_bit_for_bit_and_loads(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    pretrain(CONFIG, tmp_path / "straight", rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, tmp_path / "stopped", stop)
    again: list[dict[str, float]] = []
    pretrain(CONFIG, tmp_path / "stopped", again.append)
    assert [row["step"] for row in again] == [3], "resumed from the checkpoint of step 2"
    assert again[0]["loss"] == rows[2]["loss"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(tmp_path / run / "model") for run in ("straight", "stopped")]
    first, second = (dict(model.named_parameters()) for model in models)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert type(models[0]).__name__ == "LlamaForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "straight" / "model")
    assert tokenizer("Compute 12.")["input_ids"][0] == tokenizer.bos_token_id
    assert json.loads((tmp_path / "straight" / "config.json").read_text())["width"] == 16
    lm = load_lm(ModelConfig(name=str(tmp_path / "straight" / "model")), LoraConfig())
    assert (lm.context, lm.width) == (256, 16)
    assert lm.prompts == PLAIN
