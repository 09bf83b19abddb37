"""Programs that try to pass without solving the task, to harm the machine, or to stay. Each is one attack.

The task is `add(a, b)`; MARK stands for the path of a file that must not appear, DATA for a file with the tests.
"""

from __future__ import annotations

TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-7, 4) == -3
    for i in range(20):
        assert candidate(i, i * i) == i + i * i

check(add)
"""
PROMPT = 'def add(a, b):\n    """The sum of two integers."""\n'

_EQUAL = """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __index__(self): return 5
def add(a, b): return Yes(99)
"""
_ANY = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __getattr__(self, name): return lambda *a, **k: True
def add(a, b): return Any()
"""
_CLASS_LIES = """
class Liar:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
    def __index__(self): return 5
def add(a, b): return Liar()
"""
_BUILTINS = """
import builtins, sys, operator
builtins.AssertionError = type("Never", (Exception,), {})
builtins.__build_class__ = None
builtins.isinstance = lambda *a: True
builtins.len = builtins.abs = builtins.all = builtins.any = lambda *a: True
operator.eq = lambda a, b: True
def add(a, b): return True
"""
_FRAMES = """
import sys, gc
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_globals.values()) + list(frame.f_locals.values()):
            if isinstance(value, dict) and "tests" in value: return eval(value["tests"])
            if isinstance(value, str) and "candidate(" in value: raise SystemExit(0)
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, dict) and "nonce" in thing: return a + b
    return 0
"""
_FORGED = """
import json, os
def forge():
    report = json.dumps({"nonce": "0" * 32, "passed": True, "reason": "all tests passed"}).encode()
    for fd in range(64):
        for data in (report, len(report).to_bytes(4, "big") + report):
            try: os.write(fd, data)
            except OSError: pass
forge()
def add(a, b):
    forge()
    os._exit(0)
"""
_REPLIES = """
import json, os, sys
def add(a, b):
    data = json.dumps({"value": {"ref": [1, "int"]}, "changed": {"0": [1], "99": 5, "x": {}}}).encode()
    for fd in range(3, 64):
        try: os.write(fd, len(data).to_bytes(4, "big") + data)
        except OSError: pass
    return 0
"""
_OUR_CODE = """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("inside"):
        for key in list(vars(module)):
            if not key.startswith("__"): setattr(module, key, lambda *a, **k: {"value": 5, "passed": True})
def add(a, b): return 5
"""
_PROC = """
import glob, re, os
def add(a, b):
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/mem"):
        try: data = open(path, "rb").read(1 << 20)
        except OSError: continue
        if b"nonce" in data or b"candidate" in data: return a + b
    return 0
"""
_PTRACE = """
import ctypes, os
libc = ctypes.CDLL(None)
def add(a, b):
    for pid in (os.getppid(), 1, 2):
        if libc.ptrace(16, pid, 0, 0) == 0: return a + b
    return 0
"""
_DATA = """
import os
def add(a, b):
    for root in (r"DATA", "/work", "/root", "/home", "/tmp", "."):
        for folder, _, names in os.walk(root):
            for name in names:
                if name in ("tests.jsonl", "humaneval.jsonl"): return a + b
    try: open(r"DATA").read(); return a + b
    except OSError: return 0
"""
_WRITE = """
import os, pathlib
for path in (r"MARK", "/tmp/../" + r"MARK", "/var/tmp/mass-mark", "/dev/shm/mass-mark", "/mass-mark", "mass-mark"):
    try: pathlib.Path(path).write_text("x")
    except OSError: pass
def add(a, b): return 0
"""
_DAEMON = """
import os, time
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    if os.fork() == 0:
        for fd in range(64):
            try: os.close(fd)
            except OSError: pass
        while True:
            time.sleep(0.2)
            try: open(r"MARK", "w").write("still here")
            except OSError: pass
    os._exit(0)
def add(a, b): return 0
"""
_SHELL = """
import subprocess
try: subprocess.Popen("nohup sh -c 'sleep 1000; touch MARK' >/dev/null 2>&1 &", shell=True, start_new_session=False)
except OSError: pass
def add(a, b): return 0
"""
_TCP = """
import socket
def add(a, b):
    for family, kind in ((socket.AF_INET, 1), (socket.AF_INET, 2), (socket.AF_INET6, 1)):
        try:
            with socket.socket(family, kind) as s:
                s.settimeout(1)
                s.connect(("127.0.0.1" if family == socket.AF_INET else "::1", PORT))
                s.send(b"hello")
                return a + b
        except OSError: pass
    return 0
"""
_UNIX = """
import socket, os
def add(a, b):
    for name in ("/run/docker.sock", "/var/run/docker.sock", "/tmp/.X11-unix/X0", "\\0abstract"):
        try:
            s = socket.socket(socket.AF_UNIX); s.connect(name); return a + b
        except OSError: pass
    return 0
"""
_SIGNALS = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def add(a, b):
    while True: pass
