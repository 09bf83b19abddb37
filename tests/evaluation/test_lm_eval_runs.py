"""lm-evaluation-harness itself, offline, on copies of its tasks with local rows: golds reach nothing but its metrics,
base numbers are those of its own model class, verdicts those of `mass eval`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from research.models import TINY

from likelihoods import check_by_likelihood
from mass import tasks as task_sets
from mass import verify
from mass.adaptation.adapt import practise
from mass.config import EvalConfig, SamplingConfig
from mass.evaluation.evaluate import evaluate
from mass.evaluation.lm_eval import framing as harness
from mass.evaluation.lm_eval import register
from mass.lm.lora import pick
from mass.lm.prompts import PLAIN, Prompts
from mass.lm.sampling import StopStrings
from mass.model import Mass, load
from mass.seeds import derive
from mass.types import Task

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
TRAINED = TINY.with_name("mass")
LOCAL = ROOT / "examples" / "lm_eval_tasks"
FILES = {"gsm8k_train": 8, "gsm8k_test": 4, "math500": 3, "mmlu_stem": 4}
"""Rows of each file that the tests ask."""
TASKS = ("gsm8k_local", "minerva_math500_local", "mmlu_local")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (extra eval)"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there"),
    pytest.mark.slow,
]


def rows_of(file: str, count: int | None = None) -> list[dict[str, Any]]:
    lines = (SHARED / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def write(folder: Path, changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> Path:
    """The first rows of each file, changed."""
    folder.mkdir()
    for name, count in FILES.items():
        rows = [changes.get(name, dict)(row) for row in rows_of(name, count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "data", {})


def tiny(prompts: Prompts = PLAIN) -> Mass:
    """The tiny model; practice is asked for in its own words, problems are solved in those of `prompts`."""
    model = load(str(TINY), TRAINED)
    model.lm.prompts = dataclasses.replace(prompts, synthesis=PLAIN.synthesis, example=PLAIN.example)
    model.lm._stop = StopStrings(model.lm.tokenizer, prompts.stop)
    config = model.config
    synthesis = dataclasses.replace(config.synthesis, sampling=SamplingConfig(max_new_tokens=48))
    return dataclasses.replace(model, config=dataclasses.replace(config, synthesis=synthesis))


def run(lm: Any, data: Path, tasks: tuple[str, ...] = TASKS, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """Samples by task, as the harness logs them, in the order of the documents."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(LOCAL), include_defaults=False, metadata={"data": str(data)})
    found = simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options)
    return {task: sorted(found["samples"][task], key=lambda s: (s["filter"], s["doc_id"])) for task in tasks}


def answers(samples: list[dict[str, Any]], name: str | None = None) -> list[Any]:
    return [sample["resps"] for sample in samples if name is None or sample["filter"] == name]


def hashes(lm: Any) -> dict[Any, Any]:
    entries = lm.practice.entries.items()
    return {key: entry.adaptation.adapter_hash for key, entry in entries if entry.adaptation}


# --- no gold, no shots


