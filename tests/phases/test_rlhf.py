from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from cai.stages.human_comparisons import HELD_OUT, TRAIN, preferred, prompt_name
from cai.stages.preference_model import VALIDATION
from cai.types import Evaluated, PreferencePair, PreferencePrediction, Response, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

STAGES = [
    "human_comparisons",
    "prompts",
    "sft_policy",
    "samples",
    "rlhf_preference_model",
    "rlhf_policy",
    "responses",
    "likelihoods",
    "base_likelihoods",
    "capability",
    "evaluation",
    "contrast_prompts",
    "contrast_responses",
    "over_refusal",
    "feedback_features",
    "tuned_feedback",
    "feedback_check",
    "matches",
]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run on the comparisons that come with the package."""
    finished = run(tmp_path_factory.mktemp("rlhf"), *tiny_arguments(tiny_folder, "rlhf"))
    assert finished.code == 0, finished.output
    return finished


def folder_of(finished: Finished, stage: str) -> Path:
    (folder,) = (finished.folder / "outputs" / "store" / stage).glob("*/")
    return folder


def records(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    path = folder_of(finished, stage) / name
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def test_all_stages_run_without_a_principle_or_a_model_in_the_labels(whole: Finished) -> None:
    assert list(whole.statuses()) == STAGES
    assert whole.statuses()["responses"] == ["computed"] * 3
    for stage in ("sft_policy", "rlhf_policy"):
        assert (folder_of(whole, stage) / "adapter" / "adapter_model.safetensors").stat().st_size
    key = json.loads((folder_of(whole, "rlhf_preference_model") / "manifest.json").read_text())
    assert set(key["key"]["inputs"]) == {"comparisons", "pairs"}
    assert "constitution" not in key["key"]["identity"]


def test_prompts_are_held_out_with_all_their_pairs(whole: Finished) -> None:
    learned = records(whole, "human_comparisons", PreferencePair, TRAIN)
    held_out = records(whole, "human_comparisons", PreferencePair, HELD_OUT)
    assert (len(learned), len(held_out)) == (16, 8)
    assert not {prompt_name(p.messages) for p in learned} & {
        prompt_name(p.messages) for p in held_out
    }
    predicted = records(whole, "rlhf_preference_model", PreferencePrediction, VALIDATION)
    assert [p.name for p in predicted] == [prompt_name(p.messages) for p in held_out]
    assert [p.prob_a for p in predicted] == [p.prob_a for p in held_out]
    assert {p.prob_a for p in held_out} == {0.0, 1.0}


def test_scores_have_mean_zero_on_the_samples_that_ppo_starts_from(whole: Finished) -> None:
    sampled = records(whole, "samples", Response)
    assert {r.policy for r in sampled} == {"sft"}
    assert len(sampled) == 10
    curve = json.loads((folder_of(whole, "rlhf_policy") / "curve.json").read_text())
    # The policy is the fine-tuned one in the first round: no KL, and scores on its scale.
    assert curve[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(curve[0]["objective/scores"]) < 3


def test_the_fine_tuned_policy_is_not_the_base_and_rlhf_is_neither(whole: Finished) -> None:
    evaluated = records(whole, "evaluation", Evaluated)
    assert list(dict.fromkeys(e.response.policy for e in evaluated)) == ["base", "sft", "rlhf"]
    by_policy = {
        name: [e.score for e in evaluated if e.response.policy == name]
        for name in ("base", "sft", "rlhf")
    }
    assert all(score is not None for scores in by_policy.values() for score in scores)
    assert len({tuple(scores) for scores in by_policy.values()}) == 3


def test_metrics_report_and_card_say_whose_labels_they_are(whole: Finished) -> None:
    (run_dir,) = whole.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name in (
        "people/num_learned",
        "preference_model/accuracy",
        "preference_model/cross_entropy",
        "eval/sft/red_team/refusal_rate",
        "eval/rlhf/likelihood_accuracy",
        "capability/rlhf/accuracy",
        "elo/helpfulness/rlhf",
        "run/seconds",
    ):
        assert name in metrics, sorted(metrics)
    assert metrics["people/num_learned"] == 16
    page = (run_dir / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))
    for said in (
        "RLHF under the constitution",
        "16 comparisons of human_comparisons were learned from and 8 held out",
        "no crowd worker saw them",
        "16 pairs labelled by people, none by AI feedback",
        "Agreement with human labels of held-out pairs",
        "KL to the SFT policy",
    ):
        assert said in text, said
    assert "SL-CAI fine-tune" not in text
    assert "SL-CAI standard deviations" not in text
    assert "The human labels are the package's own 24 comparisons" in whole.output
    assert "circular: it supplied the labels" not in whole.output
    assert "not by crowd workers" in (run_dir / "model_card.md").read_text("utf-8")


def test_the_same_command_again_recomputes_nothing(whole: Finished, tiny_folder: Path) -> None:
    before = artifact_bytes(whole.folder)
    again = run(whole.folder, *tiny_arguments(tiny_folder, "rlhf"))
    assert again.code == 0, again.output
    assert {s for statuses in again.statuses().values() for s in statuses} == {"reused"}
    assert artifact_bytes(whole.folder) == before


def test_a_plan_names_the_stages_and_what_another_setting_changes(
    whole: Finished, tiny_folder: Path
) -> None:
    arguments = tiny_arguments(tiny_folder, "rlhf")
    plan = run(whole.folder, *arguments, "phase.ppo.kl_coef=0.5", "plan=true")
    assert plan.code == 0, plan.output
    assert re.search(r"^rlhf_preference_model +reuse", plan.output, re.M)
    assert re.search(r"^rlhf_policy +compute", plan.output, re.M)
    assert "Nothing was run." in plan.output


@pytest.mark.parametrize("point", ["sft_policy:step=2", "rlhf_policy:checkpoint=1"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    arguments = tiny_arguments(tiny_folder, "rlhf")
    killed = run(tmp_path, *arguments, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    mine = artifact_bytes(tmp_path)
    assert mine == {k: v for k, v in artifact_bytes(whole.folder).items() if k in mine}


def test_comparisons_of_ones_own_take_the_place_of_the_shipped_ones(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Where is town {i}?", "chosen": "Up north.", "rejected": "No idea, sorry."}
        for i in range(6)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"data.human_comparisons.path={path}", "data.human_comparisons.prompt_column=prompt"]
    mine = run(tmp_path, *tiny_arguments(tiny_folder, "rlhf"), *own)
    assert mine.code == 0, mine.output
    learned = records(mine, "human_comparisons", PreferencePair, TRAIN)
    assert {preferred(pair) for pair in learned} == {"Up north."}
    assert "the package's own" not in mine.output
    assert "mine.jsonl" in (mine.run_dirs()[0] / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.human_comparisons.path=null"], "learns from comparisons by people and needs some"),
        (["data.human_comparisons.path=red_team"], "has prompts and no comparisons"),
        (["data.human_comparisons.path=gone.jsonl"], "there is no such file"),
        (["phase.preference_model.human_frac=0.5"], "phase.preference_model.human_frac must be nu"),
        (["phase.preference_model.condition=principle"], "condition must be none"),
        (["phase.ppo.select=gold_peak"], "phase.ppo.select=gold_peak needs a gold"),
        (["phase.start=nowhere"], "phase.start=nowhere: there is no such folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    refused = run(tmp_path, *tiny_arguments(tiny_folder, "rlhf"), *settings)
    assert refused.code in (1, 2), refused.output
    assert message in refused.output
    assert not list((tmp_path / "outputs" / "store").glob("*/*/manifest.json"))


def test_a_later_phase_begins_with_its_policy_and_drafts_by_it(
    whole: Finished, tiny_folder: Path
) -> None:
    run_dir = whole.run_dirs()[0]
    arguments = [*tiny_arguments(tiny_folder, "sl_cai"), f"phase.start={run_dir}"]
    after = run(whole.folder, *arguments)
    assert after.code == 0, after.output
    statuses = after.statuses()
    assert statuses["start_policy"] == ["computed"]
    assert statuses["prompts"] == ["reused"]
    assert {r.policy for r in records(after, "drafts", Response)} == {"start"}
    assert {r.policy for r in records(after, "helpfulness", Response)} == {"start"}
    metrics = json.loads((after.run_dirs()[-1] / "metrics.json").read_text())
    assert "eval/start/likelihood_accuracy" in metrics
    # What was copied is the policy that rlhf ended with, and the fine-tune continued it.
    copied = folder_of(after, "start_policy") / "adapter" / "adapter_model.safetensors"
    last = folder_of(after, "rlhf_policy") / "adapter" / "adapter_model.safetensors"
    assert copied.read_bytes() == last.read_bytes()
    trained = folder_of(after, "sl_policy") / "adapter" / "adapter_model.safetensors"
    assert trained.read_bytes() != last.read_bytes()
    plan = run(whole.folder, *arguments, "phase.sl_policy.num_epochs=2", "plan=true")
    assert "reuse" in next(line for line in plan.output.splitlines() if "start_policy" in line)


def test_a_start_of_learning_rate_0_stays_what_it_was(whole: Finished, tiny_folder: Path) -> None:
    run_dir = whole.run_dirs()[0]
    still = run(
        whole.folder,
        *tiny_arguments(tiny_folder, "sl_cai"),
        f"phase.start={run_dir}",
        "phase.sl_policy.optimizer.learning_rate=0",
    )
    assert still.code == 0, still.output
    digest = {s["stage"]: s["digest"] for s in still.manifest()["stages"]}["sl_policy"]
    store = whole.folder / "outputs" / "store"
    trained = store / "sl_policy" / digest / "adapter" / "adapter_model.safetensors"
    last = folder_of(whole, "rlhf_policy") / "adapter" / "adapter_model.safetensors"
    assert trained.read_bytes() == last.read_bytes()


def test_an_adapter_folder_may_be_named_and_wrong_ones_are_refused(
    whole: Finished, tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    store = whole.folder / "outputs" / "store"
    policy = folder_of(whole, "rlhf_policy")
    arguments = [*tiny_arguments(tiny_folder, "sl_cai"), "plan=true"]
    for folder in (policy, policy / "adapter"):
        named = run(tmp_path, *arguments, f"phase.start={folder}")
        assert named.code == 0, named.output
        assert "start_policy" in named.output
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 0\n")
    failed = tmp_path / "failed"
    failed.mkdir()
    (failed / "manifest.json").write_text('{"status": "failed", "stages": []}')
    cases = {
        (f"phase.start={unfinished}",): "was not finished: it has no manifest.json",
        (f"phase.start={failed}",): "was not finished (failed)",
        (f"phase.start={tmp_path}",): "there is no adapter in it",
        (f"phase.start={folder_of(whole, 'rlhf_preference_model')}",): "which is no policy",
        (f"phase.start={folder_of(whole, 'rlhf_preference_model') / 'adapter'}",): "no policy",
        (f"phase.start={policy}", "model.lora.rank=3"): "another shape than model.lora",
        (f"phase.start={policy}", "model.adapter=none"): "Type model.adapter=lora",
        (f"phase.start={policy}", f"model.path={other_folder}"): "has other weights",
    }
    for settings, message in cases.items():
        refused = run(tmp_path, *arguments, *settings)
        assert refused.code == 2, refused.output
        assert message in refused.output
    assert store.is_dir()


def test_compare_takes_both_phases_and_trace_refuses(whole: Finished) -> None:
    run_dir = whole.run_dirs()[0]
    traced = run(whole.folder, "phase=trace", f"run={run_dir}", "example=x")
    assert traced.code == 1
    assert "a trace is of phase=rlaif or phase=dpo" in traced.output
    other = next(folder for folder in whole.run_dirs() if folder.parts[-3] == "sl_cai")
    compared = run(whole.folder, "phase=compare", f"runs=[{run_dir},{other}]")
    assert compared.code == 0, compared.output
    assert "rlhf" in compared.output
