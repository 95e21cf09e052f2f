"""Exported policies: what plain transformers makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai import adapters, export
from cai.artifacts import Artifact, Store
from cai.choices import Adapter, ModelSource
from cai.errors import UserError
from cai.export import find
from cai.full_weights import read_plain
from cai.heads import ScoreHead
from cai.model_config import LoRAConfig, ModelConfig
from cai.models import BaseModel, Models
from tests.tiny import KINDS, LORA, engine, hardware, lora, scramble

IDS = torch.tensor([[70, 80, 90, 65, 66]])
SYSTEM = "Be brief."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def base_of(folder: Path) -> BaseModel:
    config = ModelConfig(
        name="tiny",
        source=ModelSource.path,
        path=str(folder),
        revision=None,
        start=None,
        max_context=500,
        system_prompt=SYSTEM,
        adapter=Adapter.lora,
        lora=lora(),
        engine=engine(),
    )
    return Models(hardware()).base(config)


def trained(
    model: Path,
    outputs: Path,
    kind: LoRAConfig | None = LORA,
    *,
    stage: str = "policy",
    head: ScoreHead | None = None,
) -> tuple[Artifact, torch.Tensor]:
    """A finished artifact of a policy that is far from its base, and its logits."""
    base = base_of(model)
    tuned = adapters.attach(base.model, kind, adapter="policy", seed=0)
    scramble(tuned, "policy", torch.Generator().manual_seed(len(stage)), scale=0.2)
    store = Store(root=outputs / "store")
    artifact = store.artifact(stage, {"version": 1})
    with store.filling(artifact) as work:
        adapters.save_adapter(
            tuned,
            "policy",
            work.folder / "adapter",
            head=head,
            base_id=base.base_id,
            base_sha256=base.sha256,
            probe_ids=[70, 80, 90],
        )
        key = {"identity": {"model": {"system_prompt": SYSTEM}}}
        store.commit(work, {"key": key})
    with torch.no_grad():
        logits = adapters.merged_copy(tuned, "policy")(IDS).logits
    return artifact, logits


def run_of(outputs: Path, *artifacts: Artifact) -> Path:
    """A run's folder that names artifacts."""
    folder = outputs / "rlaif" / "medical" / "2026"
    folder.mkdir(parents=True, exist_ok=True)
    stages = [{"stage": "prompts", "digest": "0"}]
    stages += [{"stage": artifact.stage, "digest": artifact.digest} for artifact in artifacts]
    (folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    return folder


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_plain_transformers_loads_the_policy_and_answers(
    tiny_folder: Path, tmp_path: Path, kind: LoRAConfig | None
) -> None:
    artifact, expected = trained(tiny_folder, tmp_path, kind)
    done = export.export(artifact, tmp_path / "policy", base=None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.dtype == torch.float32
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=0.0)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)(IDS).logits
    assert not torch.allclose(plain, expected, atol=0.1)
    assert done.gap < 1e-4

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_folder).chat_template
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": export.QUESTION}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == done.answer
    assert text
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    told = json.loads((tmp_path / "policy" / "cai.json").read_text())
    assert told["artifact"] == f"policy/{artifact.digest}"
    assert told["system_prompt"] == SYSTEM


def test_it_ends_at_the_token_that_ended_responses_in_training(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 7}))
    export.export(trained(model, tmp_path)[0], tmp_path / "policy", base=None)
    ends = json.loads((tmp_path / "policy" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [7, AutoTokenizer.from_pretrained(model).eos_token_id]


def test_a_run_stands_for_its_last_policy_or_the_one_that_is_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    sl_policy, _ = trained(tiny_folder, tmp_path, stage="sl_policy")
    policy, _ = trained(tiny_folder, tmp_path)
    run = run_of(tmp_path, sl_policy, policy)
    assert find(run, policy=None) == policy
    assert find(run, policy="sl_cai") == sl_policy
    assert find(policy.folder, policy=None) == policy
    selected, _ = trained(tiny_folder, tmp_path, stage="selected_policy")
    run_of(tmp_path, sl_policy, policy, selected)
    assert find(run, policy=None) == find(run, policy="rl_cai") == selected
    assert find(selected.folder, policy=None) == selected
    run_of(tmp_path, sl_policy, policy)
    with pytest.raises(UserError, match="has the policies rl_cai, sl_cai, and not dpo"):
        find(run, policy="dpo")


def test_what_is_no_policy_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor an artifact"):
        find(tmp_path, policy=None)
    scores, _ = trained(tiny_folder, tmp_path, stage="preference_model", head=ScoreHead(32, seed=0))
    with pytest.raises(UserError, match="result of the stage preference_model, which is no policy"):
        find(scores.folder, policy=None)
    run = run_of(tmp_path, scores)
    with pytest.raises(UserError, match="has no trained policy"):
        find(run, policy=None)


def test_a_matrix_has_no_one_policy(tiny_folder: Path, tmp_path: Path) -> None:
    artifact = trained(tiny_folder, tmp_path)[0]
    with pytest.raises(UserError, match=r"has 2 policies of the stage policy: it is a matrix"):
        find(run_of(tmp_path, artifact, artifact), policy=None)


def test_a_run_whose_store_is_elsewhere_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, trained(tiny_folder, tmp_path)[0])
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="name the artifact's own folder"):
        find(run, policy=None)


def test_nothing_is_overwritten(tiny_folder: Path, tmp_path: Path) -> None:
    artifact, _ = trained(tiny_folder, tmp_path)
    (tmp_path / "policy").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export.export(artifact, tmp_path / "policy", base=None)


def test_a_base_that_was_moved_is_named_and_another_one_is_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    home, moved, other = (tmp_path / name for name in ("home", "moved", "other"))
    shutil.copytree(tiny_folder, home)
    artifact, _ = trained(home, tmp_path)
    home.rename(moved)
    shutil.copytree(moved, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"is another one .* Name its folder with --base"):
        export.export(artifact, tmp_path / "policy", base=other)
    with pytest.raises(UserError, match=r"has no config.json\. Name its folder with --base"):
        export.export(artifact, tmp_path / "policy", base=home)
    export.export(artifact, tmp_path / "policy", base=moved)


def test_a_damaged_policy_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    artifact, _ = trained(tiny_folder, tmp_path)
    path = artifact.folder / "adapter" / "adapter_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="was changed or damaged"):
        export.export(artifact, tmp_path / "policy", base=None)
    assert not (tmp_path / "policy").exists()


def test_an_export_that_computes_something_else_is_not_left_behind(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = trained(tiny_folder, tmp_path)
    monkeypatch.setattr(adapters, "merged_copy", lambda *_: read_plain(tiny_folder))
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="logits are off by"):
        export.export(artifact, tmp_path / "policy", base=None)
    assert set(tmp_path.iterdir()) == before


def test_the_command_says_what_it_made(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, trained(tiny_folder, tmp_path)[0])
    export.main([str(run), "--to", str(tmp_path / "policy")])
    said = capsys.readouterr().out
    assert "in float32; read back, its logits are off those of training by at most " in said
    assert f"system turn: {SYSTEM}" in said
    with pytest.raises(SystemExit, match="1"):
        export.main([str(run), "--to", str(tmp_path / "policy")])
    assert "is there already" in capsys.readouterr().err
