"""Runs whose policy is sampled by a server over HTTP: weights really pushed, gaps corrected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import Finished, run, tiny_arguments
from tests.served import Served
from tests.tiny import VOCAB_SIZE
from tests.vllm_like import TinyVLLM


def arguments(model: Path, url: str | None, *more: str) -> list[str]:
    """A run of two rounds; the policy is sampled here or there."""
    place = "model.engine"
    there = [
        f"engine@{place}=endpoint",
        f"{place}.server.url={url}",
        f"{place}.server.model=tiny",
        f"{place}.server.max_retries=0",
    ]
    ppo = ["phase.ppo.num_iterations=2", "phase.ppo.optimizer.learning_rate=0.01"]
    return [*tiny_arguments(model), *ppo, *(there if url else []), *more]


def asking(
    model: Path, folder: Path, server: Served, *more: str, fault: str | None = None
) -> Finished:
    cache = str(folder.parent / f"cache-{folder.name}")
    return run(folder, *arguments(model, server.url, *more), fault=fault, CAI_CACHE=cache)


def policy_of(finished: Finished) -> Path:
    """The newest policy's artifact."""
    found = finished.folder.glob("outputs/store/policy/*/manifest.json")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def rounds(finished: Finished) -> list[dict[str, float]]:
    return json.loads((policy_of(finished) / "curve.json").read_text())


def learned(finished: Finished) -> dict[str, torch.Tensor]:
    return load_file(policy_of(finished) / "adapter" / "adapter_model.safetensors")


def texts(finished: Finished) -> list[str]:
    lines = (policy_of(finished) / "rollouts.jsonl").read_text().splitlines()
    return [json.loads(line)["sample"]["text"] for line in lines]


AFTER_POLICY = "responses:start=1:kill"
"""Ends a run whose stages before the policy are there already."""


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> TinyVLLM:
    return TinyVLLM(folder=tiny_folder)


@pytest.fixture(scope="module")
def server(tiny: TinyVLLM) -> Iterator[Served]:
    with tiny.serving() as served:
        yield served


@pytest.fixture(scope="module")
def there(tiny_folder: Path, server: Served, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    found = asking(tiny_folder, tmp_path_factory.mktemp("there") / "run", server)
    assert found.code == 0, found.output
    return found


def test_each_round_is_sampled_with_its_own_weights_as_in_this_process(
    tiny: TinyVLLM, tiny_folder: Path, tmp_path: Path, there: Finished
) -> None:
    here = run(tmp_path / "here", *arguments(tiny_folder, None))
    assert here.code == 0, here.output
    assert texts(there) == texts(here)
    for name, tensor in learned(there).items():
        torch.testing.assert_close(tensor, learned(here)[name], atol=1e-4, rtol=1e-3)
    for one, other in zip(rounds(there), rounds(here), strict=True):
        assert one["objective/kl"] == pytest.approx(other["objective/kl"], abs=1e-3)
        assert one["val/sampler_gap"] < 1e-4
        assert one["val/sampler_ess"] == pytest.approx(1.0, abs=1e-6)
    report = (there.run_dirs()[-1] / "report.html").read_text("utf-8")
    assert "sampled by a server at http://127.0.0.1" in report
    assert rounds(there)[1]["objective/kl"] > 1e-4  # the second round's policy is not the first's
    pushed = [name for what, name in tiny.history if what == "loaded" and "policy-" in name]
    assert [name[:12] for name in pushed] == ["policy-00000", "policy-00001"]
    for name in pushed:
        own = [what for what, whose in tiny.history if whose == name]
        assert own == ["loaded", *["sampled"] * (len(own) - 2), "unloaded"]
        assert len(own) > 3
    assert not list(there.folder.rglob("*policy-0000*"))
    digests = [
        next(row["digest"] for row in found.manifest()["stages"] if row["stage"] == "policy")
        for found in (here, there)
    ]
    assert digests[0] != digests[1]


def test_a_finished_run_needs_no_server(
    tiny_folder: Path, tmp_path: Path, server: Served, there: Finished
) -> None:
    num = len(server.asked)
    again = asking(tiny_folder, shutil.copytree(there.folder, tmp_path / "run"), server)
    assert again.code == 0, again.output
    assert {one for own in again.statuses().values() for one in own} == {"reused"}
    assert len(server.asked) == num


def test_a_biased_server_is_seen_and_its_samples_are_weighed(
    tiny_folder: Path, tmp_path: Path, tiny: TinyVLLM, server: Served, there: Finished
) -> None:
    tiny.bias = 0.4 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    found = {}
    try:
        for correction in ("truncated", "none"):
            found[correction] = asking(
                tiny_folder,
                shutil.copytree(there.folder, tmp_path / correction),
                server,
                f"phase.ppo.sampler_correction={correction}",
                "phase.ppo.sampler_ratio_cap=1.5",
                fault=AFTER_POLICY,
            )
            assert found[correction].code == -9, found[correction].output
    finally:
        tiny.bias = None
    first, second = (rounds(found[name])[0] for name in ("truncated", "none"))
    for row in (first, second):
        assert row["val/sampler_kl"] > 0.02
        assert row["val/sampler_ratio_max"] > 1.5
        assert 0 < row["val/sampler_truncated"] < 0.5
        assert 0.5 < row["val/sampler_ess"] < 0.99
    assert texts(found["truncated"])[:4] == texts(found["none"])[:4]
    assert first["policy/grad_norm"] != pytest.approx(second["policy/grad_norm"], rel=1e-3)


def test_a_server_that_dies_in_a_round_is_named_and_the_same_command_goes_on(
    tiny_folder: Path, tmp_path: Path, tiny: TinyVLLM, server: Served, there: Finished
) -> None:
    other = "phase.ppo.kl_coef=0.07"
    copies = [shutil.copytree(there.folder, tmp_path / name) for name in ("whole", "run")]
    whole = asking(tiny_folder, copies[0], server, other, fault=AFTER_POLICY)
    assert whole.code == -9, whole.output
    tiny.dies_with = "policy-00001"
    died = asking(tiny_folder, copies[1], server, other)
    tiny.dies_with = None
    done = asking(tiny_folder, copies[1], server, other, fault=AFTER_POLICY)
    assert died.code == 1
    assert f"{server.url} cannot be reached" in died.output
    assert "the same command goes on" in died.output
    assert "Traceback" not in died.output
    assert done.code == -9, done.output
    assert json.loads((policy_of(done) / "manifest.json").read_text())["continued"]
    assert texts(done) == texts(whole)
    for name, tensor in learned(done).items():
        assert torch.equal(tensor, learned(whole)[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "serves other, and not tiny"),
        ({"max_model_len": 200}, "its longest text is of 200 tokens"),
        ({"follows_temperature": False}, "--logprobs-mode processed_logprobs"),
        ({"adapters": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_lora_rank": 8}, "is greater than max_lora_rank 8"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with TinyVLLM(folder=tiny_folder, **changes).serving() as server:
        refused = asking(tiny_folder, tmp_path / "run", server)
    assert refused.code == 1
    assert message in refused.output
    assert "python -m cai.engines.vllm_server start" in refused.output
    assert "vllm serve" in refused.output
    assert not list(refused.folder.rglob("records.jsonl"))
