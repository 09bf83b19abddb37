"""The records of a server: what goes in comes out, to its owner alone, whole or not at all."""

from __future__ import annotations

import math
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mass.errors import ConfigError, RunError
from mass.serving.records import BUSY_S, FILE, PROBLEM_CHARS, Entry, Filters, Records, owner_of
from mass.types import Adaptation, Example, GateDecision

ANN, BOB = owner_of("ann's key"), owner_of("bob's key")


def record(problem: str = "Compute 1 + 1.", **changes: object) -> Adaptation:
    example = Example(problem, "2", "text", (1, 2), weight=0.5, loss_before=1.0, loss_after=0.5)
    decision = GateDecision(True, "passed", {"drift": 0.25})
    values = {"examples": (example,), "gate": decision, "update_norm": 0.5, "text": "2", **changes}
    return Adaptation(problem, "tiny", 3, {"inner": {"steps": 1}}, "abc", **values)


def entry(
    id: str, time: float = 0.0, *, owner: str = ANN, found: Adaptation | None = None, name: str = "math"
) -> Entry:
    return Entry.of(found or record(), id=id, owner=owner, checkpoint=name, checkpoint_hash="h", time=time)


def ids(records: Records, filters: Filters | None = None, owner: str | None = None) -> list[str]:
    return [one.id for one in records.list(filters, owner=owner).entries]


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    given = Entry.of(record(), id="a", owner=ANN, checkpoint="math", checkpoint_hash="h", extra={"n": [1, None]})
    with Records(tmp_path / "new" / "folder") as records:
        records.add(given)
        assert records.get("a", owner=ANN) == given
        assert records.list(owner=ANN).entries == (given.summary,)
    with Records(tmp_path / "new" / "folder") as records:
        assert records.get("a", owner=None) == given
        assert records.get("b", owner=None) is None
    assert given.summary.adapted
    assert given.summary.gate == "passed"
    assert ANN not in ("", "ann's key")
    assert owner_of(None) == ""


def test_a_long_problem_and_a_norm_that_is_not_finite_are_kept(tmp_path: Path) -> None:
    problem = "é" * (2 * PROBLEM_CHARS)
    found = record(problem, update_norm=math.inf, fallback="non-finite update", gate=None)
    with Records(tmp_path) as records:
        records.add(entry("a", found=found))
        kept = records.get("a", owner=ANN)
    assert kept is not None
    assert math.isnan(kept.record.update_norm)
    assert (kept.record.problem, kept.summary.problem) == (problem, problem[:PROBLEM_CHARS])
    assert (kept.summary.adapted, kept.summary.gate, kept.summary.fallback) == (False, "", "non-finite update")


