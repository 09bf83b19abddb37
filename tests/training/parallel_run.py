"""What each of the processes does that tests/training/test_parallel.py starts with torchrun."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mass.cli.main import main
from mass.config import LoraConfig, ModelConfig, RunConfig
from mass.errors import ConfigError, DataError, MassError, RunError
from mass.lm import LM, load_lm
from mass.runs.data import read_problems
from mass.runs.folder import RunFolder
from mass.training import distributed as parallel
from mass.training.distributed import Ranks
from mass.training.gradients import Gradients
from mass.training.trainer import Trainer, train
from small_lms import float64_throughout, random_adapter
from small_runs import config_for

STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "the same stacks": {"tasks_per_step": 4, "stack": 2},
    "stacks cut in two": {"tasks_per_step": 4, "stack": 4},
    "a smaller last stack": {"tasks_per_step": 3, "stack": 2},
}


def cases(methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """(precision, method, case): all of the first method, of the others what one process would cut alike."""
    same, *other = CASES
    wide = [("float64", methods[0], case) for case in other]
    return [*wide, *((dtype, method, same) for dtype in ("float64", "float32") for method in methods)]


def some_steps(lm: LM, config: RunConfig, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Sums of the gradients of each of two steps, what was measured, and the parameters after them."""
    trainer = Trainer(lm, config, read_problems(lm, config), RunFolder(Path("unused")), ranks)
    trainer.state = dataclasses.replace(trainer.state, theta=random_adapter(lm, 4, scale=0.02))
    trainer.optimizer = trainer._optimizer()
    found: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        sums = trainer.gradients()
        for group in ("theta", "generator", "eta", "log_rates"):
            for name, t in getattr(sums, group).items():
                found[f"{step} {group} {name}"] = t
        numbers = {**sums.measured, "squares": sums.reward_squares[0], "rewards": sums.reward_squares[1]}
        found |= {f"{step} {name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        trainer._update(sums, config.train.tasks_per_step)
        trainer.step += 1
    trainer.save = pytest.fail  # nothing here may write
    for group in ("theta", "eta", "log_rates"):
        found |= {f"after {group} {name}": t.detach().clone() for name, t in getattr(trainer.state, group).items()}
    return found


def lm_of(base: Path, dtype: str) -> LM:
    lm = load_lm(ModelConfig(name=str(base), dtype=dtype), LoraConfig(r=2, lora_alpha=4.0))
    return float64_throughout(lm) if dtype == "float64" else lm


def everything(base: Path, tasks: Path, out: Path, methods: list[str]) -> None:
    """Steps and runs of all methods in one launch: most of a launch's time goes into starting it."""
    with parallel.joined("auto") as (ranks, device):
        assert (ranks.size, device) == (2, "cpu")
        lms = {dtype: lm_of(base, dtype) for dtype in ("float64", "float32")}
        for dtype, method, case in cases(methods):
            config = config_for(base, tasks, method, eval_every=0, **CASES[case])
            torch.save(some_steps(lms[dtype], config, ranks), out / f"{dtype} {method} {case} {ranks.rank}.pt")
        for method in methods:
            train(config_for(base, tasks, method), out / method, callbacks=[shown(ranks)])
        train(config_for(base, tasks, "mass", steps=2), out / "two-then-one", callbacks=[shown(ranks)])
        train(config_for(base, tasks, "mass"), out / "one-then-two", resume=True, callbacks=[shown(ranks)])
        agreement(ranks)
        with pytest.raises(
            ConfigError, match=r"tasks_per_step is 1 for 2 processes; expected at least one problem each"
        ):
            train(config_for(base, tasks, "mass", tasks_per_step=1), out / "few", callbacks=[shown(ranks)])
        assert not (out / "few").exists()
        (out / f"said {ranks.rank}").write_text(disagreement(base, tasks, out, ranks))


def shown(ranks: Ranks) -> Any:
    return (lambda _: None) if ranks.first else pytest.fail


def agreement(ranks: Ranks) -> None:
    """What is the same in all passes; what is not is named, in all of them alike."""
    ranks.agree("the same", "the parameters")
    with pytest.raises(RunError, match=r"^the parameters of process 1 differ from those of process 0"):
        ranks.agree(str(ranks.rank), "the parameters")
    with ranks.together():
        pass
    with pytest.raises(RunError, match=r"^process 1 of 2: it is 2$" if ranks.first else r"^it is 2$"):
        fail_together(ranks, None if ranks.first else RunError("it is 2"))
    with pytest.raises(DataError if ranks.first else RunError, match=r"it is 1$"):
        fail_together(ranks, DataError("it is 1") if ranks.first else RunError("it is 2"))


def fail_together(ranks: Ranks, error: MassError | None) -> None:
    with ranks.together():
        if error is not None:
            raise error


def disagreement(base: Path, tasks: Path, out: Path, ranks: Ranks) -> str:
    """The error of a run in which the parameters of one process moved by themselves."""
    config = config_for(base, tasks, "solver-grpo", eval_every=0, steps=1)
    lm = lm_of(base, "float32")
    (out / "apart").mkdir(exist_ok=True)
    trainer = Trainer(lm, config, read_problems(lm, config), RunFolder(out / "apart"), ranks)
    trainer.start(resume=False)
    if not ranks.first:
        next(iter(trainer.state.theta.values())).data.add_(1e-7)
    with pytest.raises(RunError) as error:
        trainer.fit([])
    return str(error.value)


def dying(*arguments: str) -> None:
    """`mass` with these arguments, but the second process is killed in its second step, once both have summed: the
    first has written the first step's checkpoint by then."""
    right = Trainer.gradients

    def gradients(self: Trainer) -> Gradients:
        sums = right(self)
        if self.ranks.rank == 1 and self.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return sums

    Trainer.gradients = gradients
    sys.exit(main(arguments))


if __name__ == "__main__":
    if sys.argv[1] == "everything":
        everything(*map(Path, sys.argv[2:5]), methods=sys.argv[5:])
    else:
        dying(*sys.argv[2:])
