"""The engine of a server of completions that takes token ids as a prompt, such as vLLM's.

The server must serve the weights that the role's model names: ids, template and identity come from
there, and a server cannot be asked what it holds. It must be started so that log-probabilities are
those of the law it samples from (vLLM: `--logprobs-mode processed_logprobs`); where a temperature
makes the difference, that is checked (`cai.engines.server_checks` does so before a run begins).

A policy with an adapter is loaded into the server from its folder, which the server must see, under
a name that no other folder and no other weights have; the answer to a sequence of tokens that was
kept with the adapter shows that the server computes with these weights.

What is asked for beyond OpenAI's interface is vLLM's: `return_token_ids`, `stop_token_ids`,
`ignore_eos`, `logprob_token_ids` (0.32 or later), `/load_lora_adapter`, `/unload_lora_adapter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from cai.artifacts import digest_of, file_sha256
from cai.connection import Reply
from cai.endpoint import Client, Refusal
from cai.engines import columns
from cai.errors import UserError
from cai.generation import Tokens

T = TypeVar("T")

UNCHANGED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Undo a server's own defaults, which come from the model's generation settings."""
WEIGHTS = "adapter_model.safetensors"


class EndpointEngine:
    """Samples from, and scores with, the model that a server holds.

    Args:
        client: The server.
        name: The role's model, for messages.
        eos_id: Token that ends a response.
        max_context: Longest prompt plus response, tokens.
        vocab_size: Ids that the model knows.
        adapter: Folder of a LoRA adapter of this model, on a disk that the server sees; None is the
            model itself.

    Raises:
        UserError: when the server does not take the adapter.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        eos_id: int,
        max_context: int,
        vocab_size: int,
        adapter: Path | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self.adapter = None if adapter is None else load_adapter(client, adapter)
        self.eos_id = eos_id
        self.max_context = max_context
        self.vocab_size = vocab_size
        self._samples_as_told: set[float] = {0.0, 1.0}

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether a prompt leaves room for its response."""
        return len(prompt) + max_new_tokens <= self.max_context

    def forget(self) -> None:
        """Have the server unload the adapter; another run may have done so already."""
        if self.adapter is not None:
            self.client.call("/unload_lora_adapter", {"lora_name": self.adapter})

    def _ask(self, requests: Sequence[Mapping[str, Any]], parse: Any) -> list[Any]:
        own = {} if self.adapter is None else {"model": self.adapter}
        found = self.client.ask(
            "completions", [{**UNCHANGED, **own, **request} for request in requests], parse=parse
        )
        for answer in found:
            if isinstance(answer, Refusal):
                raise UserError(
                    f"engine=endpoint: {self.client.server.url} refuses a request for model "
                    f"{self.name}: {answer.said}. A server that takes token ids is needed, such as "
                    f"vLLM's, made for {self.max_context} tokens or more"
                )
        return found

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> list[Tokens]:
        """Sample one response per prompt."""
        if prompts:
            self._check_mode(prompts[0], temperature)
        requests = [
            {
                "prompt": list(prompt),
                "max_tokens": max_new_tokens,
                "temperature": temperature,
                "seed": seed,
                "logprobs": 0,
                "ignore_eos": True,
                "stop_token_ids": [self.eos_id],
                "return_token_ids": True,
            }
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return self._ask(requests, self._read_sample)

    def _read_sample(self, body: Any) -> Tokens:
        choice = body["choices"][0]
        ids = tuple(map(int, choice["token_ids"]))
        logprobs = tuple(map(float, choice["logprobs"]["token_logprobs"]))
        if len(ids) != len(logprobs) or not ids:
            raise ValueError(f"{len(ids)} token ids with {len(logprobs)} log-probabilities")
        return Tokens(ids=ids, logprobs=logprobs, finished=ids[-1] == self.eos_id)

    def _check_mode(self, prompt: Sequence[int], temperature: float) -> None:
        """Whether the log-probabilities that are sent follow the temperature."""
        if temperature in self._samples_as_told:
            return
        ids = [self.eos_id, *range(8)]
        plain, divided = self._next(
            [prompt, prompt], candidates=ids, temperatures=[1.0, temperature]
        )
        if all(abs(plain[i] - divided[i]) < 1e-6 for i in ids):
            raise UserError(
                f"engine=endpoint: {self.client.server.url} sends log-probabilities at temperature "
                f"1 whatever it samples at ({temperature:g}). Start it with --logprobs-mode "
                "processed_logprobs"
            )
        self._samples_as_told.add(temperature)

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, V) of the candidates after each prompt, NaN for the others.

        Raises:
            UserError: without candidates, as no server sends a whole vocabulary.
        """
        if candidates is None:
            raise UserError(
                f"engine=endpoint: what is asked of model {self.name} needs the probabilities of "
                "all its tokens, which a server does not send; choose engine=transformers or vllm "
                "for it"
            )
        rows = self._next(prompts, candidates=candidates, temperatures=[1.0] * len(prompts))
        return columns(rows, vocab_size=self.vocab_size, candidates=candidates)

    def _next(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        candidates: Sequence[int],
        temperatures: Sequence[float],
    ) -> list[dict[int, float]]:
        requests = [
            {
                "prompt": list(prompt),
                "max_tokens": 1,
                "temperature": temperature,
                "seed": 0,
                "logprobs": 1,
                "logprob_token_ids": list(candidates),
                "return_tokens_as_token_ids": True,
            }
            for prompt, temperature in zip(prompts, temperatures, strict=True)
        ]

        def read(body: Any) -> dict[int, float]:
            (sent,) = body["choices"][0]["logprobs"]["top_logprobs"]
            found = {
                int(token.removeprefix("token_id:")): float(value) for token, value in sent.items()
            }
            if missing := [i for i in candidates if i not in found]:
                raise ValueError(
                    f"no log-probability of token {missing[0]}; the server must know "
                    "logprob_token_ids (vLLM 0.32 or later)"
                )
            return found

        return self._ask(requests, read)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probability of each continuation after its prompt, nats."""
        texts = [[*prompt, *own] for prompt, own in zip(prompts, continuations, strict=True)]
        requests = [
            {
                "prompt": text,
                "max_tokens": 0,
                "temperature": 1.0,
                "echo": True,
                "logprobs": 0,
                "return_token_ids": True,
            }
            for text in texts
        ]

        def read(body: Any) -> list[float | None]:
            return list(body["choices"][0]["logprobs"]["token_logprobs"])

        sums = []
        for prompt, text, values in zip(prompts, texts, self._ask(requests, read), strict=True):
            own = values[len(prompt) :]
            if len(values) != len(text) or None in own:
                raise UserError(
                    f"engine=endpoint: {self.client.server.url} sent {len(values)} "
                    f"log-probabilities for {len(text)} tokens"
                )
            sums.append(float(sum(own)))
        return sums


def load_adapter(client: Client, folder: Path) -> str:
    """Load an adapter into a server, unless it has it; the name to ask for it by.

    Raises:
        UserError: when the server does not take it.
    """
    # By the path too: another run that has the same weights may unload its own at any time.
    name = f"{folder.name}-{digest_of([str(folder), file_sha256(folder / WEIGHTS)])[:16]}"
    reply = client.call("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    if not reply.ok and "already been loaded" not in reply.said:
        raise UserError(_not_loaded(client.server.url, folder, reply))
    return name


def _not_loaded(url: str, folder: Path, reply: Reply) -> str:
    said = f"engine=endpoint: {url} does not load the adapter in {folder} ({reply.said})"
    words = reply.said.lower()
    if reply.status in (404, 405) and "adapter" not in words and "lora" not in words:
        return (
            f"{said}: it takes none while it runs. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING="
            "True in its environment and with --enable-lora, or type engine@model.engine="
            "transformers"
        )
    if reply.status == 404:
        return f"{said}: it must see the disk that this run writes to, under the same path"
    return (
        f"{said}. Start it with --enable-lora and --max-lora-rank of at least model.lora.rank, or "
        "type engine@model.engine=transformers"
    )
