"""What is asked of servers before a run computes anything, so that no stage finds it out later.

Whether it is there; whether it serves the model that is configured, for long enough texts and with
the same tokenizer; whether its log-probabilities are those of the law that it samples from; and,
where a policy is trained, whether it takes adapters of that rank from the run's own disk. What is
wrong is told with the command that starts it rightly (`cai.engines.vllm_server`).

That it has the same weights is seen where the first adapter is loaded (`cai.engines.check_probe`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cai import low_rank
from cai.connection import Reply
from cai.endpoint import Cache, Client
from cai.engines import vllm
from cai.engines.endpoint import EndpointEngine
from cai.engines.vllm_server import command_line, needed_length
from cai.errors import UserError
from cai.hardware_config import HardwareConfig
from cai.model_config import LoRAConfig, ModelConfig, ServerConfig
from cai.models import BaseModel, load
from cai.types import Message

PROBE = "Two plus two is four; naïve café, 北京, 3.14%.\n\tThe end."
"""What both tokenizers must cut alike."""
TEMPERATURE = 0.5
"""Log-probabilities must follow it."""


def check_role(
    role: str,
    asked: ModelConfig | ServerConfig,
    *,
    hardware: HardwareConfig,
    trained: bool,
    shared: Path,
) -> None:
    """See that a server, or vLLM in this process, can stand for a model of this run.

    Args:
        role: For messages.
        asked: The model, whose weights are not read; or a server that judges with one of its own,
            which only has to be there and to have it.
        hardware: Of the run.
        trained: Whether adapters of it are trained, which the server is to sample from.
        shared: A folder on the disk that the server must see.

    Raises:
        UserError: when it cannot, with the command that starts one that can.
    """
    if isinstance(asked, ServerConfig):
        _served(Client(asked), asked)
        return
    if asked.engine.server is None:
        vllm.require_installed()
        return
    client = Client(asked.engine.server)
    try:
        with tempfile.TemporaryDirectory() as fresh:
            client.cache = Cache(Path(fresh))  # an answer of another server would prove nothing
            _check(client, load(asked, hardware), trained=trained, shared=shared)
    except UserError as error:
        raise UserError(
            f"{role}: {str(error).rstrip('.')}. A server that fits is started by `python -m "
            "cai.engines.vllm_server start` with this run's settings, or elsewhere by: "
            + command_line(asked)
        ) from error


def _check(client: Client, base: BaseModel, *, trained: bool, shared: Path) -> None:
    found = _served(client, client.server)
    _check_length(found, base.config)
    _check_tokenizer(client, base)
    _ask_something(client, base, adapter=None)
    if trained:
        _check_adapters(client, base, shared)


def _json(reply: Reply, url: str) -> dict[str, Any]:
    try:
        found = json.loads(reply.said)
    except ValueError:
        found = None
    if not reply.ok or not isinstance(found, dict):
        raise UserError(
            f"{url} does not say what it serves (status {reply.status}: {reply.said[:100]}). Is "
            "its server.url right, up to and including /v1?"
        )
    return found


def _served(client: Client, server: ServerConfig) -> dict[str, Any]:
    """What a server says about the model."""
    rows = _json(client.call("/models"), server.url).get("data", [])
    named = {row["id"]: row for row in rows if isinstance(row, dict) and "id" in row}
    if server.model not in named:
        raise UserError(
            f"{server.url} serves {', '.join(sorted(named)) or 'no model'}, and not "
            f"{server.model}. Type server.model=<one of them>, or start a server of it"
        )
    return named[server.model]


def _check_length(found: dict[str, Any], config: ModelConfig) -> None:
    """See that the longest text fits, where the server says what it was made for: vLLM does."""
    longest, needed = found.get("max_model_len"), needed_length(config)
    if longest is not None and longest < needed:
        raise UserError(
            f"its longest text is of {longest} tokens, and max_context={config.max_context} of "
            f"model {config.name} needs {needed}. Type a smaller max_context, or start it with "
            f"--max-model-len {needed}"
        )


def _check_tokenizer(client: Client, base: BaseModel) -> None:
    """Both must cut a text alike, or give a text back from ids where nothing else is offered."""
    ours = base.encoder.text_ids(PROBE)
    root = client.server.url.rstrip("/").removesuffix("/v1")
    asked = {"model": client.server.model, "prompt": PROBE, "add_special_tokens": False}
    reply = client.call(f"{root}/tokenize", asked)
    theirs = json.loads(reply.said).get("tokens") if reply.ok else _echoed(client, base, ours)
    if theirs != ours:
        raise UserError(
            f"{client.server.url} has another tokenizer than model {base.config.name}: it cuts a "
            f"text into {_few(theirs)}, and the model's own into {_few(ours)}"
        )


def _few(ids: Sequence[int] | None) -> str:
    return "nothing" if ids is None else f"{list(ids[:6])}... ({len(ids)} tokens)"


def _echoed(client: Client, base: BaseModel, ids: list[int]) -> list[int]:
    """The ids of the text that a server makes of ids."""

    def read(body: Any) -> str:
        return str(body["choices"][0]["text"])

    (text,) = client.ask(
        "completions", [{"prompt": ids, "max_tokens": 0, "echo": True}], parse=read
    )
    return base.encoder.text_ids(text) if isinstance(text, str) else []


def _ask_something(client: Client, base: BaseModel, *, adapter: Path | None) -> EndpointEngine:
    """Sample one token, at a temperature that the log-probabilities must show, and score texts."""
    engine = EndpointEngine(
        client,
        name=base.config.name,
        eos_id=base.eos_id,
        max_context=base.config.max_context,
        vocab_size=base.weights.sizes.vocabulary,
        adapter=adapter,
    )
    prompt = base.prompt_ids([Message(role="user", content=PROBE)])
    engine.sample([prompt], seeds=[0], max_new_tokens=1, temperature=TEMPERATURE)
    engine.score([prompt, prompt[:-1]], [prompt[:2], prompt[:3]])
    return engine


def _check_adapters(client: Client, base: BaseModel, shared: Path) -> None:
    """Have the server load an adapter that changes nothing and sample with it."""
    lora: LoRAConfig = base.config.lora
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shared.resolve(), prefix=".server-check-") as scratch:
        folder = Path(scratch) / Path(scratch).name.lstrip(".")
        architecture = AutoConfig.from_pretrained(base.weights.folder, local_files_only=True)
        low_rank.write_empty(architecture, lora, folder)
        Path(scratch).chmod(0o755)
        _ask_something(client, base, adapter=folder).forget()
