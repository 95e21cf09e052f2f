"""What vLLM's server does, by the tiny model: ids in and out, its law's numbers, adapters by name.

Adapters are read from their folders by plain `peft`. The words of refusals are vLLM 0.32's.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.engines.transformers import TransformersEngine
from tests.served import Asked, Sent, Served, refusing, serving


@dataclass(kw_only=True)
class TinyVLLM:
    """A server's model and switches."""

    folder: Path
    name: str = "tiny"
    max_model_len: int = 100_000
    adapters: bool = True
    """Whether `/load_lora_adapter` is there."""
    max_lora_rank: int = 16
    follows_temperature: bool = True
    tokenizes: bool = True
    """Whether `/tokenize` is there."""
    bias: torch.Tensor | None = None
    """Added to the logits (V,), as by other kernels or by quantised weights."""
    dies_with: str | None = None
    """Connections are lost from the third completion on by a model whose name begins so."""
    paths: dict[str, str] = field(default_factory=dict)
    """Adapters by name."""
    history: list[tuple[str, str]] = field(default_factory=list)
    """(what, name): loaded, unloaded, sampled."""

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self._lock = threading.Lock()
        self._num_left = 2
        self._engines: dict[str, TransformersEngine] = {}
        self._engines[self.name] = self._engine(None)

    def _engine(self, adapter: str | None) -> TransformersEngine:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        if self.bias is not None:
            model.lm_head.register_forward_hook(lambda _m, _i, out: out + self.bias)
        model.requires_grad_(False)
        return TransformersEngine(
            model, eos_id=self._tokenizer.eos_token_id, max_context=self.max_model_len
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[Served]:
        with serving(self.answer, listed=self.listed) as served:
            yield served

    def listed(self) -> dict[str, Any]:
        base = {"id": self.name, "parent": None, "max_model_len": self.max_model_len}
        loaded = [
            {"id": name, "parent": self.name, "root": path} for name, path in self.paths.items()
        ]
        return {"object": "list", "data": [base, *loaded]}

    def answer(self, asked: Asked, _number: int) -> Sent:
        with self._lock:
            match asked.path:
                case "/tokenize" if self.tokenizes:
                    assert asked.body["add_special_tokens"] is False
                    ids = self._tokenizer(asked.body["prompt"], add_special_tokens=False)[
                        "input_ids"
                    ]
                    return Sent(body={"count": len(ids), "tokens": ids})
                case "/v1/load_lora_adapter" if self.adapters:
                    return self._load(asked.body["lora_name"], Path(asked.body["lora_path"]))
                case "/v1/unload_lora_adapter" if self.adapters:
                    return self._unload(asked.body["lora_name"])
                case "/v1/completions":
                    return self._complete(asked.body)
                case _:
                    return Sent(status=404, body={"detail": "Not Found"})

    def _load(self, name: str, folder: Path) -> Sent:
        if name in self.paths:
            return refusing(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return refusing(404, f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_bytes())["r"]
        if rank > self.max_lora_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            return refusing(500, said, **{"x-should-retry": "false"})
        self.paths[name] = str(folder)
        self._engines[name] = self._engine(str(folder))
        self.history.append(("loaded", name))
        return Sent(body=f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, name: str) -> Sent:
        if name not in self.paths:
            return refusing(404, f"The lora adapter '{name}' cannot be found.")
        del self.paths[name], self._engines[name]
        self.history.append(("unloaded", name))
        return Sent(body=f"Success: LoRA adapter '{name}' removed successfully.")

    def _complete(self, body: dict[str, Any]) -> Sent:
        if self.dies_with is not None and body["model"].startswith(self.dies_with):
            self._num_left -= 1
            if self._num_left < 0:
                return Sent(lost=True)
        if body["model"] not in self._engines:
            return refusing(404, f"The model `{body['model']}` does not exist.")
        engine, prompt = self._engines[body["model"]], body["prompt"]
        if len(prompt) + body["max_tokens"] > self.max_model_len:
            return refusing(400, f"maximum context length is {self.max_model_len} tokens")
        if body.get("echo"):
            choice = self._echo(engine, prompt)
        elif wanted := body.get("logprob_token_ids"):
            logits = engine.next_token_logprobs([prompt])[0]
            temperature = body["temperature"] if self.follows_temperature else 1.0
            values = (logits / temperature).log_softmax(-1)
            top = {f"token_id:{i}": float(values[i]) for i in wanted}
            choice = {"logprobs": {"top_logprobs": [top]}}
        else:
            choice = self._sample(engine, prompt, body)
            self.history.append(("sampled", body["model"]))
        return Sent(body={"choices": [choice], "usage": {"prompt_tokens": len(prompt)}})

    def _echo(self, engine: TransformersEngine, prompt: list[int]) -> dict[str, Any]:
        with torch.inference_mode():
            logprobs = engine.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        values = logprobs[:-1].gather(-1, torch.tensor(prompt)[1:, None])[:, 0].tolist()
        text = self._tokenizer.decode(prompt)
        return {"text": text, "logprobs": {"token_logprobs": [None, *values]}}

    def _sample(
        self, engine: TransformersEngine, prompt: list[int], body: dict[str, Any]
    ) -> dict[str, Any]:
        assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, 0, 1.0)
        assert body["stop_token_ids"] == [engine.eos_id]
        assert body["ignore_eos"]
        (tokens,) = engine.sample(
            [prompt],
            seeds=[body["seed"]],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
        )
        return {
            "token_ids": list(tokens.ids),
            "logprobs": {"token_logprobs": list(tokens.logprobs)},
        }
