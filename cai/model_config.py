"""Types of a model's settings; `cai.config` says what holds for all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from cai.choices import Adapter, EmbeddedModel, EngineName, ModelSource
from cai.ranges import check, not_negative, positive


@dataclass(kw_only=True, slots=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021); the base stays frozen."""

    rank: int
    alpha: int
    """Scale: the update is multiplied by alpha / rank."""
    target_modules: list[str]
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        positive(self, "rank", "alpha")


@dataclass(kw_only=True, slots=True)
class ServerConfig:
    """An OpenAI-compatible server."""

    url: str
    """Up to and including `/v1`."""
    model: str
    """The server's name for the model."""
    key_env: str | None
    """Environment variable that holds the key; null: none is sent."""
    num_parallel: int
    """Requests in flight, of all processes of a run together."""
    requests_per_minute: float
    """Of all processes of a run together, retries included; 0: no limit."""
    max_retries: int
    """After a timeout, a lost connection, status 408, 409, 429 or 5xx; with growing pauses."""
    timeout_seconds: float
    """Silence after which an attempt is given up."""
    price_input: float
    """US dollars per million tokens, for the cost count."""
    price_output: float

    def __post_init__(self) -> None:
        check(
            self.url.startswith(("http://", "https://")),
            "url must begin with http:// or https://",
        )
        parts = urlsplit(self.url)
        check(
            "@" not in parts.netloc and not parts.query,
            "url must hold no password and nothing after a question mark; a key goes into the "
            "environment variable that key_env names",
        )
        check(
            self.key_env is None
            or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env) is not None,
            "key_env must be the name of an environment variable, never the key itself",
        )
        positive(self, "num_parallel", "timeout_seconds")
        not_negative(self, "requests_per_minute", "max_retries", "price_input", "price_output")


@dataclass(kw_only=True, slots=True)
class VLLMConfig:
    """How vLLM is started in this process."""

    kv_cache_gib: float
    """Memory for keys and values, of each device; what training leaves free limits it."""
    num_devices: int
    """GPUs that share the model's layers (tensor parallelism)."""
    eager: bool
    """Skip compilation and CUDA graphs: starts in seconds instead of minutes, runs slower."""

    def __post_init__(self) -> None:
        positive(self, "kv_cache_gib", "num_devices")


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """What samples from a model and scores with it.

    One class for all options, because a phase's schema that is merged after its models would
    narrow a subclass here to this class (omegaconf 2.3.1).
    """

    name: EngineName
    vllm: VLLMConfig | None
    """For `name: vllm`, else null."""
    server: ServerConfig | None
    """For `name: endpoint`, else null; it must serve the role's own weights. A trained policy is
    loaded into it as an adapter of every round, by the folder's path."""

    def __post_init__(self) -> None:
        check(
            (self.vllm is not None) == (self.name is EngineName.vllm)
            and (self.server is not None) == (self.name is EngineName.endpoint),
            f"name={self.name.value} does not go with these settings; choose an engine as a whole, "
            "e.g. engine@model.engine=vllm",
        )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A causal language model in one role."""

    name: str
    source: ModelSource
    path: str
    """Folder for `source: path`, id for `source: hub`, an `EmbeddedModel` for `embedded`."""
    revision: str | None
    """Commit of a hub model; null takes the newest."""
    start: str | None
    """Folder of an adapter of this base, or of a finished run that trained one, which is merged
    into the weights when they are loaded (one more copy in memory); null: the base as it is. For
    roles that are not trained: judges, and critique models, which critique with it while the base
    itself revises."""
    max_context: int
    """Longest prompt plus response, in tokens; what does not fit is a counted outcome."""
    system_prompt: str | None
    """System turn of the policy's conversations; null leaves the chat template's own."""
    adapter: Adapter
    """What is trained. With `none` (all weights) the settings of `lora` are not used, each trained
    role takes 4 bytes of memory per weight and 12 more while it learns, and the learning rates of
    `conf/phase`, which are for adapters, are too high: experiment=full_weights has others."""
    lora: LoRAConfig
    """For `adapter: lora`."""
    engine: EngineConfig

    def __post_init__(self) -> None:
        positive(self, "max_context")
        check(
            self.adapter is Adapter.lora or self.engine.name is EngineName.transformers,
            f"adapter={self.adapter.value} cannot be sampled from by engine="
            f"{self.engine.name.value}, which would have to start anew for every policy: type "
            "engine@<this model>.engine=transformers, or adapter=lora",
        )
        check(
            self.start is None or self.engine.name is EngineName.transformers,
            f"start={self.start} is merged into weights in this process, and engine="
            f"{self.engine.name.value} has its own: type engine@<this model>.engine=transformers, "
            "or start=null",
        )
        check(
            self.source is not ModelSource.embedded or self.path in list(EmbeddedModel),
            f"path must be one of {', '.join(EmbeddedModel)} for source=embedded, not {self.path}",
        )

    @property
    def trained(self) -> LoRAConfig | None:
        """The adapters that are trained; None: all weights are."""
        return self.lora if self.adapter is Adapter.lora else None
