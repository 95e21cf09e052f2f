"""A server as a run's engine: adapters by folder, and what is asked of it before a run begins."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cai import adapters
from cai.artifacts import Artifact
from cai.engines import server_checks
from cai.engines.endpoint import EndpointEngine
from cai.engines.rollout_engine import rollout_engine
from cai.engines.vllm_server import arguments_of, command_line
from cai.errors import UserError
from cai.model_config import ModelConfig
from cai.models import POLICY, Models
from tests.conftest import byte_tokenizer
from tests.ranks import on_ranks
from tests.served import Sent, server_config, serving
from tests.test_engines import (
    CONTINUATIONS,
    PROMPTS,
    by_endpoint,
    by_server,
    by_vllm,
    saved_adapter,
)
from tests.test_models import local
from tests.tiny import hardware, lora, scramble, tiny_model
from tests.vllm_like import TinyVLLM


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def test_a_server_loads_an_adapter_under_a_name_of_its_own_weights(
    tiny_folder: Path, tmp_path: Path
) -> None:
    models = Models(hardware())
    artifact = saved_adapter(tiny_folder, tmp_path / "artifact", models)
    tiny = TinyVLLM(folder=tiny_folder)
    with tiny.serving() as server:
        config = local(tiny_folder, engine=by_server(server.url, model="tiny"))
        there, again = (models.policy(config, artifact) for _ in range(2))
        (name,) = tiny.paths
        assert re.fullmatch(r"adapter-[0-9a-f]{16}", name)
        assert there.adapter == again.adapter == name
        scores = there.score(PROMPTS, CONTINUATIONS)
        here = models.policy(local(tiny_folder), artifact).score(PROMPTS, CONTINUATIONS)
        assert scores == pytest.approx(here, abs=1e-3)
        base = models.policy(config, None).score(PROMPTS, CONTINUATIONS)
        assert max(abs(one - other) for one, other in zip(scores, base, strict=True)) > 0.1
        there.forget()
        assert not tiny.paths
        there.forget()  # what is not there need not go
        copied = shutil.copytree(artifact.folder, tmp_path / "copy")
        models.policy(config, Artifact(stage="policy", digest="1" * 64, folder=copied))
        assert list(tiny.paths) != [name]  # another run's copy, which goes when that run says so


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_lora_rank": 2}, r"rank 4 is greater than max_lora_rank 2.*--max-lora-rank"),
    ],
)
def test_a_server_that_takes_no_adapter_says_how_to_start_it(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    artifact = saved_adapter(tiny_folder, tmp_path / "artifact", Models(hardware()))
    with (
        TinyVLLM(folder=tiny_folder, **changes).serving() as server,
        pytest.raises(UserError, match=message),
    ):
        by_endpoint(server.url, artifact.folder / "adapter")


def test_a_server_that_sees_another_disk_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with (
        TinyVLLM(folder=tiny_folder).serving() as server,
        pytest.raises(UserError, match="must see the disk that this run writes to"),
    ):
        by_endpoint(server.url, folder)


def test_a_server_with_another_base_is_found_out_by_the_first_adapter(
    tiny_folder: Path, tmp_path: Path
) -> None:
    artifact = saved_adapter(tiny_folder, tmp_path / "artifact", Models(hardware()))
    other = tmp_path / "other"
    tiny_model(seed=5).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    with TinyVLLM(folder=other).serving() as server:
        config = local(tiny_folder, engine=by_server(server.url, model="tiny"))
        with pytest.raises(UserError, match="It has another base model than tiny"):
            Models(hardware()).policy(config, artifact)


def served(tiny: TinyVLLM, url: str, **changes: Any) -> ModelConfig:
    """The tiny model in a role that this server has."""
    return local(tiny.folder, engine=by_server(url, model="tiny", max_retries=0), **changes)


def check(config: ModelConfig, shared: Path, *, trained: bool = True) -> None:
    server_checks.check_role("policy", config, hardware=hardware(), trained=trained, shared=shared)


def test_a_server_that_fits_passes_and_keeps_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    tiny = TinyVLLM(folder=tiny_folder)
    with tiny.serving() as server:
        check(served(tiny, server.url), tmp_path / "outputs")
        num = len(server.asked)
        check(served(tiny, server.url), tmp_path / "outputs")
        assert len(server.asked) == 2 * num  # an answer of before would prove nothing
    assert not tiny.paths
    assert [what for what, _ in tiny.history].count("loaded") == 2
    assert not list((tmp_path / "outputs").iterdir())
    without = TinyVLLM(folder=tiny_folder, adapters=False)
    with without.serving() as server:
        check(served(without, server.url), tmp_path, trained=False)


@pytest.mark.parametrize("tokenizes", [True, False])
def test_a_server_with_another_tokenizer_is_refused(
    tiny_folder: Path, other_folder: Path, tmp_path: Path, tokenizes: bool
) -> None:
    tiny = TinyVLLM(folder=tiny_folder, tokenizes=tokenizes)
    with tiny.serving() as server:
        check(served(tiny, server.url), tmp_path)  # its own, both ways
    other = TinyVLLM(folder=other_folder, tokenizes=tokenizes)
    with other.serving() as server, pytest.raises(UserError, match="another tokenizer than model"):
        check(served(tiny, server.url), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "qwen"}, r"policy: .* serves qwen, and not tiny. Type server.model="),
        ({"max_model_len": 256}, r"longest text is of 256 tokens.*max_context=500"),
        ({"follows_temperature": False}, "--logprobs-mode processed_logprobs"),
        ({"adapters": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_lora_rank": 2}, "rank 4 is greater than max_lora_rank 2"),
    ],
)
def test_what_does_not_fit_is_told_with_the_command_that_starts_it(
    folder_of_500: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tiny = TinyVLLM(folder=folder_of_500, **changes)
    with tiny.serving() as server, pytest.raises(UserError, match=message) as raised:
        check(served(tiny, server.url), tmp_path)
    for part in ("vllm serve", "--max-lora-rank 8", "--max-model-len 501", str(folder_of_500)):
        assert part in str(raised.value)


@pytest.fixture(scope="module")
def folder_of_500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a longer window."""
    folder = tmp_path_factory.mktemp("window")
    model = tiny_model(seed=0)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_server_that_is_not_there_is_told_with_how_to_start_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    tiny = TinyVLLM(folder=tiny_folder)
    with tiny.serving() as server:
        url = server.url
    with pytest.raises(UserError, match=r"cannot be reached .*vllm_server start"):
        check(served(tiny, url), tmp_path)
    with pytest.raises(UserError, match="cannot be reached"):
        server_checks.check_role(
            "judge", server_config(url, max_retries=0), hardware=hardware(), trained=False,
            shared=tmp_path,
        )  # fmt: skip


