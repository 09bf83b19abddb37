"""The measuring scripts, run in small: what is only ever started on a lent card must not fail there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_8b  # noqa: E402
import gpu_flops  # noqa: E402


def run_script(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_gpu_script_measures_every_point_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = ("--small", "--shrink", "64", "--device", "cpu", "--out", str(tmp_path))
    assert "time limit reached" in run_script("gpu_8b.py", *arguments, "--time_limit_s", "0")
    assert not json.loads((tmp_path / "gpu.json").read_text())["points"]
    assert "all points are done" in run_script("gpu_8b.py", *arguments, "--peak_tflops", "0.1")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["largest"].values()) == {4}
    assert all(p["share_of_peak"] > 0 for key, p in found["points"].items() if key.startswith("time"))
    again = run_script("gpu_8b.py", *arguments)
    assert again.splitlines() == ["all points are done"]
    assert json.loads((tmp_path / "gpu.json").read_text())["points"] == found["points"]


@pytest.mark.slow
def test_what_does_not_fit_is_a_recorded_point(tmp_path: Path) -> None:
    arguments = ("--small", "--shrink", "64", "--device", "cpu", "--parts", "fit", "--memory_gb", "1e-5")
    run_script("gpu_8b.py", *arguments, "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["largest"].values()) == {0}
    assert {p["why"] for p in found["points"].values()} == {"memory_gb"}


@pytest.mark.slow
def test_the_stack_script_finds_stack_and_loop_equal(tmp_path: Path) -> None:
    grid = ("--models", "tiny", "--tasks", "3", "--examples", "2", "--tokens", "16", "--steps", "2", "--rounds", "1")
    run_script("stack.py", *grid, "--dtype", "float64", "--out", str(tmp_path))
    (point,) = json.loads((tmp_path / "stack.json").read_text())["points"]
    assert all(route["error"] < 1e-5 for route in point["routes"].values())  # the norms inside go through float32
    assert (tmp_path / "stack.png").stat().st_size > 0


@pytest.mark.slow
def test_the_precision_script_compares_every_way(tmp_path: Path) -> None:
    small = ("--models", "tiny", "--optimizers", "sgd", "--steps", "1", "--seeds", "1", "--examples", "2")
    run_script("precision.py", *small, "--out", str(tmp_path))
    rows = {row["way"]: row for row in json.loads((tmp_path / "precision.json").read_text())["rows"]}
    assert rows["float32"]["same"]["theta"]["error"] < 1e-4
    assert 1e-4 < rows["bf16 base, float32 adapter"]["same"]["theta"]["error"] < 0.2


@pytest.mark.parametrize("limit", range(6))
def test_doubling_and_bisection_find_the_largest_that_fits(limit: int) -> None:
    asked: list[int] = []

    def fits(m: int) -> bool:
        asked.append(m)
        return m <= limit

    assert gpu_8b.largest(fits, 5) == limit
    assert len(asked) == len(set(asked))


def test_the_formula_counts_what_torch_counts() -> None:
    shape = (gpu_8b.llama(shrink=32), 4, 2, 64, 2)
    assert gpu_flops.formula_flops(*shape) == pytest.approx(gpu_flops.counted_flops(*shape), rel=0.05)
