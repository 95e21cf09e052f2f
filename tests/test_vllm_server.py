"""Start and stop of a vLLM server, with a stand-in for vLLM; and runs against a real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cai import embedded
from cai.engines import vllm_server
from tests.runs import run

STAND_IN = """
import http.server, json, os, sys
arguments = sys.argv[1:]
if "--fails" in os.environ.get("STAND_IN", ""):
    print("Engine core initialization failed")
    raise SystemExit(1)
with open(os.environ["STAND_IN_NOTE"], "w") as stream:
    json.dump([arguments, dict(os.environ)], stream)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
port = int(arguments[arguments.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, python = tmp_path / "stand_in.py", tmp_path / "python"
    server.write_text(STAND_IN)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit ${{STAND_IN_MISSING:-0}}\n'
        f'exec {sys.executable} {server} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("CAI_VLLM_PYTHON", str(python))
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STAND_IN_NOTE", str(tmp_path / "note.json"))


def start(model: Path, port: int) -> int:
    settings = ["model=local", f"model.path={model}", "model.max_context=100", "hardware=cpu"]
    return vllm_server.main(["start", "--port", str(port), *settings])


@pytest.mark.usefixtures("_stand_in")
def test_a_server_is_started_with_a_run_s_settings_and_stopped(
    tiny_folder: Path, tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}/v1"
    try:
        assert start(tiny_folder, port) == 0
        said = capsys.readouterr().out
        assert "engine@model.engine=endpoint model.engine.server.model=" in said
        assert f"model.engine.server.url={url}" in said
        arguments, environment = json.loads((tmp_path / "note.json").read_text())
        for name, value in (
            ("--model", str(tiny_folder)),
            ("--max-model-len", "101"),
            ("--logprobs-mode", "processed_logprobs"),
            ("--max-lora-rank", "16"),
            ("--hf-overrides", '{"head_dtype": "float32"}'),
        ):
            assert arguments[arguments.index(name) + 1] == value
        assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
        assert environment["DO_NOT_TRACK"] == environment["VLLM_NO_USAGE_STATS"] == "1"
        assert start(tiny_folder, port) == 1
        assert "answers already" in capsys.readouterr().err
    finally:
        assert vllm_server.main(["stop", "--port", str(port)]) == 0
    assert "was stopped" in capsys.readouterr().out
    assert not vllm_server.answers(url)
    assert not list((tmp_path / "cache" / "vllm").glob("*.pid"))
    vllm_server.main(["stop", "--port", str(port)])
    assert "was not there" in capsys.readouterr().out


@pytest.mark.usefixtures("_stand_in")
def test_what_keeps_a_server_from_starting_is_told(
    tiny_folder: Path,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STAND_IN", "--fails")
    assert start(tiny_folder, port) == 1
    assert "Engine core initialization failed" in capsys.readouterr().err
    monkeypatch.setenv("STAND_IN_MISSING", "1")
    assert start(tiny_folder, port) == 1
    assert "Type `make vllm-server`" in capsys.readouterr().err


@pytest.mark.usefixtures("_stand_in")
def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path, port: int) -> None:
    folder = tmp_path / "cache" / "vllm"
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / f"{port}.pid").write_text(str(other.pid))
        assert not vllm_server.stop(port=port)
        assert other.poll() is None
        other.kill()


REAL = os.environ.get("CAI_VLLM_URL")
"""A server of the embedded model, as `make vllm-server` starts it."""


@pytest.mark.skipif(REAL is None, reason="CAI_VLLM_URL names no server; see `make vllm-server`")
def test_ppo_by_a_real_server(tmp_path: Path) -> None:
    embedded.made(embedded.named("smollm2_135m"))
    with urllib.request.urlopen(f"{REAL}/models") as response:
        listed = json.load(response)["data"]
    name = next(row["id"] for row in listed if row["parent"] is None)
    finished = run(
        tmp_path / "run",
        *("phase=rlaif", "constitution=medical", "debug=tiny", "hardware.num_threads=1"),
        *("phase.ppo.num_iterations=2", "phase.ppo.optimizer.learning_rate=1.0e-3"),
        *("engine@model.engine=endpoint", f"model.engine.server.url={REAL}"),
        f"model.engine.server.model={name}",
    )
    assert finished.code == 0, finished.output
    (curve,) = finished.folder.glob("outputs/store/policy/*/curve.json")
    first, second = json.loads(curve.read_text())
    for row in (first, second):
        assert row["val/sampler_kl"] < 0.05
        assert row["val/sampler_ess"] > 0.9
    assert second["objective/kl"] != 0