def poisoned(**fields: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | {name: change(row[name]) for name, change in fields.items()}


def test_poisoned_golds_change_no_adapter_and_no_answer(data: Path, tmp_path: Path) -> None:
    golds = {
        "gsm8k_test": poisoned(answer=lambda _: "It is a secret.\n#### 987654"),
        "math500": poisoned(solution=lambda _: "Poison: \\boxed{987654}", answer=lambda _: "987654"),
        "mmlu_stem": poisoned(answer=lambda answer: (answer + 1) % 4),
    }
    made = register()
    found: list[Any] = []
    for folder in (data, write(tmp_path / "poisoned", golds)):
        lm = made(model=tiny(), max_gen_toks=16, batch_size=2)
        samples = run(lm, folder, num_fewshot=1)
        assert len(hashes(lm)) == sum(FILES.values()) - FILES["gsm8k_train"]
        found.append((hashes(lm), {task: answers(samples[task]) for task in TASKS}, samples))
    assert found[0][:2] == found[1][:2]
    assert len(set(found[0][0].values())) > 6, "adapters differ from document to document"
    targets = [[sample["target"] for task in TASKS for sample in samples[task]] for *_, samples in found]
    assert all(one != other for one, other in zip(*targets, strict=True)), "the poison was in all of them"
    assert [s["acc"] for s in found[0][2]["mmlu_local"]] != [s["acc"] for s in found[1][2]["mmlu_local"]]


def test_shots_are_asked_and_not_practised_on(data: Path) -> None:
    lm = register()(model=tiny(), max_gen_toks=16, examples=2)
    samples = run(lm, data, TASKS[:2])
    for task, marks, problems in (
        ("gsm8k_local", ("\nAnswer:", 6), [row["question"] for row in rows_of("gsm8k_test", 4)]),
        ("minerva_math500_local", ("\nSolution:", 5), [row["problem"] for row in rows_of("math500", 3)]),
    ):
        asked = [sample["arguments"][0][0] for sample in samples[task]]
        assert all(text.count(marks[0]) == marks[1] for text in asked), "five or four shots, and the document"
        entries = [entry for (name, _), entry in lm.practice.entries.items() if name == task]
        assert [entry.problem for entry in entries] == [problem.strip() for problem in problems]


# --- the numbers of everyone


def test_unadapted_numbers_are_those_of_the_harness_own_model(data: Path) -> None:
    """`--model hf` on the same base, shots and cut contexts included."""
    from lm_eval.models.huggingface import HFLM

    base, limit = load(str(TINY), "untrained"), {"max_gen_toks": 16}
    lm, theirs, ours = register()(model=base, adapt=False, batch_size=3), {}, {}
    for tasks, shots in ((TASKS[:1], 8), (TASKS[1:], None)):
        other = HFLM(base.lm.model, tokenizer=base.lm.tokenizer, device="cpu")
        theirs |= run(other, data, tasks, num_fewshot=shots, gen_kwargs=dict(limit))
        ours |= run(lm, data, tasks, num_fewshot=shots, gen_kwargs=dict(limit))
    assert lm.asking.cut > 0, "some contexts are longer than the model reads"
    for task in TASKS[:2]:
        assert answers(ours[task]) == answers(theirs[task])
    for one, other in zip(ours["mmlu_local"], theirs["mmlu_local"], strict=True):
        flat = [[value for (value,) in sample["resps"]] for sample in (one, other)]
        assert [g for _, g in flat[0]] == [g for _, g in flat[1]]
        assert [v for v, _ in flat[0]] == pytest.approx([v for v, _ in flat[1]], abs=1e-3)
        assert one["acc"] == other["acc"]


# --- the verdicts of `mass eval`


def evaluated(model: Mass, tasks: list[Task], method: str, tokens: int) -> list[Any]:
    config = EvalConfig(answer=SamplingConfig(max_new_tokens=tokens, temperature=0.0), stack=1, resamples=10)
    return list(evaluate(model, tasks, [method], config=config, seed=0).records)


@pytest.mark.parametrize("method", ["mass", "mass-unadapted"])
@pytest.mark.parametrize(
    ("task", "name", "file", "filters"),
    [
        ("gsm8k_local", "gsm8k", "gsm8k_test", {"strict-match": "gsm8k-strict", "flexible-extract": "gsm8k-flexible"}),
        ("minerva_math500_local", "math", "math500", {"none": "minerva"}),
    ],
)
def test_answers_and_verdicts_are_those_of_mass_eval(
    data: Path, method: str, task: str, name: str, file: str, filters: dict[str, str]
) -> None:
    model = tiny(harness.prompts(name))
    lm = register()(model=model, adapt=method == "mass", max_gen_toks=24)
    samples = run(lm, data, (task,), num_fewshot=0)[task]
    for chosen, verifier in filters.items():
        tasks = task_sets.load(data / f"{file}.jsonl", verifier=verifier)
        records = evaluated(model, tasks, method, 24)
        mine = [sample for sample in samples if sample["filter"] == chosen]
        assert [sample["resps"][0][0].strip() for sample in mine] == [record.attempt.text for record in records]
        assert [bool(sample["exact_match"]) for sample in mine] == [record.verdict.correct for record in records]
        if method == "mass":
            expected = [record.attempt.record.adapter_hash for record in records]
            assert list(hashes(lm).values()) == expected


def test_verdicts_agree_where_a_model_solves_some(tmp_path: Path) -> None:
    """Our own problems in GSM8K's fields, asked in our own prompt: right ones and wrong ones."""
    problems = task_sets.load("minimath", size=6, seed=3)
    rows = [{"question": t.problem, "answer": f"{t.solution}\n#### {t.answer}"} for t in problems]
    for name in ("gsm8k_test", "gsm8k_train"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"include: {LOCAL / 'gsm8k_local.yaml'}\ntask: own\ncustom_dataset: !function {LOCAL / 'local'}.gsm8k\n"
        'doc_to_text: "Problem: {{question}}\\nSolution:"\n'
        'generation_kwargs: {until: ["\\nProblem:", "\\nSimilar problem:"]}\n'
    )
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    model = tiny()
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False, metadata={"data": str(tmp_path)})
    lm = register()(model=model, max_gen_toks=72)
    found = simple_evaluate(lm, tasks=["own"], task_manager=manager, num_fewshot=0, bootstrap_iters=0)
    mine = [s for s in found["samples"]["own"] if s["filter"] == "flexible-extract"]
    tasks = task_sets.load(tmp_path / "gsm8k_test.jsonl", verifier="gsm8k-flexible")
    records = evaluated(model, tasks, "mass", 72)
    assert [sample["resps"][0][0].strip() for sample in mine] == [record.attempt.text for record in records]
    verdicts = [bool(sample["exact_match"]) for sample in mine]
    assert verdicts == [record.verdict.correct for record in records]
    assert len(set(verdicts)) == 2, "right and wrong ones"


