"""Two processes that share a run do what one does, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_run import CASES, cases, lm_of, some_steps

from mass.cli.main import main
from mass.errors import ConfigError, RunError
from mass.lm import LM
from mass.runs.folder import RunFolder
from mass.training import distributed as parallel
from mass.training.distributed import LostProcess, Ranks, speaks
from mass.training.trainer import train
from small_runs import METHODS, config_for, saved


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def torchrun(*arguments: object) -> Ran:
    """Two processes; none of them outlives the test."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = launcher.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    return Ran(launcher.returncode, out, err)


SCRIPT = Path(__file__).with_name("parallel_run.py")
pytestmark = pytest.mark.timeout(900)  # two processes start on what a busy machine has left


# ------------------------------------------------------------------------------- who takes what


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 6))
def test_shares_are_all_numbers_once_in_order_and_even(count: int, stack: int, size: int) -> None:
    shares = [Ranks(rank, size).portion(count, stack) for rank in range(size)]
    assert [n for share in shares for part in share for n in part] == list(range(count))
    assert all(1 <= len(part) <= stack for share in shares for part in share)
    alone = Ranks().portion(count, stack)
    assert [len(part) for part in alone] == [stack] * (count // stack) + [count % stack] * (count % stack > 0)
    if len(alone) % size == 0:
        assert [part for share in shares for part in share] == alone
        assert len({len(share) for share in shares}) == 1
    else:
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with parallel.joined("auto") as (ranks, device):
        assert (ranks, device) == (Ranks(0, 1), "auto")
        assert not torch.distributed.is_initialized()
    values = torch.ones(2)
    assert ranks.sum(values) is values
    assert (ranks.gather(3), ranks.from_first("a")) == ([3], "a")
    with pytest.raises(RunError, match=r"as it was$"), ranks.together():
        raise RunError("as it was")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with parallel.joined("cuda:3") as (ranks, device):
        assert (ranks.size, device) == (1, "cuda:3")


def test_processes_that_cannot_meet_are_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"the 2 processes .* did not meet .*torchrun --standalone"):
        parallel.joined("cpu").__enter__()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [parallel._own_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert taken == [1, 1]
    with pytest.raises(ConfigError, match="'cuda:0' for several processes; expected auto, cuda or cpu"):
        parallel._own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="1 GPUs for at least 2 processes on this machine; expected one each"):
        parallel._own_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parallel._own_device("auto") == "cpu"


def test_one_process_speaks_for_all_and_the_second_of_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    said: list[tuple[bool, bool, bool]] = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        said.append((speaks(), speaks(RunError("")), speaks(LostProcess(""))))
    assert said == [(True, True, True), (False, False, True), (False, False, False)]


