"""Base models: where they come from, what identifies them, how they are loaded.

A base is loaded once per process and never changed; policies and preference models are adapters on
it or copies of it (`adapters.py`). Only safetensors and JSON are read; `trust_remote_code` does not
exist here. A base's identity is the sha256 of its weights, known without loading it, so a plan can
tell what would be reused.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cai import embedded, ranks
from cai.artifacts import Artifact, digest_of, file_sha256, write_atomically
from cai.choices import EngineName, ModelSource, Precision
from cai.engines import Engine, check_probe
from cai.engines.transformers import TransformersEngine
from cai.errors import UserError
from cai.full_weights import copy_of
from cai.hardware_config import HardwareConfig
from cai.model_config import EngineConfig, ModelConfig
from cai.model_start import ModelStart, model_start
from cai.paths import cache_dir
from cai.tokens import ChatEncoder
from cai.types import Message

log = logging.getLogger(__name__)

IDENTIFYING = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Endings of weights, configs, templates and vocabularies."""
POLICY = "policy"
REFERENCE = "reference"
PREFERENCE = "preference"
VALUE = "value"


class Weights:
    """A base's weights, read when they are first needed: other engines have them elsewhere.

    Args:
        config: The model; its name is for messages.
        hardware: Decides the number format and the device.
    """

    def __init__(self, config: ModelConfig, hardware: HardwareConfig) -> None:
        self.config = config
        self.hardware = hardware
        self.folder = folder_of(config)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The loaded model, frozen and in evaluation mode."""
        model = self._read()
        self._untouched = _same_weights(model)
        return model

    def take(self, model: PreTrainedModel) -> None:
        """Have a model that was read or made elsewhere."""
        vars(self)["model"] = model
        self._untouched = _same_weights(model)

    def apart(self) -> Weights:
        """The same weights in modules of their own: adapters on `model` are not on them."""
        found = copy.copy(self)
        if self.config.engine.name is EngineName.transformers or "model" in vars(self):
            _ = self.model  # read now, if it was not
            found.take(self._untouched)
        return found

    def _read(self) -> PreTrainedModel:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=dtype_of(self.hardware),
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"model {self.config.name} cannot be loaded from {self.folder}: {error}"
            ) from error
        model.requires_grad_(False)
        return model.eval().to(device_of(self.hardware))

    @cached_property
    def sizes(self) -> Sizes:
        """What its config.json says, without reading weights."""
        text = AutoConfig.from_pretrained(self.folder, local_files_only=True).get_text_config()
        return Sizes(window=text.max_position_embeddings, vocabulary=text.vocab_size)


def _same_weights(model: PreTrainedModel) -> PreTrainedModel:
    return copy_of(model, lambda parameter: parameter).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Limits of a model."""

    window: int
    """Longest text that it reads, tokens."""
    vocabulary: int
    """Ids that it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base with its tokenizer and identity."""

    weights: Weights
    encoder: ChatEncoder
    config: ModelConfig
    base_id: str
    """Public name, never a path of this machine for the embedded and hub models."""
    sha256: str

    @property
    def eos_id(self) -> int:
        """Ends a response."""
        return self.encoder.eos_id

    @property
    def model(self) -> PreTrainedModel:
        """The base in this process."""
        return self.weights.model

    def generator(self, model: PreTrainedModel | None = None) -> Engine:
        """What samples from this base by its engine, or from a changed copy of it in this process.

        Another engine gets a changed policy by its folder (`with_adapter`).
        """
        if model is None:
            return self._engine(None)
        return TransformersEngine(model, eos_id=self.eos_id, max_context=self.config.max_context)

    def with_adapter(self, folder: Path) -> Engine:
        """The engine of this base with a saved adapter.

        Raises:
            UserError: when the adapter is of another base, or the engine cannot have it or says
                something else with it than it did where it was made.
        """
        from cai import adapters

        if self.config.engine.name is not EngineName.transformers:
            identity = adapters.identity_of(folder, self.sha256)
            engine = self._engine(folder.resolve())
            check_probe(engine, identity["probe"], folder=folder, name=self.config.name)
            return engine
        tuned = adapters.load(self.model, folder, adapter=POLICY, base_sha256=self.sha256)
        try:
            return self.generator(adapters.merged_copy(tuned, POLICY))
        finally:
            tuned.unload()

    def _engine(self, adapter: Path | None) -> Engine:
        config = self.config
        match config.engine:
            case EngineConfig(vllm=vllm) if vllm is not None:
                from cai.engines.vllm import VLLMEngine

                return VLLMEngine(
                    vllm,
                    folder=self.weights.folder,
                    dtype=dtype_of(self.weights.hardware),
                    eos_id=self.eos_id,
                    max_context=config.max_context,
                    window=self.weights.sizes.window,
                    vocab_size=self.weights.sizes.vocabulary,
                    lora=config.lora,
                    adapter=adapter,
                )
            case EngineConfig(server=server) if server is not None:
                from cai.endpoint import Client
                from cai.engines.endpoint import EndpointEngine

                return EndpointEngine(
                    Client(server),
                    name=config.name,
                    eos_id=self.eos_id,
                    max_context=config.max_context,
                    vocab_size=self.weights.sizes.vocabulary,
                    adapter=adapter,
                )
            case _:
                return self.generator(self.model)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation with this model's own system turn, open for a response."""
        return self.encoder.conversation(messages, system=self.config.system_prompt)