@pytest.mark.parametrize("adapt", [True, False])
def test_choices_are_those_of_our_likelihoods(data: Path, adapt: bool) -> None:
    tasks = task_sets.load(data / "mmlu_stem.jsonl")
    model = tiny(harness.prompts("mmlu", subject=tasks[0].subject))
    samples = run(register()(model=model, adapt=adapt), data, ("mmlu_local",))["mmlu_local"]
    for number, (task, sample) in enumerate(zip(tasks, samples, strict=True)):
        adapter = model.state.theta
        if adapt:
            seeds = [derive(0, "eval", number)]
            adapter = pick(practise(model.lm, model.state, [task.problem], model.config, seeds)[1].stack, 0)
        (verdict,) = check_by_likelihood(model.lm, [task], adapter)
        assert bool(sample["acc"]) == verdict.correct


def altered(text: str) -> str:
    return text[:-1] + str((int(text[-1]) + 1) % 10) if text[-1:].isdigit() else f"{text}7"


def test_metrics_and_verifiers_judge_the_same_texts_alike(tmp_path: Path) -> None:
    """Every third text is right, every third altered, every third has no answer in the harness's form."""
    from lm_eval.tasks import TaskManager

    for name in FILES:
        rows = rows_of(name, 45)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manager = TaskManager(include_path=str(LOCAL), include_defaults=False, metadata={"data": str(tmp_path)})
    loaded = manager.load(["gsm8k_local", "minerva_math500_local"])["tasks"]
    forms = {
        "gsm8k_local": "So.\n#### {}",
        "minerva_math500_local": "Final Answer: The final answer is ${}$. I hope it is correct.",
    }
    judged = {"gsm8k_local": ("gsm8k_test", "gsm8k-strict"), "minerva_math500_local": ("math500", "minerva")}
    for name, (file, verifier) in judged.items():
        tasks = task_sets.load(tmp_path / f"{file}.jsonl", verifier=verifier)
        different, right = list[str](), 0
        for number, (task, doc) in enumerate(zip(tasks, loaded[name].test_docs(), strict=True)):
            answer = (task.answer, altered(task.answer), "")[number % 3]
            text = forms[name].format(answer) if answer else task.answer
            given = loaded[name]._filters[0].filters[0]().apply([[text]], [doc])[0] if name == "gsm8k_local" else [text]
            theirs = bool(loaded[name].process_results(doc, [next(iter(given))])["exact_match"])
            right += theirs
            if theirs != verify.check(task, text).correct:
                different.append(f"{number}: {text!r}, theirs {theirs}")
        assert right >= 10
        assert len(different) <= (0 if name == "gsm8k_local" else 3), different


