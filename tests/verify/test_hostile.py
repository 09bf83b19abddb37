"""Hostile programs: each ends in time, is judged wrong, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from attacks import FAST, PROMPT, SLOW, TESTS
from traces import left_behind

from mass.types import Task, Verdict
from mass.verify import code, sandbox

pytestmark = pytest.mark.slow

TASK = Task(PROMPT, "    return a + b\n", TESTS, id="add", verifier="code")
LIMITS = sandbox.Limits(cpu_s=1, wall_s=3)


@dataclass(frozen=True)
class Traps:
    """What an attack would touch if it got out."""

    mark: Path
    data: Path
    port: int
    connections: list[object]
    scratch: Path
    """Where the sandboxes have their folders."""


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)
    data = folder / "tests.jsonl"
    data.write_text("the tests")
    found = Traps(folder / "mark", data, 0, [], tmp_path_factory.mktemp("scratch"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    found.connections.append(server.accept())
                except TimeoutError:
                    continue

        listener = threading.Thread(target=listen)
        listener.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(found.scratch))
            yield dataclasses.replace(found, port=server.getsockname()[1])
        ended.set()
        listener.join()


def attempt(program: str, traps: Traps, limits: sandbox.Limits = LIMITS) -> Verdict:
    text = program.replace("MARK", str(traps.mark)).replace("DATA", str(traps.data)).replace("PORT", str(traps.port))
    return code.check(TASK, f"```python\n{text}\n```" if text else text, limits)


@pytest.fixture(scope="module")
def outcomes(traps: Traps) -> dict[str, Verdict]:
    """Side by side, since those that wait for their time limit need no processor."""
    attacks = FAST | SLOW
    with ThreadPoolExecutor(max_workers=6) as threads:
        found = threads.map(lambda program: attempt(program, traps), attacks.values())
    return dict(zip(attacks, found, strict=True))


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_no_attack_passes(outcomes: dict[str, Verdict], name: str) -> None:
    """That it ended is the time limit's work: none ends by itself that could run for ever."""
    verdict = outcomes[name]
    assert verdict.correct is False, verdict
    assert verdict.reason


def test_nothing_is_left_behind(outcomes: dict[str, Verdict], traps: Traps) -> None:
    assert len(outcomes) >= 40
    assert left_behind(traps.scratch) == []
    assert not traps.mark.exists()
    assert traps.data.read_text() == "the tests"
    assert traps.connections == []
    for place in ("/var/tmp", "/dev/shm", "/tmp", "/", os.getcwd()):
        assert not Path(place, "mass-mark").exists()


def test_a_right_program_passes(traps: Traps) -> None:
    assert attempt("def add(a, b):\n    return a + b\n", traps).correct is True