def test_owners_see_their_own_records_alone(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.add(entry("a"))
        records.add(entry("b", owner=BOB))
        assert ids(records, owner=ANN) == ["a"]
        assert sorted(ids(records)) == ["a", "b"], "an administrator sees all"
        assert records.get("a", owner=BOB) is None
        assert not records.delete("a", owner=BOB)
        assert not records.set_verdict("a", True, owner=BOB)
        assert records.verdicts(owner=BOB) == {True: 0, False: 0, None: 1}
        assert records.get("a", owner=ANN) == entry("a")
        assert ids(records, owner="") == [], "no owner is not everyone"
        assert records.delete("a", owner=ANN)
        assert not records.delete("a", owner=ANN)
        assert ids(records) == ["b"]


def test_filters(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.add(entry("old", 1.0, found=record("Solve 100% of x_1.")))
        records.add(entry("fell", 2.0, found=record(fallback="drift on canaries", gate=GateDecision(False, "drift"))))
        records.add(entry("code", 3.0, name="code", found=record("Write a PROGRAM.")))
        records.set_verdict("old", True, owner=None)
        records.set_verdict("fell", False, owner=ANN)
        expected = {
            Filters(): ["code", "fell", "old"],
            Filters(checkpoint="code"): ["code"],
            Filters(model="other"): [],
            Filters(adapted=False): ["fell"],
            Filters(adapted=True): ["code", "old"],
            Filters(gate="drift"): ["fell"],
            Filters(fallback="drift on canaries", checkpoint_hash="h"): ["fell"],
            Filters(right=True): ["old"],
            Filters(right=False): ["fell"],
            Filters(right="unset"): ["code"],
            Filters(right="unset", adapted=False): [],
            Filters(since=2.0): ["code", "fell"],
            Filters(since=2.0, until=3.0): ["fell"],
            Filters(text="program"): ["code"],
            Filters(text="100% of X_"): ["old"],
            Filters(text="' OR 1=1 --"): [],
        }
        assert {filters: ids(records, filters) for filters in expected} == expected
        assert records.verdicts(owner=None) == {True: 1, False: 1, None: 1}
        records.set_verdict("old", None, owner=ANN)
        assert records.verdicts(owner=ANN) == {True: 0, False: 1, None: 2}


def test_pages_hold_every_entry_once_while_new_ones_come(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        for i in range(25):
            records.add(entry(f"{i:02}", time=float(i // 5)))  # five at a time of the same moment
        found, cursor = list[str](), None
        for number in range(10):
            page = records.list(owner=ANN, limit=4, cursor=cursor)
            found += [one.id for one in page.entries]
            records.add(entry(f"new {number}", time=100.0 + number))
            cursor = page.cursor
            if cursor is None:
                break
        assert found == sorted((f"{i:02}" for i in range(25)), reverse=True)
        for limit in (0, 1001):
            with pytest.raises(ConfigError, match=f"limit is {limit}"):
                records.list(owner=ANN, limit=limit)
        with pytest.raises(ConfigError, match="cursor is 'x'"):
            records.list(owner=ANN, cursor="x")


def test_an_id_is_used_once(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.add(entry("a"))
        with pytest.raises(RunError, match="a record with id 'a' exists"):
            records.add(entry("a", owner=BOB))
        assert records.get("a", owner=ANN) == entry("a")
        records.add(entry("b"))


def test_what_is_old_is_pruned_and_its_text_is_gone_from_disk(tmp_path: Path) -> None:
    day = 86400.0
    with Records(tmp_path) as records:
        for i in range(10):
            records.add(entry(f"{i}", time=i * day, found=record(f"a secret of day {i}")))
        records.delete("9", owner=ANN)
        assert records.prune(3, now=10 * day) == 7
        assert ids(records) == ["8", "7"]
        assert records.prune(3, now=10 * day) == 0
        # Read while the database is open: closing it empties the log anyway.
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"a secret of day 8" in stored
    assert [i for i in (*range(7), 9) if f"a secret of day {i}".encode() in stored] == []


def test_nobody_else_on_the_machine_reads_them(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.add(entry("a"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_threads_share_records(tmp_path: Path) -> None:
    with Records(tmp_path) as records:

        def work(number: int) -> None:
            for i in range(20):
                records.add(entry(f"{number}-{i}", time=float(i)))
                assert records.set_verdict(f"{number}-{i}", i % 2 == 0, owner=ANN)
                assert records.get(f"{number}-{i}", owner=ANN) is not None

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert records.verdicts(owner=ANN) == {True: 60, False: 60, None: 0}


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Two connections are to SQLite what two processes are."""
    with Records(tmp_path) as one, Records(tmp_path) as other:
        one.add(entry("a"))
        other.add(entry("b"))
        assert sorted(ids(one)) == sorted(ids(other)) == ["a", "b"]


def test_closed_records_say_so(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.close()
    records.close()
    with pytest.raises(RunError, match="cannot be used any more"):
        records.get("a", owner=None)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("PRAGMA user_version = 2", "has records of version 2; this version of mass reads 1"),
        ("PRAGMA application_id = 7", "is a database of something else"),
    ],
)
def test_another_database_is_refused(tmp_path: Path, statement: str, error: str) -> None:
    Records(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(statement)
    db.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunError, match=error) as raised:
        Records(tmp_path)
    assert "\n" not in str(raised.value)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_file_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(RunError, match="cannot be used as a database of records"):
        Records(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be used as a database of records"):
        Records(tmp_path / "file")


WRITER = """
import os, random, select, signal, sys
from mass.serving.records import Entry, Records
from mass.types import Adaptation, Example

folder, rounds = sys.argv[1], int(sys.argv[2])

def write(number, out):
    records = Records(folder)
    for i in range(10_000):
        text = f"{number}-{i} " * 4000
        found = Adaptation(text, "tiny", i, {}, "", examples=(Example(text, text, text),), text=text)
        records.add(Entry.of(found, id=f"{number}-{i}", owner="", checkpoint="", checkpoint_hash="", time=float(i)))
        os.write(out, f"{number}-{i}\\n".encode())

for number in range(rounds):
    read, out = os.pipe()
    child = os.fork()
    if child == 0:
        write(number, out)
        os._exit(1)
    os.close(out)
    with os.fdopen(read) as told:
        for _ in range(random.randint(0, 6)):
            sys.stdout.write(told.readline())
        # Somewhere within the next change, not at its edge.
        select.select([], [], [], random.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        sys.stdout.write(told.read())
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_leaves_every_record_whole(tmp_path: Path) -> None:
    """20 writers die at random moments, one after another, in one database."""
    ran = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), "20"], capture_output=True, text=True, check=True
    )
    told = ran.stdout.split()
    with Records(tmp_path) as records:
        found = [one.id for one in records.list(owner=None, limit=1000).entries]
        assert set(told) <= set(found), "what `add` returned from is there"
        assert len(found) - len(told) <= 20, "and at most the one more of each writer that was not told of"
        for id in found:
            kept = records.get(id, owner=None)
            assert kept is not None
            text = f"{id} " * 4000
            assert (kept.record.problem, kept.record.text, kept.record.examples[0].solution) == (text, text, text)
        records.add(entry("after"))
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_writer_waits_for_another_process(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        adding = threading.Thread(target=records.add, args=(entry("a"),))
        adding.start()
        other.execute("COMMIT")
        adding.join(BUSY_S)
        other.close()
        assert ids(records) == ["a"]