# --- the command


def test_local_tasks_are_the_harness_own() -> None:
    from lm_eval import tasks as shipped
    from lm_eval.tasks._yaml_loader import load_yaml

    stock = Path(str(shipped.__file__)).parent
    for name, file in {
        "gsm8k_local": "gsm8k/gsm8k.yaml",
        "minerva_math500_local": "minerva_math/minerva_math500.yaml",
        "mmlu_local": "mmlu/default/_default_template_yaml",
    }.items():
        ours, theirs = load_yaml(LOCAL / f"{name}.yaml"), load_yaml(stock / file)
        for key in ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "filter_list",
                    "generation_kwargs", "repeats", "metadata", "test_split"):  # fmt: skip
            one, other = ours.get(key), theirs.get(key)
            names = [getattr(value, "__name__", value) for value in (one, other)]
            assert names[0] == names[1], (name, key)
    assert load_yaml(LOCAL / "gsm8k_local.yaml")["num_fewshot"] == 5


def written(value: Any) -> Any:
    """As the harness's log of samples has it."""
    return [written(item) for item in value] if isinstance(value, list | tuple) else str(value)


@pytest.mark.timeout(900)
def test_two_processes_give_the_results_of_one(data: Path, tmp_path: Path) -> None:
    """The command itself, with an uneven share: 4 and 3 documents."""
    given = f"pretrained={TINY},checkpoint={TRAINED},max_gen_toks=12,examples=2,out={tmp_path / 'log'}"
    arguments = ["--model", "mass", "--model_args", given, "--tasks", "minerva_math500_local,mmlu_local",
                 "--include_path", str(LOCAL), "--metadata", f"data={data}", "--log_samples",
                 "--output_path", str(tmp_path / "two"), "--num_fewshot", "1"]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mass"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [*launch, "lm-eval", *arguments], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("|mmlu_local") == 1, "one table"
    lm = register()(model=load(str(TINY), TRAINED), max_gen_toks=12, examples=2)
    one = run(lm, data, ("minerva_math500_local", "mmlu_local"), num_fewshot=1)
    for task, samples in one.items():
        (file,) = (tmp_path / "two").rglob(f"samples_{task}_*.jsonl")
        two = sorted(map(json.loads, file.read_text().splitlines()), key=lambda s: s["doc_id"])
        # not "resps": of the last request of a smaller share the harness asks more than it needs, to fill the share
        assert [written(sample["filtered_resps"]) for sample in two] == [written(s["filtered_resps"]) for s in samples]
    lines = [json.loads(line) for file in (tmp_path / "log").iterdir() for line in file.read_text().splitlines()]
    assert {(line["task"], line["doc_id"]) for line in lines} == set(hashes(lm))
    assert len(list((tmp_path / "log").iterdir())) == 2
    (results,) = (tmp_path / "two").rglob("results_*.json")
    about = json.loads(results.read_text())["config"]["mass"]
    assert (about["processes"], about["documents"]) == (2, 7)