# ------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two(taught_base: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes did everything, with one run begun by a process alone."""
    out = tmp_path_factory.mktemp("two")
    train(config_for(taught_base, sums, "mass", steps=2), out / "one-then-two")
    ran = torchrun(SCRIPT, "everything", taught_base, sums, out, *METHODS)
    assert ran.code == 0, ran.err
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "method", "case"), cases(METHODS))
def test_the_update_of_two_processes_is_that_of_one(
    dtype: str, method: str, case: str, two: Path, taught_base: Path, sums: Path
) -> None:
    """Two steps: the sums of gradients and of what was measured, and the parameters after them."""
    config = config_for(taught_base, sums, method, eval_every=0, **CASES[case])
    alone = some_steps(lm_of(taught_base, dtype), config, Ranks())
    both = [torch.load(two / f"{dtype} {method} {case} {rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0]), "the same bits in both"
    assert {name for name, t in both[0].items() if bool(t.any())} <= alone.keys() <= both[0].keys()
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    for name, value in alone.items():
        assert float((both[0][name] - value).norm()) <= tolerance * float(value.norm()) + 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_two_processes_is_that_of_one(method: str, two: Path, straight: Callable[[str], Path], lm: LM) -> None:
    """Parameters and metrics but for rounding: float32 sums in another order, four steps long."""
    assert_like(straight(method), two / method, lm)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_with_another_number_of_processes(
    folder: str, two: Path, straight: Callable[[str], Path], lm: LM, taught_base: Path, sums: Path
) -> None:
    if folder == "two-then-one":
        train(config_for(taught_base, sums, "mass"), two / folder, resume=True)
    assert_like(straight("mass"), two / folder, lm)


def assert_like(one: Path, other: Path, lm: LM) -> None:
    states = [saved(folder, lm) for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, t in states[0].items():
        torch.testing.assert_close(states[1][name], t, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    rows = [RunFolder(folder).metrics() for folder in (one, other)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [0, 1, 2, 3, 4]
    for first, second in zip(*rows, strict=True):
        assert first.keys() == second.keys() - {"seconds/exchange"}
        for name in first:
            if not name.startswith("seconds"):
                assert second[name] == pytest.approx(first[name], rel=1e-2, abs=1e-5), name


@pytest.mark.slow
def test_processes_whose_parameters_differ_stop(two: Path) -> None:
    said = {(two / f"said {rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith("the parameters after step 1 of process 1 differ from those of process 0; expected")
    assert RunFolder(two / "apart").latest() is None


def command(base: Path, sums: Path, out: Path, *more: object) -> list[object]:
    files = [f"--{which}.{key}" for which in ("tasks", "validation") for key in (f"source={sums}", "verifier=exact")]
    return [
        "train", "--model.name", base, *files, "--out", out, "--train.steps=3", "--train.tasks_per_step=2",
        "--train.eval_size=2", "--train.checkpoint_every=1", "--outer.samples=2", "--adapt.synthesis.examples=2",
        "--outer.sampling.max_new_tokens=14", "--adapt.synthesis.sampling.max_new_tokens=32",
        "--test.answer.max_new_tokens=14",
        *more,
    ]  # fmt: skip


def ours(text: str) -> list[str]:
    """The lines that `mass` wrote, torchrun's own report left out."""
    return [line for line in text.splitlines() if line.startswith(("step ", "error", "stopped", "run ", "Traceback"))]


@pytest.mark.slow
def test_the_command_says_all_once_and_ends_in_one_line(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    ran = torchrun("-m", "mass", *command(taught_base, sums, tmp_path / "run"))
    assert ran.code == 0, ran.err
    assert [line.split("  ")[0] for line in ours(ran.err)] == ["step 0/3", "step 1/3", "step 2/3", "step 3/3"]
    assert ran.err.count("stacks of 8 (train.stack): 1 of them do not divide among 2 processes") == 1
    assert ours(ran.out) == [f"run {tmp_path / 'run'} is done: 3 steps"]
    assert (tmp_path / "run" / "report.html").is_file()
    again = torchrun("-m", "mass", *command(taught_base, sums, tmp_path / "run"))
    assert again.code != 0
    line, torchruns = ours(again.err)
    assert line.startswith(f"error: {tmp_path / 'run'} is in use")
    assert torchruns.startswith("Traceback")


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_one_line(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    ran = torchrun(SCRIPT, "dying", *command(taught_base, sums, tmp_path / "run"))
    assert ran.code != 0
    said = [line for line in ours(ran.err) if not line.startswith("step ")]
    assert [line.split(" ")[0] for line in said] == ["error:", "Traceback"], ran.err  # the latter is torchrun's
    assert re.match(r"error: process 0 of 2 (ends because another has ended or|was told to end \(SIGTERM\))", said[0])
    assert "Signal 9 (SIGKILL)" in ran.err
    assert RunFolder(tmp_path / "run").latest()[0] == 1
    assert main([str(part) for part in command(taught_base, sums, tmp_path / "run", "--resume")]) == 0
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == [0, 1, 2, 3]