def device_of(hardware: HardwareConfig) -> torch.device:
    """The device that a run computes on.

    Raises:
        UserError: when a GPU is asked for and there is none.
    """
    if hardware.accelerator == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", ranks.world().local_rank)
    if hardware.accelerator == "auto":
        return torch.device("cpu")
    raise UserError(
        f"hardware.accelerator={hardware.accelerator}: this machine has no such device. "
        "Type: hardware=cpu"
    )


def dtype_of(hardware: HardwareConfig) -> torch.dtype:
    """Number format of the frozen base; `auto` asks the device what it computes natively."""
    match hardware.precision:
        case Precision.fp32:
            return torch.float32
        case Precision.bf16:
            return torch.bfloat16
        case Precision.auto:
            native = device_of(hardware).type == "cuda" or (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
            return torch.bfloat16 if native else torch.float32


def folder_sha256(folder: Path) -> str:
    """Identity of a local model: its weights, config and tokenizer; remembered by size and time."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix in IDENTIFYING and path.is_file()
    )
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder} has no .safetensors file; other formats are not loaded")
    memory = cache_dir() / "hashes.json"
    try:
        known: dict[str, str] = json.loads(memory.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    hashes = {}
    for path in files:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        hashes[path.name] = known[key] = known.get(key) or file_sha256(path)
    with contextlib.suppress(OSError, UserError):  # only a memory; a read-only cache is fine
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(known).encode("utf-8"))
    return digest_of(hashes)


def hub_folder(path: str, *, revision: str | None) -> Path:
    """The folder of a model of the Hugging Face hub, downloaded unless it is in the hub's cache.

    Raises:
        UserError: when it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=[f"*{ending}" for ending in IDENTIFYING],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{path} could not be had from the Hugging Face hub ({type(error).__name__}). Without "
            "network, download it elsewhere and type: model=local model.path=<folder>"
        ) from error


def folder_of(config: ModelConfig) -> Path:
    """The folder a model is loaded from.

    Raises:
        UserError: when it is not there, damaged or of another format.
    """
    match config.source:
        case ModelSource.embedded:
            return embedded.verify(embedded.named(config.path))
        case ModelSource.hub:
            return hub_folder(config.path, revision=config.revision)
        case ModelSource.path:
            folder = Path(config.path).expanduser()
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"model.path={config.path}: no model there (config.json is missing)"
                )
            return folder


def public_name(config: ModelConfig) -> str:
    """What others call a base: for the embedded and hub models an id, never a path here."""
    if config.source is ModelSource.embedded:
        return embedded.named(config.path).model_id
    return config.path


def base_identity(config: ModelConfig) -> str:
    """Sha256 that stands for the weights and tokenizer of the base, without `start`."""
    if config.source is ModelSource.embedded:
        return embedded.named(config.path).gguf_sha256
    return folder_sha256(folder_of(config))


def start_of(config: ModelConfig) -> ModelStart | None:
    """What is merged into the base; None: nothing is.

    Raises:
        UserError: when it cannot be had.
    """
    if config.start is None:
        return None
    return model_start(
        config.name,
        config.start,
        base_id=public_name(config),
        base_sha256=base_identity(config),
    )


