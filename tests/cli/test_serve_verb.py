"""`mass serve` as a user starts and stops it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serve_process import WAIT_S, started

from mass.serving import run as server

Fails = Callable[..., str]
BODY = {
    "messages": [{"role": "user", "content": "Find the malk of the vector (9, 7)."}],
    "mass": {"adapt": "always", "seed": 0},
}


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom mass.cli.main import main\ncode = main(['serve', '--help'])\n"
        "assert code == 0 and 'torch' not in sys.modules and 'fastapi' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "MASS_API_KEY" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "MASS_API_KEY holds no key"),
        (["--port", "99999"], "port is 99999"),
        (["--checkpoint", "math"], "expected NAME=FOLDER"),
        (["--checkpoint", "a b=x"], "expected NAME=FOLDER"),
        (["--checkpoint", "m=x", "--checkpoint", "m=y"], "names 'm' twice"),
        (["--api_key_env", "NOT_SET"], "'NOT_SET', which is not set"),
        (["--max_queue", "0"], "max_queue is 0"),
        (["--model", "./nothing"], "nothing"),
        (["--checkpoint", "m=./nothing"], "nothing"),
        (["--prot", "1"], "did you mean '--port'?"),
    ],
)
def test_a_wrong_option_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.delenv("MASS_API_KEY", raising=False)
    found = run("serve", *(arguments if "--port" in arguments else [*arguments, "--port", "0"]))
    assert found.code == 2
    (line,) = (line for line in found.err.splitlines() if line.startswith("error: "))
    assert said in line


def test_a_port_in_use_is_one_line(fails: Fails) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "choose another --port" in fails("serve", "--port", str(port))


def test_records_that_cannot_be_kept(run: Any, tmp_path: Path) -> None:
    (tmp_path / "records.sqlite3").write_text("not a database, and long enough not to be taken for an empty one" * 20)
    found = run("serve", "--port", "0", "--records", tmp_path)
    assert (found.code, found.err.count("error: ")) == (2, 1)


def test_it_stops_when_it_is_told_to_and_finishes_what_it_began(tmp_path: Path) -> None:
    with started("--records", str(tmp_path)) as (process, address):
        replies = list[httpx2.Response]()
        asking = threading.Thread(
            target=lambda: replies.append(httpx2.post(f"{address}/v1/chat/completions", json=BODY, timeout=WAIT_S))
        )
        asking.start()
        while "mass_requests_running 1.0" not in httpx2.get(f"{address}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert process.stderr is not None
        assert "the base's weights are unchanged" in process.stderr.read()
        assert process.wait() == 0
    assert replies[0].status_code == 200
    assert replies[0].json()["mass"]["adapted"]


def test_a_change_of_the_base_is_told() -> None:
    import mass
    from mass.config import ServeConfig
    from mass.errors import ModelError
    from mass.serving.loading import parts_of, require_unchanged

    parts = parts_of(mass.load(), {}, ServeConfig())
    require_unchanged(parts)
    weight = parts.lm.model.get_input_embeddings().weight
    weight.data[0, 0] += 1e-3
    with pytest.raises(ModelError, match="changed while it was served"):
        require_unchanged(parts)
    for decoder in set(parts.decoders.values()):
        decoder.close()


def test_the_socket_is_bound_before_the_model_is_loaded() -> None:
    from mass.config import ServeConfig

    with server.listen(ServeConfig(port=0)) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
