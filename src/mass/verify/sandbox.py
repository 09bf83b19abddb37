"""Run a program against its tests in processes that are isolated, limited and removed afterwards.

    mass ── launcher ── judge (tests, nonce) ── program (has neither)

What is covered, on Linux:

- Time and memory: processor seconds, wall-clock seconds, address space, number of processes, size of files and of the
  scratch folder, open files. A program that exceeds a limit is ended.
- Cheating: the tests run in the judge, which asks the program for one result at a time and compares plain data with
  Python's own comparisons. The program's process holds neither the tests nor the expected values nor the nonce, cannot
  look into the judge's process, and cannot write where the report is read. `os._exit(0)`, `sys.exit`, patched builtins,
  objects equal to everything, a printed report, a guessed nonce: none passes, since only the judge's report with the
  nonce counts.
- The machine: no network, no signals to other processes, no files but Python's own (read only) and a scratch folder
  that is removed; no privileges, even where the caller is root. Everything that the program started ends with it, even
  when this process is killed.

What is not covered:

- A vulnerability of the kernel or of Python itself. For programs of an adversary with time, use a virtual machine.
- Side channels: the load on the machine, and the contents of Python's folders.
- A program that recognises the inputs of tests that it has seen in training: that is a weakness of the data set.
- Memory is limited for each process; all processes together may take `processes` times as much.
- With `landlock`: the total size of the files in the scratch folder (the size of each file is limited). This isolation
  is refused on processors other than x86-64 and arm64, because their system call numbers are not in our list. With
  `limits`: nothing but the resource limits.

The kinds of isolation are tried in this order, and the first that works on this machine is kept: `namespaces` (as root
or with user namespaces), `bwrap` (bubblewrap, where it is installed), `landlock`. The environment variable MASS_SANDBOX
chooses one instead; `limits` runs programs with resource limits alone, and only when it is chosen by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mass.errors import ConfigError

WAYS = ("namespaces", "bwrap", "landlock")
VARIABLE = "MASS_SANDBOX"
START_S = 60.0
"""The time a sandbox may take to start, in seconds, in addition to the time of its program."""

# The folder is on sys.path during this one import only, and last: mass/verify has a `math.py`, which must not replace
# the standard library's.
_PROGRAM = "import sys; sys.path.append({folder!r}); from inside.launch import main; sys.path.pop(); main()"
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")
# Numeric libraries start one thread per core, and each thread counts against `Limits.processes`.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TIMED_OUT, _PATIENCE = 124, 3  # the same values as in inside.launch


@dataclass(frozen=True)
class Limits:
    """The resources that one program may use."""

    cpu_s: int = 5
    """Processor seconds for each of its processes."""
    wall_s: float = 10.0
    """Wall-clock seconds. Time in which other processes had the processor does not count, up to twice this limit."""
    memory_mb: int = 1024
    """Address space of each of its processes, in MiB."""
    processes: int = 4
    """Processes and threads at the same time."""
    file_mb: int = 16
    """Size of the largest file, in MiB."""
    disk_mb: int = 64
    """Size of all files together, in MiB."""


@dataclass(frozen=True)
class Request:
    """A program, in one or several readings, and the tests it has to pass."""

    programs: tuple[str, ...]
    """Possible readings of the program; the first that compiles is run."""
    tests: str
    """Python code that raises an exception where the program is wrong."""
    prompt: str = ""
    """The beginning of the program, where the task gives one: the tests use the helper functions in it."""
    entry: str = ""
    """Name of the function that the prompt begins and the program must define."""


@dataclass(frozen=True)
class Report:
    """The result of running the tests."""

    passed: bool | None
    """None where there is no sandbox, or where the tests themselves cannot be run."""
    reason: str


def run(request: Request, limits: Limits | None = None) -> Report:
    """Run the tests against the program.

    Raises:
        ConfigError: This machine has no way to run it safely.
    """
    return _run(way(), request, limits or Limits())


def way() -> str:
    """Return the kind of isolation used here: the one named in MASS_SANDBOX, else the first that works.

    Raises:
        ConfigError: The variable names an unknown kind, or no kind works on this machine.
    """
    named = os.environ.get(VARIABLE, "")
    if named and named not in (*WAYS, "limits"):
        raise ConfigError(f"{VARIABLE} is {named!r}; expected one of: {', '.join(WAYS)}, limits")
    return named or _working_way()


_CHOICE = threading.Lock()


def _working_way() -> str:
    # Several threads verify at the same time: only the first of them tries the kinds out.
    with _CHOICE:
        return _probe()


@functools.lru_cache(maxsize=1)
def _probe() -> str:
    # A kind works if a program that is right passes in it: anything less would only show that processes start.
    request = Request(("def f(x):\n    return x + 1\n",), "assert f(1) == 2")
    refusals: list[str] = []
    for name in WAYS:
        report = _run(name, request, Limits())
        if report.passed:
            return name
        refusals.append(report.reason)
    raise ConfigError(
        f"no way to run programs safely here ({'; '.join(refusals)}); install bubblewrap, allow user namespaces, or "
        f"set {VARIABLE}=limits to run what a model wrote with nothing but resource limits"
    )


def _run(name: str, request: Request, limits: Limits) -> Report:
    if name == "bwrap" and shutil.which("bwrap") is None:
        return Report(None, "bwrap: it is not installed")
    # A new folder for each program, so that no program finds what another one left.
    scratch = tempfile.mkdtemp(prefix="mass-sandbox-")
    try:
        return _launched(_command(name, scratch, limits), request, limits)
    except OSError as error:
        return Report(None, f"no sandbox could be started: {error}")
    finally:
        _remove(scratch)


def _launched(command: Sequence[str], request: Request, limits: Limits) -> Report:
    nonce = secrets.token_hex(16)
    data = json.dumps({**dataclasses.asdict(request), "nonce": nonce}).encode()
    # A session of its own: one signal reaches all, and Ctrl-C in the terminal is this process's to handle.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(data, timeout=_PATIENCE * limits.wall_s + START_S)
    except subprocess.TimeoutExpired:
        return Report(None, f"the sandbox did not start within {START_S:g} s")
    finally:
        _end(process)
    # A report that was written before the time was up still counts.
    if process.returncode == _TIMED_OUT and not out:
        return Report(False, f"the program timed out after {limits.wall_s:g} s")
    return _read(out, nonce)


def _read(out: bytes, nonce: str) -> Report:
    try:
        # The judge writes one JSON object or nothing. Nothing means that it ended early, so the program is not right.
        report = json.loads(out)
    except ValueError:
        return Report(False, "the tests did not run to their end: what the program returned could not be judged")
    if "unavailable" in report:
        return Report(None, f"no sandbox: {report['unavailable']}")
    # Only the judge was given the nonce, after the program's process had been started.
    if report.get("nonce") != nonce:
        return Report(False, "the tests did not run to their end")
    return Report(report["passed"], report["reason"])


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        # Once a process has been waited for, its number may belong to another one.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _remove(scratch: str) -> None:
    """Remove the scratch folder, even where the program took away the rights to do so."""
    with contextlib.suppress(OSError):
        os.rmdir(scratch)
        return
    # Not shutil.rmtree, which recurses: folders may be thousands deep, and without rights.
    for command in (["rm", "-rf", scratch], ["chmod", "-R", "u+rwx", scratch], ["rm", "-rf", scratch]):
        if os.path.exists(scratch):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def _command(name: str, scratch: str, limits: Limits) -> list[str]:
    readable, paths = _python_folders()
    setting = {"limits": dataclasses.asdict(limits), "scratch": scratch, "readable": readable, "paths": paths}
    program = _PROGRAM.format(folder=str(Path(__file__).parent))
    # -S: no `.pth` file runs at the start, and `inside.launch` adds the package folders itself. -s: no packages from
    # the user's home.
    command = [sys.executable, "-S", "-s", "-c", program, name, json.dumps(setting)]
    return [*_bubblewrap(readable, limits), "--", *command] if name == "bwrap" else command


def _bubblewrap(readable: Sequence[str], limits: Limits) -> list[str]:
    command = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    if os.geteuid() == 0:
        # bwrap drops root's powers, but the launcher still has to change the user and to end processes of that user.
        command += [part for power in ("SETUID", "SETGID", "KILL") for part in ("--cap-add", f"CAP_{power}")]
    else:
        command += ["--unshare-user", "--disable-userns"]
    shown = (*readable, str(Path(__file__).parent / "inside"))
    # Only the folders on the way to something that is shown are made, and they are empty otherwise.
    above = {str(folder) for path in shown for folder in Path(path).parents if str(folder) != "/"}
    for folder in sorted(above.difference(shown)):
        command += ["--perms", "0755", "--dir", folder]
    for path in shown:
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind-try", path, path]
    command += ["--dev", "/dev", "--perms", "1777", "--size", str(limits.disk_mb << 20), "--tmpfs", "/tmp"]
    return [*command, "--chdir", "/tmp"]


@functools.lru_cache(maxsize=1)
def _python_folders() -> tuple[list[str], list[str]]:
    """Return (folders that a program must read for Python to work, folders with installed packages)."""
    packages = [*site.getsitepackages(), *(os.environ.get("LD_LIBRARY_PATH", "").split(":"))]
    library = sysconfig.get_paths()
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, library["stdlib"], library["platstdlib"], *packages}
    # Never `/` or a folder directly below it: a Python installed there would open half of the machine.
    kept = sorted(folder for folder in folders if folder.count("/") > 1 and os.path.isdir(folder))
    outermost = [f for f in kept if not any(f.startswith(f"{other}/") for other in (*kept, *_SYSTEM))]
    return [*_SYSTEM, *outermost], [folder for folder in site.getsitepackages() if os.path.isdir(folder)]


def _environment() -> dict[str, str]:
    # The caller's environment may hold keys and tokens, so only these variables are passed on.
    passed = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "LD_LIBRARY_PATH"))}
    # A fixed hash seed: sets have the same order in every run, so a verdict can be repeated.
    fixed = {"HOME": "/tmp", "TMPDIR": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PATH": os.defpath}
    return passed | fixed | dict.fromkeys(_THREADS, "1")
