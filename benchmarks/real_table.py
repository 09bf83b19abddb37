"""Real data sets, a real model -> the table of all methods on it, in pieces that fit a machine lent for minutes.

    table="python benchmarks/real_table.py --model qwen2.5-coder-0.5b.gguf --data ./data --out runs/real"
    $table --family code --list
    $table --family code --minutes 9

The pieces, in this order: the headroom on validation problems; the trainings of `recipes/qwen2.5-0.5b`, for each seed,
and those on few problems; the comparison of all methods on validation problems; with `--test`, the same on test
problems, which nothing before has read. Every piece keeps what it has, so the same command goes on where the last one
stopped: after `--minutes` the piece that runs is interrupted as by Ctrl-C. The exit code is 0 when all are done, 75
when some are left, else that of the piece that failed. What is done is in OUT/FAMILY/done.json. `--only PART` takes the
pieces whose names begin so; options after `--` go to every training.

DATA holds, with the fields of the hub, mbpp_train.jsonl and mbpp_validation.jsonl or gsm8k_train.jsonl (whose last 500
rows are for validation), and for `--test` mbpp_test.jsonl and humaneval.jsonl, or gsm8k_test.jsonl, svamp.jsonl and
math500.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mass.errors import DataError, MassError
from mass.runs.folder import CONFIG, replace_text

ROOT = Path(__file__).parents[1]
LEFT = 75
"""Exit code where pieces are left (EX_TEMPFAIL)."""
GRACE_S = 60
"""An interrupted piece may take so long to end."""
TRAINED = ("mass", "mass-gold", "solver-grpo", "solver-sft")
ON_FEW = ("mass", "solver-grpo", "solver-sft")
"""Methods that are also trained on few problems."""
UNTRAINED = ("base", "base-ttt", "tt-ss", "tt-ss-likelihood", "tt-ss-verified")
ORACLES = ("gold random", "gold nearest", "copies", "copies correct")
OWN = ("own", "own likely", "own verified")


@dataclass(frozen=True)
class Family:
    """The data sets of a family of problems, and the controls that suit it."""

    train: str
    validation: str
    """The same name as `train` for a file that is divided: its last rows, as many as `validation_rows`."""
    validation_rows: int
    validation_size: int
    """Problems of a comparison on validation problems, and of the headroom."""
    tests: tuple[str, ...]
    chosen: tuple[str, ...]
    """Controls that choose among samples."""
    answer_tokens: int


FAMILIES = {
    "code": Family("mbpp_train", "mbpp_validation", 90, 90, ("mbpp_test", "humaneval"), ("best-of-n",), 384),
    "math": Family(
        "gsm8k_train",
        "gsm8k_train",
        500,
        200,
        ("gsm8k_test", "svamp", "math500"),
        ("maj@n", "mass-maj@n", "best-of-n"),
        320,
    ),
}


@dataclass(frozen=True)
class Piece:
    """A command that is run until it ends with exit code 0."""

    name: str
    command: tuple[str, ...]
    """After the name of the Python interpreter."""
    folder: Path
    resumes: bool
    """True if it takes --resume to go on in a folder that it has begun."""

    def arguments(self) -> list[str]:
        """Return the command as it has to be given now."""
        begun = self.resumes and (self.folder / CONFIG).is_file()
        return [sys.executable, *self.command, *(["--resume"] if begun else [])]


def pieces(args: argparse.Namespace) -> list[Piece]:
    """Return all pieces of a family, in the order in which they are run."""
    found = [_headroom(args)]
    found += [_training(args, method, seed) for seed in range(args.seeds) for method in TRAINED]
    found += [_training(args, method, 0, size) for size in args.sizes for method in ON_FEW]
    found += _comparisons(args, "validation", [_file(args, "validation")])
    if args.test:
        found += _comparisons(args, "test", [args.data / f"{test}.jsonl" for test in FAMILIES[args.family].tests])
    return [piece for piece in found if piece.name.startswith(args.only)]


def _headroom(args: argparse.Namespace) -> Piece:
    family = FAMILIES[args.family]
    majority = ("copies majority",) if args.family == "math" else ()
    folder = args.out / args.family / "headroom"
    command = (
        "benchmarks/headroom.py", "--model", args.model, "--dtype", args.dtype, "--tasks", _file(args, "validation"),
        "--train_tasks", _file(args, "train"), "--size", str(min(100, family.validation_size)),
        "--samples", "8", "--temperatures", "0.7", "--examples", "6", "--r", "32", "--nearest", "states",
        "--answer_tokens", str(family.answer_tokens), "--practice_tokens", "384", "--practice_temperature", "0.8",
        "--stack", "16", "--decode_rows", "512", "--sources", *ORACLES, *OWN, *majority, "--in_context", "own",
        "gold nearest", "--sgd", "--clipped", "0.03", "0.1", "0.3", "--adamw", "0.0002", "--steps", "1", "2",
        "--sharpness", "10", "--out", str(folder),
    )  # fmt: skip
    return Piece("headroom", command, folder, resumes=False)


def _training(args: argparse.Namespace, method: str, seed: int, size: int | None = None) -> Piece:
    name = _name(method, seed, size)
    folder = args.out / args.family / name
    command = (
        "-m", "mass", "train", f"--config=recipes/qwen2.5-0.5b/{args.family}.yaml", f"--model.name={args.model}",
        f"--model.dtype={args.dtype}", f"--tasks.source={_file(args, 'train')}", "--tasks.part=null",
        f"--validation.source={_file(args, 'validation')}", "--validation.part=null",
        f"--tasks.size={size or 'null'}", f"--train.method={method}",
        f"--train.seed={seed}", f"--adapt.inner.memory_gb={args.memory_gb:g}",
        *args.training, f"--out={folder}",
    )  # fmt: skip
    return Piece(name, command, folder, resumes=True)


def _comparisons(args: argparse.Namespace, at: str, files: Sequence[str | Path]) -> list[Piece]:
    found = [_comparison(args, f"{at}/{Path(file).stem}/untrained", file, UNTRAINED, {}, 0) for file in files]
    found += [_trained_comparison(args, at, file, seed) for seed in range(args.seeds) for file in files]
    return found + [_trained_comparison(args, at, files[0], 0, size) for size in args.sizes]


def _trained_comparison(
    args: argparse.Namespace, at: str, file: str | Path, seed: int, size: int | None = None
) -> Piece:
    trained = TRAINED if size is None else ON_FEW
    runs = {method: args.out / args.family / _name(method, seed, size) for method in trained}
    beside = ("mass-unadapted", *FAMILIES[args.family].chosen, "in-context") if size is None else ("mass-unadapted",)
    name = f"{at}/{Path(file).stem}/{f'trained-{seed}' if size is None else f'few-{size}'}"
    return _comparison(args, name, file, ("base", *trained, *beside), runs, seed)


def _comparison(
    args: argparse.Namespace, name: str, file: str | Path, methods: Sequence[str], runs: dict[str, Path], seed: int
) -> Piece:
    family, folder = FAMILIES[args.family], args.out / args.family / name
    size = family.validation_size if name.startswith("validation") else 250
    checkpoints = [f"--checkpoints={','.join(f'{method}={run}' for method, run in runs.items())}"] if runs else []
    command = (
        "-m", "mass", "eval", f"--model={args.model}", "--checkpoint=untrained", f"--model.dtype={args.dtype}",
        f"--tasks={file}", f"--tasks.size={size}", f"--methods={','.join(methods)}", *checkpoints,
        f"--train_tasks={_file(args, 'train')}", f"--answer.max_new_tokens={family.answer_tokens}",
        "--model.decode_rows=512", "--stack=16", f"--seed={seed}", "--tasks.seed=0", f"--out={folder}",
    )  # fmt: skip
    return Piece(name, command, folder, resumes=True)


def _name(method: str, seed: int, size: int | None) -> str:
    return f"train/{method}-{seed}" if size is None else f"train-on-{size}/{method}-{seed}"


def _file(args: argparse.Namespace, use: str) -> str:
    """Return the file of training or validation problems: one of the data, or one that `divide` makes."""
    family = FAMILIES[args.family]
    if family.train == family.validation:
        return str(args.out / args.family / f"{use}.jsonl")
    return str(args.data / f"{family.train if use == 'train' else family.validation}.jsonl")


def divide(args: argparse.Namespace) -> None:
    """Divide the rows of a family that has no validation problems of its own, and write both parts.

    Raises:
        DataError: The file is not there, or has too few rows.
    """
    family = FAMILIES[args.family]
    if family.train != family.validation or Path(_file(args, "validation")).is_file():
        return
    source, rows = args.data / f"{family.train}.jsonl", family.validation_rows
    if not source.is_file():
        raise DataError(f"{source} is not there; expected the training rows of this family in --data")
    lines = source.read_text(encoding="utf-8").splitlines()
    if len(lines) <= 2 * rows:
        raise DataError(
            f"{source} has {len(lines)} rows; expected more than {2 * rows}, {rows} of them to validate with"
        )
    Path(_file(args, "train")).parent.mkdir(parents=True, exist_ok=True)
    for use, some in (("train", lines[:-rows]), ("validation", lines[-rows:])):
        replace_text(Path(_file(args, use)), "\n".join(some) + "\n")


def run_all(args: argparse.Namespace) -> int:
    """Run what is not done until all is or the time is over, and return the exit code."""
    divide(args)
    file = args.out / args.family / "done.json"
    done: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    end = time.monotonic() + 60 * args.minutes
    every = pieces(args)
    for piece in every:
        if piece.name in done:
            continue
        left, start = end - time.monotonic(), time.monotonic()
        code = run_piece(piece, left) if left > 0 else LEFT
        if code == LEFT:
            _say(f"{sum(p.name in done for p in every)} of {len(every)} pieces are done; the same command goes on")
            return LEFT
        if code != 0:
            _say(f"{piece.name} ended with exit code {code}: {shlex.join(piece.arguments())}")
            return code
        done[piece.name] = round(time.monotonic() - start, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(done, indent=1) + "\n")
    _say(f"all {len(every)} pieces are done")
    return 0


def run_piece(piece: Piece, left_s: float) -> int:
    """Run a piece for at most so many seconds; LEFT if it was interrupted."""
    _say(f"{piece.name}: {shlex.join(piece.arguments())}")
    # A process that was started in the background ignores interrupts, and would hand that on to the piece.
    process = subprocess.Popen(piece.arguments(), cwd=ROOT, preexec_fn=_hear_interrupts)  # noqa: PLW1509 (no threads)
    try:
        return process.wait(left_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return LEFT
    except KeyboardInterrupt:
        process.wait()
        raise


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--family", choices=list(FAMILIES), required=True)
    made.add_argument("--model", required=True, help="a GGUF file, a folder, or a name of the hub")
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=3, help="of what is trained")
    made.add_argument("--sizes", type=int, nargs="*", default=[30, 100], help="training problems of data efficiency")
    made.add_argument("--memory_gb", type=float, default=60.0, help="of the inner loop")
    made.add_argument("--minutes", type=float, default=9.0)
    made.add_argument("--only", default="", help="the beginning of the pieces' names: headroom, train/mass, validation")
    made.add_argument("--test", action="store_true", help="compare on test problems too: once, at the end")
    made.add_argument("--list", action="store_true", help="print the commands, and run none")
    made.add_argument("training", nargs="*", help="after --: options of mass train for every training")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    args.data, args.out = args.data.resolve(), args.out.resolve()
    if not args.list:
        try:
            return run_all(args)
        except MassError as error:
            _say(f"error: {error}")
            return 2
    for piece in pieces(args):
        print(shlex.join(piece.arguments()[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