def test_a_judge_s_server_must_have_its_model(tmp_path: Path) -> None:
    def ask(url: str) -> None:
        server_checks.check_role(
            "judge", server_config(url), hardware=hardware(), trained=False, shared=tmp_path
        )

    with serving(lambda *_: Sent(), listed=lambda: {"data": [{"id": "judge-1"}]}) as server:
        ask(server.url)
    with (
        serving(lambda *_: Sent(), listed=lambda: {"data": []}) as server,
        pytest.raises(UserError, match="serves no model, and not judge-1"),
    ):
        ask(server.url)
    with (
        serving(lambda *_: Sent(), listed=lambda: "<html>") as server,
        pytest.raises(UserError, match="does not say what it serves"),
    ):
        ask(server.url)


def test_the_command_says_what_scoring_and_adapters_need(tiny_folder: Path) -> None:
    config = local(tiny_folder, engine=by_server("http://127.0.0.1:8000/v1", model="mine"))
    told = arguments_of(config)
    assert told[told.index("--served-model-name") + 1] == "mine"
    assert told[told.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert told[told.index("--lora-target-modules") + 1 :] == config.lora.target_modules
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve" in command_line(config)


def pushing(model: Path, folder: Path, url: str) -> list[tuple[str | None, list[float]]]:
    """Two rounds of an adapter that changes between them; each rank scores all texts."""
    base = Models(hardware()).base(local(model, engine=by_server(url, model="tiny")))
    tuned = adapters.attach(base.model, lora(), adapter=POLICY, seed=0)
    engine = rollout_engine(base, tuned, folder=folder, name="policy")
    found = []
    for iteration in range(2):
        scramble(tuned, POLICY, torch.Generator().manual_seed(iteration), scale=0.2)
        current = engine.updated(iteration)
        assert isinstance(current, EndpointEngine)
        assert (folder / f"policy-{iteration:05d}" / "adapter_config.json").is_file()
        merged = adapters.merged_copy(tuned, POLICY)
        here = base.generator(merged).score(PROMPTS, CONTINUATIONS)
        assert current.score(PROMPTS, CONTINUATIONS) == pytest.approx(here, abs=1e-3)
        found.append((current.adapter, here))
    engine.close()
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_every_rank_samples_from_the_adapter_that_rank_0_has_pushed(
    tiny_folder: Path, tmp_path: Path, size: int
) -> None:
    tiny = TinyVLLM(folder=tiny_folder)
    with tiny.serving() as server:
        body = functools.partial(pushing, tiny_folder, tmp_path / "pushed", server.url)
        told = on_ranks(size, body)
    first, second = told[0]
    assert all(one == told[0] for one in told)
    assert first[0] != second[0]
    assert max(abs(a - b) for a, b in zip(first[1], second[1], strict=True)) > 0.1
    assert [what for what, _ in tiny.history] == ["loaded", "loaded", "unloaded", "unloaded"]
    assert not tiny.paths
    assert not list((tmp_path / "pushed").iterdir())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_in_this_process_must_be_installed(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'"):
        check(local(tiny_folder, engine=by_vllm()), tmp_path)
