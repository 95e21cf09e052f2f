"""A vLLM server for a model of a run: how it must be started, and start and stop on this machine.

    python -m cai.engines.vllm_server start model=smollm2_135m hardware=cpu
    python -m cai.engines.vllm_server stop

`start` takes the settings of the run that will ask it, returns when the server answers and says
what the run has to be told. vLLM has an environment of its own (`make vllm-server` makes one, with
the CPU's build): `CAI_VLLM_PYTHON` names its interpreter.

What is set against vLLM's defaults is what `cai.engines.vllm` sets: log-probabilities are those of
the law that is sampled from, the last layer computes in float32, the model's own generation
settings are not applied; and adapters may be loaded and unloaded while it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from transformers import AutoConfig

from cai import paths
from cai.choices import ModelSource
from cai.config import Config
from cai.engines.vllm import RANKS
from cai.errors import UserError
from cai.model_config import ModelConfig
from cai.models import dtype_of, folder_of
from cai.schema import to_config

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""Unless they are set: GiB of keys and values, and one thread."""
PYTHON = "CAI_VLLM_PYTHON"
SECONDS = 600
"""Until a server must answer; with compilation a large model takes minutes."""
KEPT_ADAPTERS = 8
"""That the server holds in memory; others are read again when they are asked for."""


def served_name(config: ModelConfig) -> str:
    """What a role asks a server for."""
    server = config.engine.server
    return server.model if server is not None else config.name


def needed_length(config: ModelConfig) -> int:
    """Longest text of a role, tokens: vLLM wants room for one after a text that it scores."""
    architecture = AutoConfig.from_pretrained(folder_of(config), local_files_only=True)
    return min(config.max_context + 1, architecture.get_text_config().max_position_embeddings)


def arguments_of(config: ModelConfig) -> list[str]:
    """What vLLM's server has to be told for a role, the model apart."""
    arguments = {
        "--served-model-name": served_name(config),
        "--max-model-len": str(needed_length(config)),
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--hf-overrides": json.dumps({"head_dtype": "float32"}),
        "--max-lora-rank": str(next((r for r in RANKS if r >= config.lora.rank), RANKS[-1])),
        "--max-cpu-loras": str(KEPT_ADAPTERS),
    }
    return [
        *(part for pair in arguments.items() for part in pair),
        "--enable-lora",
        "--lora-target-modules",  # without the last layer, whose log-probabilities would fail
        *config.lora.target_modules,
    ]


def command_line(config: ModelConfig) -> str:
    """The command that starts a server for a role, for messages."""
    model = config.path if config.source is ModelSource.hub else str(folder_of(config))
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return f"{settings} vllm serve {shlex.join([model, *arguments_of(config)])}"


def overrides_for(config: ModelConfig, url: str) -> str:
    """What a run has to be told to ask it for the policy."""
    return (
        "engine@model.engine=endpoint "
        f"model.engine.server.model={served_name(config)} model.engine.server.url={url}"
    )


def answers(url: str) -> bool:
    """Whether a server of models is there."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _notes(port: int) -> tuple[Path, Path]:
    """Files with the process's number and with what it says."""
    folder = paths.cache_dir() / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{port}.pid", folder / f"{port}.log"


def _running(pid_file: Path) -> psutil.Process | None:
    """The server that was started, if it is still there and is one."""
    try:
        process = psutil.Process(int(pid_file.read_text("ascii")))
        return process if any("vllm" in part for part in process.cmdline()) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _python() -> str:
    found = os.environ.get(PYTHON, sys.executable)
    asked = [found, "-c", "import importlib.util as u; raise SystemExit(not u.find_spec('vllm'))"]
    try:
        missing = subprocess.run(asked, check=False).returncode != 0
    except OSError:
        missing = True
    if missing:
        raise UserError(
            f"{found} has no vLLM. Type `make vllm-server`, or name the Python of an environment "
            f"that has it: export {PYTHON}=/path/to/bin/python"
        )
    return found


def _environment(config: Config) -> Mapping[str, str]:
    on_cpu = ON_CPU if config.hardware.accelerator == "cpu" else {}
    return QUIET | on_cpu | os.environ | ENVIRONMENT


def start(config: Config, *, port: int) -> str:
    """Start a server for the policy's model and wait until it answers; its url.

    Raises:
        UserError: when it cannot be started.
    """
    url = f"http://127.0.0.1:{port}/v1"
    pid_file, log = _notes(port)
    if answers(url):
        raise UserError(
            f"{url} answers already. Type: python -m cai.engines.vllm_server stop --port {port}, "
            "or another --port"
        )
    arguments = [
        *(_python(), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder_of(config.model))),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", str(dtype_of(config.hardware)).removeprefix("torch.")),
        *(["--enforce-eager"] if config.hardware.accelerator == "cpu" else []),
        *arguments_of(config.model),
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            arguments,
            env=_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pid_file.write_text(str(process.pid), "ascii")
    deadline = time.monotonic() + SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop(port=port)
            said = log.read_text("utf-8", "replace").strip().splitlines()[-15:]
            raise UserError(f"vLLM did not start ({log}):\n" + "\n".join(said))
        time.sleep(0.5)
    return url


def stop(*, port: int) -> bool:
    """Stop the server that was started here, with its workers; whether there was one."""
    pid_file, _ = _notes(port)
    process = _running(pid_file)
    if process is not None:
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=30)
        for one in alive:
            one.kill()
        psutil.wait_procs(alive, timeout=10)
    pid_file.unlink(missing_ok=True)
    return process is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or stop a server and say so."""
    parser = argparse.ArgumentParser(
        prog="python -m cai.engines.vllm_server", description="A vLLM server on this machine."
    )
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "settings", nargs="*", help="of the run that will ask it, e.g. model=smollm2_135m"
    )
    given = parser.parse_intermixed_args(arguments)
    if given.action == "stop":
        done = "was stopped" if stop(port=given.port) else "was not there"
        print(f"The server of port {given.port} {done}.")
        return 0
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
            config = to_config(compose("config", overrides=given.settings))
        url = start(config, port=given.port)
    except (UserError, HydraException) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{url} serves {served_name(config.model)}. For a run: {overrides_for(config.model, url)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
