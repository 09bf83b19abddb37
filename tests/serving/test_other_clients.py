"""Clients that others wrote, as they are: LangChain's, `llm` and curl. OpenAI's own has a file of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ADAPTING, PROBLEM, WAIT_S, Running

PRACTICE = {"adapt": "always", "seed": 0}


def test_langchain(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    langchain = pytest.importorskip("langchain_openai")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    model = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=ADAPTING, extra_body={"mass": PRACTICE}
    )
    wanted = server.ask(mass=PRACTICE)["choices"][0]["message"]["content"]
    answer = model.invoke(PROBLEM)
    assert answer.content == wanted
    assert answer.usage_metadata["output_tokens"] > 0
    record = server.get(f"/v1/mass/adaptations/{answer.response_metadata['id']}").json()
    assert record["adapted"]
    assert "".join(part.content for part in model.stream(PROBLEM)) == wanted
    assert [one.content for one in asyncio.run(model.abatch([PROBLEM] * 2))] == [wanted] * 2
    with pytest.raises(Exception, match="tools is not supported here"):
        model.bind_tools([{"title": "look_up", "description": "Looks up.", "type": "object", "properties": {}}]).invoke(
            PROBLEM
        )


def test_llm(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm") is None:
        pytest.skip("llm is not installed")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: mass, model_name: {ADAPTING}, api_base: '{server.url}/v1', can_stream: true}}\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "mass", "--key", "none", PROBLEM]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert "Answer: " in found.stdout, found.stderr


def test_curl(server: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = {"model": ADAPTING, "messages": [{"role": "user", "content": PROBLEM}], "mass": PRACTICE}
    command = ["curl", "-sS", "--fail-with-body", f"{server.url}/v1/chat/completions", "--noproxy", "*"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert json.loads(found.stdout)["mass"]["adapted"]
