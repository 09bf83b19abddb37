"""benchmarks/real_table.py: its commands parse, test rows are read last, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from mass.cli.main import main
from mass.errors import DataError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import headroom  # noqa: E402
import real_table  # noqa: E402


def arguments(tmp_path: Path, family: str, *more: str) -> argparse.Namespace:
    given = ["--family", family, "--model", "m.gguf", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *more]
    return real_table.parser().parse_args(given)


@pytest.mark.parametrize("family", list(real_table.FAMILIES))
def test_every_command_parses(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = real_table.pieces(arguments(tmp_path, family, "--test", "--seeds", "1", "--sizes", "30"))
    assert len({piece.name for piece in found}) == len(found)
    verbs: set[str] = set()
    for piece in found:
        if piece.command[0] == "-m":
            verbs.add(piece.command[2])
            assert main([*piece.command[2:], "--print_config"]) == 0, (piece, capsys.readouterr().err)
        else:
            headroom.parser().parse_args(piece.command[1:])
    assert verbs == {"train", "eval"}


@pytest.mark.parametrize("family", list(real_table.FAMILIES))
def test_test_rows_are_read_when_asked_for_and_after_all_choices(family: str, tmp_path: Path) -> None:
    files = [f"{name}.jsonl" for name in real_table.FAMILIES[family].tests]

    def reads_test(piece: real_table.Piece) -> bool:
        return any(file in part for part in piece.command for file in files)

    assert not any(map(reads_test, real_table.pieces(arguments(tmp_path, family))))
    found = real_table.pieces(arguments(tmp_path, family, "--test"))
    first = next(place for place, piece in enumerate(found) if reads_test(piece))
    assert all(map(reads_test, found[first:]))
    chosen_on = {piece.name.partition("/")[0] for piece in found[:first]}
    assert chosen_on == {"headroom", "train", "train-on-30", "train-on-100", "validation"}


def test_rows_are_divided_once_and_none_is_in_both(tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) for i in range(1200)]
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(rows) + "\n")
    args = arguments(tmp_path, "math")
    real_table.divide(args)
    parts = [(tmp_path / "out" / "math" / f"{use}.jsonl").read_text().splitlines() for use in ("train", "validation")]
    assert (parts[0] + parts[1], len(parts[1])) == (rows, 500)
    (tmp_path / "gsm8k_train.jsonl").write_text(rows[0])
    real_table.divide(args)
    other = arguments(tmp_path, "math", "--out", str(tmp_path / "other"))
    with pytest.raises(DataError, match="has 1 rows; expected more than 1000"):
        real_table.divide(other)
    (tmp_path / "gsm8k_train.jsonl").unlink()
    with pytest.raises(DataError, match="is not there"):
        real_table.divide(other)


def piece(tmp_path: Path, name: str, code: str) -> real_table.Piece:
    return real_table.Piece(name, ("-c", code, str(tmp_path / name)), tmp_path / name, resumes=True)


def test_what_is_done_is_not_run_again_and_what_was_begun_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(piece: real_table.Piece, left_s: float) -> int:
        assert left_s > 0
        ran.append([piece.name, *piece.arguments()[1:]])
        piece.folder.mkdir(exist_ok=True)
        (piece.folder / "config.json").touch()
        return codes.pop(0)

    args = arguments(tmp_path, "code")
    monkeypatch.setattr(real_table, "pieces", lambda _: [piece(tmp_path, "one", ""), piece(tmp_path, "two", "")])
    monkeypatch.setattr(real_table, "run_piece", run)
    codes = [0, real_table.LEFT]
    assert real_table.run_all(args) == real_table.LEFT
    codes = [2]
    assert real_table.run_all(args) == 2
    codes = [0]
    assert real_table.run_all(args) == 0
    assert [name for name, *_ in ran] == ["one", "two", "two", "two"]
    assert ["--resume" in command for command in ran] == [False, False, True, True]
    assert set(json.loads((tmp_path / "out" / "code" / "done.json").read_text())) == {"one", "two"}
    args.minutes = 0
    (tmp_path / "out" / "code" / "done.json").unlink()
    assert real_table.run_all(args) == real_table.LEFT


def test_a_piece_is_interrupted_when_its_time_is_over_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    waits = (
        "import sys, threading, pathlib\n"
        "try:\n    threading.Event().wait()\n"
        "except KeyboardInterrupt:\n    pathlib.Path(sys.argv[1]).write_text('kept')\n    sys.exit(130)"
    )
    assert real_table.run_piece(piece(tmp_path, "waits", waits), 8.0) == real_table.LEFT
    assert (tmp_path / "waits").read_text() == "kept"
    assert real_table.run_piece(piece(tmp_path, "fails", "raise SystemExit(2)"), 60.0) == 2