"""
_KILL = """
import os, signal
def add(a, b):
    for pid in (os.getppid(), 1, 0, -1, -os.getpgrp(), os.getppid() - 1):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
            try: os.kill(pid, number)
            except OSError: pass
    return 0
"""
_STOP = """
import os, signal
def add(a, b):
    try: signal.raise_signal(signal.SIGSTOP)
    except OSError: pass
    while True: signal.pause()
"""
_LIMITS = """
import resource
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError): pass
def add(a, b):
    while True: pass
"""
_NAMESPACES = """
import ctypes, os
libc = ctypes.CDLL(None)
def add(a, b):
    if libc.unshare(0x10000000 | 0x20000) == 0: return a + b
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"size=10g") == 0: return a + b
    try: os.chroot("/tmp"); return a + b
    except OSError: pass
    try: os.setuid(0); return a + b
    except OSError: return 0
"""
_SHARED = """
import ctypes, mmap, os
libc = ctypes.CDLL(None)
kept = []
def add(a, b):
    for i in range(10000):
        segment = libc.shmget(0, 1 << 28, 0o1600)
        if segment < 0: break
        kept.append(segment)
    try:
        while True:
            m = mmap.mmap(-1, 1 << 27); m.write(b"x" * (1 << 27)); kept.append(m)
    except (OSError, ValueError, MemoryError): pass
    return len(kept) * 0
"""
_FILES = """
import os
def add(a, b):
    try:
        for i in range(10**6):
            with open(f"file{i}", "wb") as f: f.write(b"x" * (1 << 20))
    except OSError: pass
    return 0
"""
_DEEP_FOLDERS = """
import os
def add(a, b):
    try:
        for i in range(3000):
            os.mkdir("d"); os.chdir("d")
        os.chmod(".", 0)
    except OSError: pass
    return 0
"""
_LOCKED_FOLDER = """
import os
os.mkdir("locked"); open("locked/file", "w").close(); os.chmod("locked", 0); os.symlink("/etc", "link")
def add(a, b): return 0
"""
_THREADS = """
import threading, time
def add(a, b):
    try:
        while True: threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError: return 0
"""
_EXIT_LOOP = """
import atexit, os
@atexit.register
def stay():
    while True: pass
def add(a, b): raise SystemExit(0)
"""
_BAD_ERROR = """
class Bad(BaseException):
    def __str__(self): raise self
    def __repr__(self): raise self
def add(a, b): raise Bad
"""
_BAD_COPY = """
class Odd(dict):
    def __iter__(self): raise SystemExit(0)
    def items(self):
        while True: yield 1, 2
    def __eq__(self, other): return True
def add(a, b): return Odd({1: 2})
"""
_METACLASS = """
class Meta(type):
    def __instancecheck__(cls, other): return True
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class Five(metaclass=Meta): pass
def add(a, b): return Five
"""
_GUESS_BY_ORDER = """
import itertools
count = itertools.count()
def add(a, b):
    if next(count) == 0: return 5
    raise SystemExit(0)
"""
_TESTS_MODULE = """
import sys
for name in ("tests", "__main__", "builtins"):
    sys.modules.setdefault(name, sys)
    vars(sys.modules[name])["check"] = lambda candidate: None
