"""The command as a whole: help, version, errors, exit codes, and the one restart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mass.cli import allocator, main
from mass.cli.failures import guarded
from mass.cli.main import VERBS
from mass.errors import ConfigError

HEAVY = ("torch", "transformers", "jsonargparse", "rich", "numpy", "yaml")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(main.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source, **env},
        timeout=120,
        check=False,
    )


def test_help_loads_nothing_heavy() -> None:
    ran = python(f"""
import sys
from mass.cli.main import main
assert main(["--help"]) == 0
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
""")
    assert ran.stdout.endswith("loaded: []\n"), ran
    assert all(f"\n  {verb} " in ran.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples(run: Callable, verb: str) -> None:
    ran = run(verb, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: mass {verb} ")
    assert "\nexamples:\n  mass " in ran.out or f"\nexamples:\n  echo" in ran.out  # noqa: F541
    assert "Config(" not in ran.out, "a dataclass signature instead of a name"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "report"])
def test_help_of_a_verb_does_not_load_torch(verb: str) -> None:
    ran = python(
        f"import sys; from mass.cli.main import main; main([{verb!r}, '--help']); print('torch' in sys.modules)"
    )
    assert ran.stdout.endswith("False\n"), ran


def test_version(run: Callable) -> None:
    ran = run("--version")
    assert ran.code == 0
    assert ran.out.startswith("mass 0."), "also where it runs from source"


def test_no_verb_shows_the_help(run: Callable) -> None:
    assert run().out.startswith("usage: mass VERB")


def test_unknown_verb_names_the_nearest(fails: Callable) -> None:
    assert "'slove' is not a verb of mass; did you mean 'solve'?" in fails("slove")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        main.main(["slove", "--debug"])


def test_a_bug_is_not_dressed_as_a_user_error() -> None:
    def bug() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(bug, debug=False)


def test_an_error_of_several_lines_is_put_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ConfigError("first\n  second")

    assert guarded(fail, debug=False) == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_interrupt_gives_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert guarded(interrupt, debug=False) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_closed_pipe_is_quiet() -> None:
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m mass.cli.main train --print_config | true"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[2])},
        timeout=120,
        check=False,
    )
    assert ran.stderr == ""


# --- the restart


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Environments that processes would have been restarted with."""
    for name in (*allocator.SETTINGS, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    found: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda _, argv, env: found.append({**env, "argv": " ".join(argv)}))
    monkeypatch.setattr(allocator, "_is_glibc", lambda: True)
    monkeypatch.setattr(sys, "argv", ["mass", "train", "--print_config"])
    return found


def test_the_console_script_restarts_once_with_the_settings(
    restarts: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    main.main()
    assert len(restarts) == 1
    assert allocator.SETTINGS.items() <= restarts[0].items()
    assert restarts[0]["argv"].split(" ", 1)[1] == " ".join(sys.orig_argv[1:])
    for name, value in allocator.SETTINGS.items():
        monkeypatch.setenv(name, value)
    main.main()
    assert len(restarts) == 1


@pytest.mark.parametrize(("chosen", "expected"), [(None, "1"), ("4", "4")])
def test_all_threads_share_one_arena_unless_the_user_says_otherwise(
    restarts: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: str
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MALLOC_ARENA_MAX", chosen)
    main.main()
    assert [one["MALLOC_ARENA_MAX"] for one in restarts] == [expected]


def test_in_process_nothing_restarts(restarts: list[dict[str, str]], run: Callable) -> None:
    assert run("train", "--print_config").code == 0
    assert restarts == []


@pytest.mark.parametrize(("name", "value"), [("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"), ("MALLOC_TOP_PAD_", "65536")])
def test_another_allocator_or_choice_is_left_alone(
    restarts: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    main.main()
    assert restarts == []


def test_other_systems_do_not_restart(restarts: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_is_glibc", lambda: False)
    main.main()
    assert restarts == []


@pytest.mark.skipif(not allocator._is_glibc(), reason="needs glibc")
def test_the_real_restart_keeps_arguments_and_output() -> None:
    source = str(Path(main.__file__).parents[2])
    env = {k: v for k, v in os.environ.items() if k not in allocator.SETTINGS and k != "LD_PRELOAD"}
    ran = subprocess.run(
        [sys.executable, "-m", "mass.cli.main", "train", "--print_config", "--train.steps", "7"],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": source},
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "  steps: 7\n" in ran.stdout
    assert ran.stdout.count("  steps: 7\n") == 1
