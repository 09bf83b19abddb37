"""What several test files share: base models made in seconds, one of random weights, one that learned a little."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from research.__main__ import RESEARCH
from research.pretrain import build_model, pages, save, step_loss, train_tokenizer
from research.pretrain_config import PretrainConfig

from mass.cli.main import MASS
from mass.config import LoraConfig, ModelConfig
from mass.lm import LM, load_lm
from mass.lm.prompts import PLAIN
from mass.metagrad import memory
from mass.metagrad.memory import Schedule
from mass.training.trainer import train
from small_lms import float64_throughout, small_sums
from small_runs import config_for

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("mass", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mass")


SLOW = Path(__file__).with_name("slow.txt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt names. A line that names none is an error where all tests are collected."""
    lines = [line for line in SLOW.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for item in items:
        if item.nodeid.startswith(tuple(lines)):
            item.add_marker(pytest.mark.slow)
    if config.args == [str(config.rootpath / "tests")] or config.args == config.getini("testpaths"):
        names = [item.nodeid for item in items]
        if stale := [line for line in lines if not any(name.startswith(line) for name in names)]:
            raise pytest.UsageError(f"{SLOW}: no test begins with {stale[0]!r}; correct or remove the line")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained `LlamaForCausalLM` of width 32 and 2 layers, and its tokenizer."""
    config = PretrainConfig(layers=2, width=32, heads=2, mlp=64, vocabulary=300, pages=16)
    tokenizer = train_tokenizer((text for step in range(4) for text in pages(config, step)), 300, config.context)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save(build_model(config, tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def taught_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that writes well-formed practice and solves a sum now and then, never always."""
    config = PretrainConfig(layers=2, width=32, heads=2, mlp=64, context=256)
    rng = random.Random(0)
    texts = [_page(rng) for _ in range(200)]
    tokenizer = train_tokenizer(texts, 300, config.context)
    model = build_model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = 160
    for step in range(steps):
        encoded = tokenizer.backend_tokenizer.encode_batch(rng.sample(texts, 16))
        rows = [[*e.ids, tokenizer.eos_token_id] for e in encoded]
        length = max(map(len, rows))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        step_loss(model, [torch.tensor([row + [-1] * (length - len(row)) for row in rows])])
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("taught") / "base"
    save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the nine problems that `taught_base` has seen."""
    file = tmp_path_factory.mktemp("tasks") / "sums.jsonl"
    rows = [{"problem": t.problem, "solution": t.solution, "answer": t.answer} for t in small_sums()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def straight(taught_base: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of four steps in one go, by method."""

    @functools.cache
    def run(method: str) -> Path:
        folder = tmp_path_factory.mktemp("straight") / method
        train(config_for(taught_base, sums, method), folder)
        return folder

    return run


@pytest.fixture(scope="session")
def lm(taught_base: Path) -> LM:
    """`taught_base` with the adapter of `config_for`."""
    return load_lm(ModelConfig(name=str(taught_base)), LoraConfig(r=2, lora_alpha=4.0))


@pytest.fixture(scope="session")
def wide(taught_base: Path) -> LM:
    """The same in float64 throughout."""
    base = ModelConfig(name=str(taught_base), dtype="float64")
    return float64_throughout(load_lm(base, LoraConfig(r=2, lora_alpha=4.0)))


def _page(rng: random.Random) -> str:
    one, two = rng.sample(small_sums(), 2)
    if rng.random() < 0.5:
        return f"{PLAIN.render_solve(one.problem)} {one.solution}"
    return f"{PLAIN.render_synthesis(one.problem)} {two.problem}\nSolution: {two.solution}"


@pytest.fixture
def schedules(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """What was chosen, from the first adaptation on."""
    seen, right = list[Schedule](), memory.choose

    def choose(*args: Any) -> Schedule:
        seen.append(right(*args))
        return seen[-1]

    monkeypatch.setattr(memory, "choose", choose)
    return seen


# --- the command line


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]

SHORT = (
    "--adapt.synthesis.examples=2",
    "--adapt.synthesis.sampling.max_new_tokens=8",
    "--adapt.answer.max_new_tokens=8",
)
"""A random model has nothing to say; let it say little."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in process, `mass` or `python -m research` as the verb says, as the user types and sees it."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        program = RESEARCH if arguments and str(arguments[0]) in RESEARCH.verbs else MASS
        code = program.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Run a command that must fail with one line on standard error and code 2; returns that line."""

    def fails(*arguments: str | Path) -> str:
        ran = run(*arguments)
        assert ran.code == 2, ran
        assert ran.out == ""
        assert ran.err.count("\n") == 1, ran.err
        assert ran.err.startswith("error: ")
        return ran.err.strip()

    return fails


@pytest.fixture
def solve(run: Run, tiny_base: Path) -> Run:
    """`mass solve` with the random model, untrained."""
    return lambda *arguments: run("solve", *arguments, "--model", tiny_base, *SHORT)
