"""The engine of vLLM in this process (extra `vllm`): the model's own folder, adapters by name.

What is set against vLLM's defaults: the last layer computes in float32, as `cai.generation` does;
log-probabilities are those of the law that is sampled from (`processed_logprobs`); a model's
generation settings are not applied; a row's stream comes from its own seed; no usage statistics are
sent. Prefixes are cached, so few-shot examples are read once.

vLLM is loaded once per process for each model and stays in memory; an adapter is read from its
folder and named in each request, nothing is merged. Needs vLLM 0.32 or later (`logprob_token_ids`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

from cai.engines import columns
from cai.errors import UserError
from cai.generation import Tokens
from cai.model_config import LoRAConfig, VLLMConfig

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Greatest ranks of adapters that vLLM can be made for."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Set before vLLM is imported, unless they are set already; the first keeps the scheduler in this
process, without which seeds do not reproduce."""
NO_SHARE = 0.01
"""Share of a device that must be free; the cache has a size of its own, so vLLM need not know."""

_adapter_number = count(1)


MISSING = "engine=vllm needs the package `vllm` 0.32 or later; type: pip install -e '.[vllm]'"


def require_installed() -> None:
    """See that vLLM is there, without importing it, which takes seconds.

    Raises:
        UserError: with what to type.
    """
    if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
        raise UserError(MISSING)


def _require() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise UserError(MISSING) from error
    return vllm


@cache  # so its arguments are tuples and numbers
def _load(
    folder: Path,
    dtype: str,
    max_length: int,
    rank: int,
    target_modules: tuple[str, ...],
    gib: float,
    devices: int,
    eager: bool,
) -> Any:
    """The loaded model, one for each combination of settings."""
    vllm = _require()
    try:
        return vllm.LLM(
            model=str(folder),
            dtype=dtype,
            hf_overrides={"head_dtype": "float32"},
            max_model_len=max_length,
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            max_logprobs=-1,
            seed=0,
            enable_prefix_caching=True,
            enable_lora=True,
            max_lora_rank=rank,
            max_loras=1,
            lora_target_modules=list(target_modules),
            kv_cache_memory_bytes=int(gib * 2**30),
            gpu_memory_utilization=NO_SHARE,
            tensor_parallel_size=devices,
            enforce_eager=eager,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"vLLM cannot be started with {folder}: {' '.join(str(error).split())[:500]}. What can "
            "be changed: engine.vllm.kv_cache_gib, max_context; or type "
            "engine@model.engine=transformers"
        ) from error


@cache
def _adapter(folder: Path) -> Any:
    """What vLLM calls an adapter, with a number of its own for each folder."""
    _require()
    from vllm.lora.request import LoRARequest

    number = next(_adapter_number)
    return LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder))


class VLLMEngine:
    """Samples from, and scores with, a model in vLLM.

    Args:
        config: How vLLM is started.
        folder: The model's safetensors and config.json.
        dtype: Number format of weights and activations.
        eos_id: Token that ends a response.
        max_context: Longest prompt plus response, tokens.
        window: Longest text that the model reads, tokens.
        vocab_size: Ids that the model knows.
        lora: Rank and layers of the adapters that the model may get; only those layers are made
            ready for them, which leaves the last one alone, where log-probabilities come from.
        adapter: Folder of a LoRA adapter of this model; None is the model itself.
    """

    def __init__(
        self,
        config: VLLMConfig,
        *,
        folder: Path,
        dtype: torch.dtype,
        eos_id: int,
        max_context: int,
        window: int,
        vocab_size: int,
        lora: LoRAConfig,
        adapter: Path | None,
    ) -> None:
        if lora.rank > RANKS[-1]:
            raise UserError(
                f"vLLM takes adapters of rank {RANKS[-1]} at most, and lora.rank is {lora.rank}; "
                "type engine@model.engine=transformers"
            )
        self.eos_id = eos_id
        self.max_context = max_context
        self.vocab_size = vocab_size
        self._llm = _load(
            folder,
            str(dtype).removeprefix("torch."),
            min(max_context + 1, window),  # vLLM wants room for a token after a text it scores
            next(known for known in RANKS if known >= lora.rank),
            tuple(lora.target_modules),
            config.kv_cache_gib,
            config.num_devices,
            config.eager,
        )
        self._adapter = _adapter(adapter) if adapter is not None else None

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether a prompt leaves room for its response."""
        return len(prompt) + max_new_tokens <= self.max_context

    def _generate(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        if not prompts:
            return []
        params = [_require().SamplingParams(detokenize=False, **own) for own in settings]
        return self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            params,
            use_tqdm=False,
            lora_request=self._adapter,
        )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> list[Tokens]:
        """Sample one response per prompt."""
        settings = [
            {
                "temperature": temperature,
                "max_tokens": max_new_tokens,
                "seed": seed,
                "logprobs": 0,
                "ignore_eos": True,
                "stop_token_ids": [self.eos_id],
            }
            for seed in seeds
        ]
        sampled = []
        for output in self._generate(prompts, settings):
            (completion,) = output.outputs
            ids = tuple(completion.token_ids)
            logprobs = tuple(
                own[token].logprob for token, own in zip(ids, completion.logprobs, strict=True)
            )
            sampled.append(Tokens(ids=ids, logprobs=logprobs, finished=ids[-1:] == (self.eos_id,)))
        return sampled

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt, NaN where not asked for."""
        wanted = {"logprobs": -1} if candidates is None else {"logprob_token_ids": list(candidates)}
        settings = [{"temperature": 1.0, "max_tokens": 1, "seed": 0, **wanted}] * len(prompts)
        rows = [
            {token: value.logprob for token, value in output.outputs[0].logprobs[0].items()}
            for output in self._generate(prompts, settings)
        ]
        return columns(rows, vocab_size=self.vocab_size, candidates=candidates)

    def forget(self) -> None:
        """Take the adapter out of vLLM's memory, and its number out of ours."""
        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probability of each continuation after its prompt, nats."""
        texts = [[*prompt, *own] for prompt, own in zip(prompts, continuations, strict=True)]
        settings = [{"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0}] * len(texts)
        return [
            sum(
                output.prompt_logprobs[place][text[place]].logprob
                for place in range(len(prompt), len(text))
            )
            for prompt, text, output in zip(
                prompts, texts, self._generate(texts, settings), strict=True
            )
        ]
