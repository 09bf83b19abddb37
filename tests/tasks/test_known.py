"""Known data sets: from the hub (a stand-in for it), from a folder through `datasets` itself, from Parquet."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mass import tasks
from mass.errors import DataError
from mass.tasks import KNOWN, known

ROW = {
    "math": {"problem": "p", "solution": r"\boxed{1}", "level": "Level 1", "type": "Algebra"},
    "math500": {"problem": "p", "solution": r"\boxed{1}", "answer": "1", "subject": "Algebra", "level": 1},
    "gsm8k": {"question": "p", "answer": "so\n#### 1"},
    "aime": {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "p", "Answer": "1", "Part": None},
    "aime24": {"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 1},
    "aime25": {"problem": "p", "answer": "1", "id": "0"},
    "svamp": {"ID": "c-1", "Body": "b", "Question": "q", "Equation": "( 1.0 )", "Answer": "1", "Type": "Sum"},
    "humaneval": {"task_id": "H/0", "prompt": "def f():", "canonical_solution": "", "test": "", "entry_point": "f"},
    "mbpp": {"task_id": 1, "text": "t", "code": "c", "test_list": ["assert f() == 1"], "test_setup_code": ""},
    "mmlu": {"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1},
    "bbh": {"input": "q\nOptions:\n(A) a\n(B) b", "target": "(B)"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of it; it has every known data set, with one row in each configuration and split."""
    asked: list[tuple[Any, ...]] = []
    rows = {KNOWN[name].hub: row for name, row in ROW.items()} | {"some/other": {"ask": "p", "gold": "1"}}

    def load_dataset(hub: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((hub, config, split))
        if hub not in rows:
            raise ConnectionError(f"Couldn't reach '{hub}' on the Hub\n(offline)")
        return [rows[hub]]

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


@pytest.mark.parametrize("name", KNOWN)
def test_by_name_and_by_id(hub: list[tuple[Any, ...]], name: str) -> None:
    loaded = tasks.load(name)
    assert loaded == tasks.load(KNOWN[name].hub)
    assert len(loaded) == len(KNOWN[name].configs)
    assert loaded[0].problem
    assert loaded[0].answer
    assert {entry[0] for entry in hub} == {KNOWN[name].hub}


def test_the_seven_of_math(hub: list[tuple[Any, ...]]) -> None:
    loaded = tasks.load("math", split="train")
    assert [task.id for task in loaded] == [f"math-train-{i}" for i in range(1, 8)]
    assert [entry[1] for entry in hub] == list(KNOWN["math"].configs)
    assert {entry[2] for entry in hub} == {"train"}
    assert len(tasks.load("math", size=3, seed=1)) == 3


def test_a_task_of_big_bench_hard_is_a_configuration_and_a_subject(hub: list[tuple[Any, ...]]) -> None:
    loaded = tasks.load("bbh")
    assert len(loaded) == 27
    assert [task.subject for task in loaded] == list(KNOWN["bbh"].configs)
    assert {entry[2] for entry in hub} == {"test"}
    (one,) = tasks.load("lukaemon/bbh:navigate")
    assert (one.answer, one.verifier) == ("B", "choice")
    assert [task.subject for task in tasks.load("bbh", subjects=["navigate"])] == ["navigate"]


def test_splits_have_our_names(hub: list[tuple[Any, ...]]) -> None:
    tasks.load("mmlu", split="train")
    tasks.load("aime24")
    assert hub == [("cais/mmlu", "all", "auxiliary_train"), ("Maxwell-Jia/AIME_2024", None, "train")]
    with pytest.raises(DataError, match=r"math500 has no split 'validation'; known: test"):
        tasks.load("math500", split="validation")


def test_any_other_of_the_hub(hub: list[tuple[Any, ...]]) -> None:
    (task,) = tasks.load("some/other:hard", split="dev", fields={"problem": "ask", "answer": "gold"}, verifier="exact")
    assert (task.id, task.problem, task.answer, task.verifier) == ("other-dev-1", "p", "1", "exact")
    assert hub == [("some/other", "hard", "dev")]
    with pytest.raises(DataError, match=r"some/other, row 1: no problem among the fields 'ask', 'gold'"):
        tasks.load("some/other")


def test_offline_says_what_to_do(hub: list[tuple[Any, ...]]) -> None:
    del hub
    message = r"no/such cannot be loaded from the hub \(ConnectionError: .* \(offline\)\); download it where"
    with pytest.raises(DataError, match=message) as caught:
        tasks.load("no/such")
    assert "\n" not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet", "reasoning_gym"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"openai/gsm8k: .*pip install 'mass-adapt\[data\]'"):
        tasks.load("gsm8k")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"needs pyarrow; .*mass-adapt\[data\]"):
        tasks.load(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"needs reasoning-gym; .*mass-adapt\[gym\]"):
        tasks.load("reasoning_gym:chain_sum")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "set.parquet"
    for name in ("gsm8k", "mmlu", "mbpp", "humaneval"):
        parquet.write_table(pyarrow.Table.from_pylist([ROW[name]] * 2), path)
        first, second = tasks.load(path)
        assert first.problem == second.problem
        assert first.id != second.id
    parquet.write_table(pyarrow.Table.from_pylist([ROW["gsm8k"], {"question": "q", "answer": "a\nb"}]), path)
    with pytest.raises(DataError, match="row 2: the answer has several lines"):
        tasks.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        tasks.load(path)


@pytest.mark.slow
def test_through_datasets_itself(tmp_path: Path) -> None:
    """`datasets` takes a folder of the id's name below the working directory for the hub's."""
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    folder = tmp_path / "openai" / "gsm8k" / "main"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text('{"question": "p", "answer": "so\\n#### 1"}\n' * 3)
    config = "configs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test.jsonl\n"
    (tmp_path / "openai" / "gsm8k" / "README.md").write_text(f"---\n{config}---\n")
    program = (
        "from mass import tasks; from mass.errors import DataError;"
        "print(len(tasks.load('gsm8k')), tasks.load('gsm8k')[0].answer)\n"
        "try: tasks.load('svamp')\n"
        "except DataError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    loaded, refused = done.stdout.strip().split("\n")
    assert loaded == "3 1"
    assert refused.startswith("ChilleD/SVAMP cannot be loaded from the hub (")


def test_names_that_are_near() -> None:
    with pytest.raises(DataError, match=r"no task set 'gsm8'; .*did you mean 'gsm8k'"):
        tasks.load("gsm8")
    assert known.find("not a name") is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        *(
            (name, True)
            for name in (
                "minimath",
                "minimath-terms",
                "gsm8k",
                "math",
                "owner/name",
                "owner/name:config",
            )
        ),
        *((name, False) for name in ("rows.jsonl", "folder/rows.parquet", "reasoning_gym:gcd")),
    ],
)
def test_which_sources_have_splits(source: str, expected: bool) -> None:
    assert tasks.has_splits(source) is expected