def identity(config: ModelConfig) -> str:
    """Sha256 that stands for a model's weights and tokenizer."""
    base, start = base_identity(config), start_of(config)
    return base if start is None else digest_of({"base": base, "start": start.sha256})


def _check_window(config: ModelConfig, window: int) -> None:
    if config.max_context > window:
        raise UserError(
            f"model {config.name}: max_context={config.max_context}, but it reads at most {window} "
            "tokens"
        )


def role_key(config: ModelConfig) -> dict[str, str | int | None]:
    """What of a model's configuration decides what it says, for a stage's digest.

    Numbers of another engine differ in their last digits, so it is named.
    """
    key = {
        "sha256": identity(config),
        "max_context": config.max_context,
        "system_prompt": config.system_prompt,
    }
    engine = config.engine
    if engine.name is not EngineName.transformers:
        key["engine"] = engine.name.value
    if engine.server is not None:
        key["server"] = f"{engine.server.url} {engine.server.model}"
    return key


def load(config: ModelConfig, hardware: HardwareConfig) -> BaseModel:
    """A base with its tokenizer; its weights too where this process computes with them.

    Without what `start` names, which `Models` merges.

    Raises:
        UserError: when it cannot be loaded.
    """
    weights = Weights(config, hardware)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise UserError(
            f"model {config.name}: the tokenizer has no "
            f"{'chat template' if tokenizer.chat_template is None else 'end-of-sequence token'}; "
            "an instruction-tuned model is needed"
        )
    if config.engine.name is EngineName.transformers:
        log.debug("loaded %s", type(weights.model).__name__)
    return BaseModel(
        weights=weights,
        encoder=ChatEncoder(tokenizer),
        config=config,
        base_id=public_name(config),
        sha256=base_identity(config),
    )


def _merged(base: BaseModel, start: ModelStart) -> Weights:
    """A base's weights with an adapter merged into them; the base stays as it is."""
    from cai import adapters

    apart = base.weights.apart()
    if start.probed:
        tuned = adapters.load(apart.model, start.folder, adapter=POLICY, base_sha256=base.sha256)
    else:
        tuned = adapters.load_plain(apart.model, start.folder, adapter=POLICY)
    merged = copy.copy(apart)
    merged.take(adapters.merged_copy(tuned, POLICY))
    tuned.unload()
    return merged


class Models:
    """The bases of one run; roles with the same weights share one copy in memory."""

    def __init__(self, hardware: HardwareConfig) -> None:
        self.hardware = hardware
        self._loaded: dict[str, BaseModel] = {}

    def base(self, config: ModelConfig) -> BaseModel:
        """The base of one role, loaded at first use."""
        sha256 = identity(config)
        if sha256 not in self._loaded:
            self._loaded[sha256] = self._load(config)
        shared = self._loaded[sha256]
        _check_window(config, shared.weights.sizes.window)
        return BaseModel(
            weights=shared.weights,
            encoder=shared.encoder,
            config=config,
            base_id=shared.base_id,
            sha256=sha256,
        )

    def apart(self) -> Models:
        """The same bases in modules of their own, weights shared.

        For whoever asks a base while adapters that are being trained are on it.
        """
        return _Apart(self)

    def _load(self, config: ModelConfig) -> BaseModel:
        start = start_of(config)
        if start is None:
            return load(config, self.hardware)
        base = self.base(dataclasses.replace(config, start=None))
        return dataclasses.replace(base, weights=_merged(base, start))

    def policy(
        self, config: ModelConfig, adapter: Artifact | None, *, folder: str | None = None
    ) -> Engine:
        """What samples from the base, or from the base with an adapter.

        Args:
            config: The base.
            adapter: What holds the adapter.
            folder: Where it does; None: where the trained one is.
        """
        base = self.base(config)
        if adapter is None:
            return base.generator()
        return base.with_adapter(adapter.verified_folder() / (folder or "adapter"))


class _Apart(Models):
    """Bases of other `Models` in modules of their own."""

    def __init__(self, shared: Models) -> None:
        super().__init__(shared.hardware)
        self._shared = shared

    def _load(self, config: ModelConfig) -> BaseModel:
        base = self._shared.base(config)
        return dataclasses.replace(base, weights=base.weights.apart())
