"""Whole stages over several ranks: the artifacts of one process, byte for byte."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from cai import paths
from cai.artifacts import MANIFEST, Store
from cai.config import Config, RLAIFConfig
from cai.context import RunContext
from cai.feedback.labelled import labelled_set
from cai.models import Models
from cai.phases.sl_cai import Inputs, judged
from cai.principle_subset import chosen_document
from cai.schema import to_config
from cai.stages import comparisons, evaluation, revisions, sampling
from cai.tracking import MemoryTracker
from tests.feedback.test_endpoint import judging, prefers
from tests.ranks import on_ranks
from tests.runs import tiny_arguments
from tests.served import serving

SECONDS = 300
"""On a busy machine; on a quiet one a stage takes less than one."""
FEEDBACKS = {
    "likelihood": (),
    "multiple_choice": (),
    "tuned": ("feedback.max_comparisons=12",),
}


def config_of(model: Path, feedback: str, *more: str) -> Config:
    """A tiny run's settings, with some shards for every rank."""
    few = [
        "phase.prompts.num_red_team=7",
        "phase.drafts.shard_size=2",
        "phase.revisions.critique.shard_size=2",
        "phase.revisions.revision.shard_size=2",
    ]
    arguments = [*tiny_arguments(model), f"feedback={feedback}", *more, *few]
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return to_config(compose("config", overrides=arguments))


def run_stages(config: Config, root: Path, *, feedback_alone: bool) -> None:
    """Every stage that samples, revises, compares or evaluates, without a training.

    Args:
        config: The run's settings.
        root: Where the store is made.
        feedback_alone: Only what the feedback does.
    """
    phase = config.phase
    assert isinstance(phase, RLAIFConfig)
    document = chosen_document(config.constitution)
    context = RunContext(
        run_dir=root / "run",
        store=Store(root=root / "store"),
        tracker=MemoryTracker(),
        constitution=document,
        models=Models(config.hardware),
        hardware=config.hardware,
        seed=config.seed,
        plan=False,
    )
    inputs = Inputs(
        model=config.model,
        principles=config.constitution.sampling,
        domain=None,
        data=config.data,
        feedback=config.feedback,
        evaluation=config.evaluation,
    )
    counts = phase.prompts
    prompts = sampling.prompts(context, config=counts, sources=config.data, domain=None)
    pairs = sampling.audit_pairs(
        context, model=config.model, config=phase.drafts, source=prompts, num=5
    )
    labelled = labelled_set(config.evaluation, document, seed=config.seed)
    found = judged(phase.feedback_model, inputs, context, labelled=labelled)
    comparisons.comparisons(
        context, judge=found.judge, config=phase.comparisons, pairs=pairs, num=5
    )
    if feedback_alone:
        return
    drafts = sampling.drafts(
        context,
        model=config.model,
        start=None,
        config=phase.drafts,
        source=prompts,
        num=counts.num_red_team,
    )
    revisions.revisions(
        context,
        reviewers=revisions.Reviewers(models=phase.critique_models),
        sampling=inputs.principles,
        config=phase.revisions,
        drafts=drafts,
        num=counts.num_red_team,
    )
    evaluation.evaluate(
        context,
        model=config.model,
        config=config.evaluation,
        counts=counts,
        prompts=prompts,
        policies={"base": None},
        preference_model=None,
    )


def artifacts_in(root: Path) -> dict[str, Any]:
    """Every file of a store, but of manifests only the artifact's counts and files."""
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.name == MANIFEST:
            manifest = json.loads(path.read_bytes())
            found[name] = [manifest[part] for part in ("key", "counts", "files")]
        elif path.is_file() and path.suffix != ".lock":
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("feedback", FEEDBACKS)
def test_two_and_three_ranks_make_the_artifacts_of_one_process(
    tiny_folder: Path, tmp_path: Path, feedback: str
) -> None:
    config = config_of(tiny_folder, feedback, *FEEDBACKS[feedback])
    work = partial(run_stages, config, feedback_alone=feedback != "likelihood")
    on_ranks(1, partial(work, tmp_path / "1"), seconds=SECONDS)
    alone = artifacts_in(tmp_path / "1" / "store")
    stages = {name.split("/")[0] for name in alone}
    assert {"audit_pairs", "feedback_check", "comparisons"} <= stages
    assert ({"drafts", "revisions", "capability"} <= stages) == (feedback == "likelihood")
    assert ("feedback_features" in stages) == (feedback == "tuned")
    for size in (2, 3):
        root = tmp_path / str(size)
        on_ranks(size, partial(work, root), seconds=SECONDS)
        assert artifacts_in(root / "store") == alone


def test_what_a_server_was_asked_by_all_ranks_is_counted_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    with serving(judging(prefers("the"))) as server:
        settings = ("url=" + server.url, "model=judge-1", "key_env=null", "price_input=1")
        config = config_of(
            tiny_folder, "endpoint", *(f"feedback.server.{setting}" for setting in settings)
        )
        for size in (1, 2):
            root = tmp_path / str(size)
            monkeypatch.setenv("CAI_CACHE", str(root / "cache"))
            server.asked.clear()
            work = partial(run_stages, config, root, feedback_alone=True)
            on_ranks(size, work, seconds=SECONDS)
            found.append((len(server.asked), artifacts_in(root / "store")))
    assert found[0] == found[1]
    num_asked, made = found[0]
    counts = [made[name][1] for name in made if name.endswith(MANIFEST)]
    assert num_asked == sum(count.get("requests", 0) for count in counts) > 10
