from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cai.choices import Precision
from cai.errors import UserError
from cai.models import Models, device_of, dtype_of, identity, load
from tests.tiny import hardware, local


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def test_identity_is_that_of_the_content(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert identity(local(copy)) == identity(local(tiny_folder))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert identity(local(copy)) != identity(local(tiny_folder))


def test_roles_with_the_same_weights_share_one_base(tiny_folder: Path) -> None:
    models = Models(hardware())
    policy = models.base(local(tiny_folder))
    judge = models.base(local(tiny_folder, max_context=100, system_prompt="Judge."))
    assert policy.model is judge.model
    assert judge.config.system_prompt == "Judge."
    assert not any(p.requires_grad for p in policy.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/nowhere"}, "no model there"),
        ({"max_context": 10_000_000}, "reads at most 8192 tokens"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(
    tiny_folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Models(hardware()).base(local(tiny_folder, **changes))


def test_damaged_weights_are_a_clear_error(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match="tiny cannot be loaded from"):
        load(local(folder), hardware())


def test_only_safetensors_are_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no \.safetensors file"):
        identity(local(folder))


def test_a_model_without_a_chat_template_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load(local(folder), hardware())


def test_precision_and_device_follow_the_hardware() -> None:
    assert dtype_of(replace(hardware(), precision=Precision.bf16)) is torch.bfloat16
    assert dtype_of(replace(hardware(), precision=Precision.fp32)) is torch.float32
    assert dtype_of(replace(hardware(), precision=Precision.auto)) in (
        torch.bfloat16,
        torch.float32,
    )
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="hardware=cpu"):
            device_of(replace(hardware(), accelerator="gpu"))