def check(candidate): return None
def add(a, b): return 0
"""

FAST: dict[str, str] = {
    "os._exit(0) at once": "import os\nos._exit(0)\n",
    "os._exit(0) in the function": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "sys.exit(0) at once": "import sys\nsys.exit(0)\n",
    "SystemExit in the function": "def add(a, b):\n    raise SystemExit(0)\n",
    "quit": "def add(a, b):\n    import site, builtins\n    getattr(builtins, 'quit', exit)()\n",
    "KeyboardInterrupt": "def add(a, b):\n    raise KeyboardInterrupt\n",
    "GeneratorExit": "def add(a, b):\n    raise GeneratorExit\n",
    "StopIteration": "def add(a, b):\n    raise StopIteration(5)\n",
    "an exception that cannot be written": _BAD_ERROR,
    "abort": "import os\ndef add(a, b):\n    os.abort()\n",
    "a crash of the interpreter": "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n",
    "an integer equal to everything": _EQUAL,
    "an object equal to everything": _ANY,
    "an object that lies about its class": _CLASS_LIES,
    "a class equal to everything": _METACLASS,
    "a dict that never ends": _BAD_COPY,
    "patched builtins": _BUILTINS,
    "a check of its own": _TESTS_MODULE,
    "rewritten sandbox code": _OUR_CODE,
    "tests looked for in frames": _FRAMES,
    "tests looked for in /proc": _PROC,
    "tests looked for on the disk": _DATA,
    "another process looked into": _PTRACE,
    "a forged report on every descriptor": _FORGED,
    "forged replies": _REPLIES,
    "a printed report": 'print(\'{"passed": true, "nonce": "0"}\')\ndef add(a, b): return 0\n',
    "right once, then gone": _GUESS_BY_ORDER,
    "files elsewhere": _WRITE,
    "too large a disk": _FILES,
    "too large a file": "def add(a, b):\n    open('f', 'wb').write(b'x' * (1 << 28))\n    return a + b\n",
    "folders too deep to remove": _DEEP_FOLDERS,
    "a folder that cannot be removed": _LOCKED_FOLDER,
    "a shell in the background": _SHELL,
    "TCP and UDP": _TCP,
    "Unix sockets": _UNIX,
    "killing the parent and everyone": _KILL,
    "more privileges": _NAMESPACES,
    "shared memory": _SHARED,
    "too much memory": "def add(a, b):\n    x = bytearray(10**11)\n    return a + b\n",
    "memory that grows": "def add(a, b):\n    x = [0]\n    while True: x += x\n",
    "endless recursion": "def add(a, b):\n    return add(a, b)\n",
    "a list in itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x\n",
    "a list too deep": "def add(a, b):\n    x = []\n    for _ in range(10**6): x = [x]\n    return x\n",
    "too large a result": "def add(a, b):\n    return 'x' * (1 << 28)\n",
    "a null byte": "def add(a, b):\n    return a + b\n\0",
    "half a surrogate pair": "def add(a, b):\n    return '\ud800'\n",
    "brackets too deep": "def add(a, b):\n    return " + "(" * 50_000 + "5" + ")" * 50_000 + "\n",
    "code too long": "def add(a, b):\n    return a + b\n" + "#" * 10**6,
    "blocks too deep": "def add(a, b):\n"
    + "".join(" " * i + "if a:\n" for i in range(4, 200))
    + " " * 200
    + "return 5",
    "an answer asked of the user": "def add(a, b):\n    return int(input())\n",
    "a function of another name": "def plus(a, b):\n    return a + b\n",
    "nothing": "",
    "prose": "The sum of a and b is a + b, so the function returns it.",
}
"""Attacks that end by themselves, or at a limit, within a second or so."""

SLOW: dict[str, str] = {
    "an endless loop at once": "while True: pass\n",
    "an endless loop": "def add(a, b):\n    while True: pass\n",
    "sleep": "import time\ndef add(a, b):\n    time.sleep(1000)\n",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "a daemon": _DAEMON,
    "threads": _THREADS,
    "all signals ignored": _SIGNALS,
    "stopped": _STOP,
    "limits raised": _LIMITS,
    "a loop at exit": _EXIT_LOOP,
    "huge output": "import sys\ndef add(a, b):\n    while True: print('x' * 10**6); sys.stderr.write('y' * 10**6)\n",
    "a number of 10^9 digits": "def add(a, b):\n    return 10 ** 10**9\n",
    "an endless generator": "def add(a, b):\n    while True: yield 5\n",
    "a slow pattern": "import re\ndef add(a, b):\n    return re.match(r'(a+)+$', 'a' * 60 + 'b')\n",
    "an exponential power": "def add(a, b):\n    return 9**9**9**9\n",
}
"""Attacks that end at the time limit."""
