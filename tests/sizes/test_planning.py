"""A plan tells sizes, and what cannot fit is refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import run, tiny_arguments


def arguments(model: Path, phase: str = "rlaif", *more: str) -> list[str]:
    return [*tiny_arguments(model, phase), "hardware.memory_gb=4", *more]


@pytest.fixture(scope="module")
def told(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plan")
    plan = run(folder, *arguments(tiny_folder), "plan=true")
    assert plan.code == 0, plan.output
    return plan.output


def rows(output: str) -> dict[str, list[str]]:
    """The table of sizes: cells by stage."""
    lines = output.split("Nothing was run.")[1].splitlines()
    return {line.split("  ")[0]: line.split() for line in lines if line}


def test_every_stage_that_asks_a_model_has_a_size(told):
    table = rows(told)
    for stage in (
        "loading a base", "drafts", "revisions", "helpfulness", "sl_policy", "pairs",
        "feedback_features", "tuned_feedback", "feedback_check", "comparisons",
        "preference_model", "policy", "responses (3)", "likelihoods (3)", "capability (3)",
        "base_likelihoods (3)", "evaluation", "principle_scores (2)", "controls",
        "control_comparisons", "matches (3)", "contrast_responses (3)",
    ):  # fmt: skip
        assert stage in table
    assert "the device has 4.00 GB" in told


def test_tokens_follow_from_the_settings(told):
    table = rows(told)
    # debug=tiny: 2 rounds of 4 rollouts of at most 12 tokens
    counts = next(line for line in told.splitlines() if line.startswith("policy "))
    rollouts = int(counts.split(" rollouts")[0].split()[-1])
    assert f"<={rollouts * 12:,}" in table["policy"]
    assert any(cell.startswith("<=") for cell in table["sl_policy"])


def test_a_stage_that_never_ran_is_marked_as_a_prediction(told):
    assert "~ " in next(line for line in told.splitlines() if line.startswith("policy "))
    assert "(~: never ran here, predicted)" in told


def test_what_cannot_fit_is_refused_with_settings_that_fit(tiny_folder, tmp_path):
    wide = arguments(
        tiny_folder,
        "sl_cai",
        "hardware.memory_gb=1",
        "hardware.micro_batch_size=4096",
        "evaluation.elo.num_prompts=0",
        "evaluation.num_critique_controls=0",
        "hardware.check_memory=true",
    )
    plan = run(tmp_path, *wide, "plan=true")
    assert plan.code == 1
    assert "sl_policy would need" in plan.output
    assert "the device has 1.00 GB" in plan.output
    assert "This would fit: hardware.micro_batch_size=" in plan.output
    assert "hardware.check_memory=false" in plan.output
    refused = run(tmp_path, *wide)
    assert refused.code == 1
    assert "sl_policy would need" in refused.output
    assert not list((tmp_path / "outputs").glob("store/*"))
    size = refused.output.split("hardware.micro_batch_size=")[1].split()[0].rstrip(".;")
    fits = run(tmp_path, *wide, f"hardware.micro_batch_size={size}", "plan=true")
    assert fits.code == 0, fits.output
    tried = run(tmp_path, *wide, "hardware.check_memory=false", "plan=true")
    assert tried.code == 0, tried.output


def test_weights_that_are_larger_than_the_device_are_refused_first(tiny_folder, tmp_path):
    refused = run(
        tmp_path, *arguments(tiny_folder), "hardware.memory_gb=0.1", "hardware.check_memory=true"
    )
    assert refused.code == 1
    assert "The weights alone need" in refused.output
    assert "hardware.check_memory=false" in refused.output


def test_a_document_without_principles_is_planned(tiny_folder, tmp_path):
    plan = run(tmp_path, *arguments(tiny_folder, "sl_cai", "constitution=none"), "plan=true")
    assert plan.code == 0, plan.output


def test_a_prompt_that_is_never_computed_takes_no_memory(tiny_folder, tmp_path):
    prompts = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"What is {number} and one?"} for number in range(40)]
    own = ["data.red_team.path=mine.jsonl", "data.red_team.format=jsonl", "plan=true"]
    typed = arguments(tiny_folder, "sl_cai", "evaluation.elo.num_prompts=0", *own)
    plans = []
    for more in ([], [{"prompt": "long " * 100_000}]):
        prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
        plan = run(tmp_path, *typed)
        assert plan.code == 0, plan.output
        drafts = [one for one in plan.output.splitlines() if one.startswith("drafts ")]
        plans.append([one.split()[:-1] for one in drafts])  # without the digest
    assert plans[0] == plans[1]


def test_a_plan_for_a_gpu_that_is_elsewhere(tiny_folder, tmp_path):
    asked = [one for one in arguments(tiny_folder) if not one.startswith("hardware.")]
    elsewhere = ["hardware=gpu", "hardware.memory_gb=80", "plan=true"]
    plan = run(tmp_path, *asked, *elsewhere)
    assert plan.code == 0, plan.output
    assert "the device has 80.00 GB" in plan.output
    unknown = run(tmp_path, *asked, "hardware=gpu", "plan=true")
    assert unknown.code == 0, unknown.output
    assert "type hardware.memory_gb=<GB>" in unknown.output
