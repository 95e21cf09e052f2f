"""The real embedded model through both phases with reduced counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cai import embedded, paths
from cai.models import BaseModel, load
from cai.schema import to_config
from cai.types import Message, Response, parse_lines
from tests.runs import Finished, artifact_bytes, run

ARGUMENTS = [
    "phase=rlaif",
    "constitution=medical",
    "debug=tiny",
    "logger=wandb",
    "hardware.num_threads=1",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run, with wandb offline."""
    finished = run(tmp_path_factory.mktemp("embedded"), *ARGUMENTS, WANDB_MODE="offline")
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def base() -> BaseModel:
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        config = to_config(compose("config", overrides=["hardware.precision=fp32"]))
    return load(config.model, config.hardware)


def test_both_phases_run_and_say_what_is_at_chance(whole: Finished) -> None:
    assert "Report: " in whole.output
    assert "Read this first" in whole.output
    (run_dir,) = whole.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["feedback/num_pairs"] == 4
    assert 0 < metrics["run/peak_memory_bytes"] < 6e9
    assert list((whole.folder / "outputs" / "wandb").glob("offline-run-*/*.wandb"))


def test_responses_are_sentences_of_the_model(whole: Finished) -> None:
    texts = [
        response.sample.text
        for path in (whole.folder / "outputs" / "store" / "drafts").glob("*/records.jsonl")
        for response in parse_lines(Response, path.read_text("ascii"), str(path))
    ]
    assert len(texts) == 6
    words = [word for text in texts for word in text.split()]
    assert sum(word.isascii() for word in words) > 0.9 * len(words)
    assert len(set(texts)) == 6
    assert not any("<|im_" in text for text in texts)


def test_the_policy_loads_with_plain_peft(whole: Finished, base: BaseModel) -> None:
    (folder,) = (whole.folder / "outputs" / "store" / "policy").glob("*/adapter")
    plain = AutoModelForCausalLM.from_pretrained(embedded.SMOLLM2.folder, dtype=torch.float32)
    ids = torch.tensor([base.prompt_ids([Message(role="user", content="How are you?")])])
    with torch.inference_mode():
        untrained = plain(ids).logits
        trained = PeftModel.from_pretrained(plain, folder)(ids).logits
    assert trained.isfinite().all()
    assert not torch.equal(untrained, trained)


def test_a_kill_in_ppo_changes_no_byte(whole: Finished, tmp_path: Path) -> None:
    killed = run(tmp_path, *ARGUMENTS, fault="policy:step=2:kill", WANDB_MODE="offline")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *ARGUMENTS, WANDB_MODE="offline")
    assert again.code == 0, again.output
    assert again.statuses()["policy"] == ["continued"]
    assert artifact_bytes(tmp_path) == artifact_bytes(whole.folder)


def test_greedy_sampling_equals_transformers_generate(base: BaseModel) -> None:
    prompts = [
        base.prompt_ids([Message(role="user", content=text)])
        for text in ("Name a fruit.", "What is the capital of France, and why do people go there?")
    ]
    ours = base.generator().sample(prompts, seeds=[0, 0], max_new_tokens=12, temperature=0)
    for prompt, sampled in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert list(sampled.ids) == theirs[0, len(prompt) :].tolist()


def test_option_letters_are_single_tokens_of_the_real_tokenizer(base: BaseModel) -> None:
    opening = base.encoder.text_ids("The answer is (")
    for letter in "BCDFGHJKLMNPQRSTVWXZ":
        assert len(base.encoder.text_ids(f"The answer is ({letter}")) == len(opening) + 1
