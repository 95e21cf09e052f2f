"""A whole run that trains all weights, from prompts to a plain model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from cai import export
from tests.runs import Finished, artifact_bytes, run, stage_lines, tiny_arguments

TRAINED = ("sl_policy", "preference_model", "policy")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    finished = run(folder, *tiny_arguments(tiny_folder), "model.adapter=none")
    assert finished.code == 0, finished.output
    return finished


def test_every_trained_role_is_a_model_of_its_own(whole: Finished) -> None:
    store = whole.folder / "outputs" / "store"
    for stage in TRAINED:
        (weights,) = store.glob(f"{stage}/*/adapter/model.safetensors")
        AutoModelForCausalLM.from_pretrained(weights.parent)
        assert not list(store.glob(f"{stage}/*/adapter/adapter_*"))
    assert not list(store.rglob("work"))


def test_killed_while_it_trains_it_goes_on_to_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder), "model.adapter=none"]
    assert run(tmp_path, *arguments, fault="policy:step=2:kill").code == -9
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()["sl_policy"] == ["reused"]
    assert artifact_bytes(tmp_path) == artifact_bytes(whole.folder)


def test_adapters_and_all_weights_share_what_neither_changes(
    whole: Finished, tiny_folder: Path
) -> None:
    planned = run(whole.folder, *tiny_arguments(tiny_folder), "plan=true")
    assert planned.code == 0, planned.output
    lines = {line.split()[0]: line for line in stage_lines(planned.output)}
    for stage in ("prompts", "drafts", "revisions", "helpfulness"):
        assert " reuse " in lines[stage]
    for stage in TRAINED:
        assert " compute " in lines[stage]


def test_a_run_is_exported(whole: Finished, tmp_path: Path) -> None:
    (run_dir,) = whole.run_dirs()
    for policy in ("sl_cai", "rl_cai"):
        artifact = export.find(run_dir, policy=policy)
        done = export.export(artifact, tmp_path / policy, base=None)
        assert done.gap < 1e-5
    names = {path.name for path in (tmp_path / "rl_cai").iterdir()}
    assert {"model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json"} <= names
