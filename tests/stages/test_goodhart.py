"""The policy that is kept, from scores that say where the peak is; how far a snapshot went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cai import adapters, constitution, paths
from cai.artifacts import Artifact, Store, Work
from cai.choices import Adapter, Combine, ModelSource
from cai.context import RunContext, Stage, StageStatus
from cai.goodhart import SnapshotScore
from cai.model_config import ModelConfig
from cai.models import Models
from cai.stages.goodhart import SELECTION, Policies, _log_ratios, selected_policy
from cai.stages.policy import snapshot_folder, snapshot_rounds
from cai.stages.preference_model import VALIDATION
from cai.stages.training import save
from cai.tracking import MemoryTracker
from cai.types import Message, PreferencePrediction, Prompt, PromptKind, Response, Sample, Split
from tests.tiny import LORA, engine, hardware, lora, ppo_config, scramble


def local(folder: Path) -> ModelConfig:
    return ModelConfig(
        name="tiny",
        source=ModelSource.path,
        path=str(folder),
        revision=None,
        start=None,
        max_context=500,
        system_prompt=None,
        adapter=Adapter.lora,
        lora=lora(),
        engine=engine(),
    )


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    return RunContext(
        run_dir=tmp_path / "run",
        store=Store(root=tmp_path / "store"),
        tracker=MemoryTracker(),
        constitution=constitution.load("medical", folder=paths.CONSTITUTIONS),
        models=Models(hardware()),
        hardware=hardware(),
        seed=0,
        plan=False,
    )


def made(context: RunContext, name: str, write: Callable[[Work], None], **identity) -> Artifact:
    return context.run(
        Stage(name=name, version=1, config={}, inputs={}, identity=identity, expect={}, run=write)
    )


def scripted(
    context: RunContext, model: ModelConfig, gold: list[float], *, num_right: int = 19
) -> Artifact:
    """The policy selected from three snapshots and the last round's, whose gold means are given."""

    def adapters_of(*folders: str) -> Callable[[Work], None]:
        def write(work: Work) -> None:
            for folder in folders:
                (work.folder / folder).mkdir(parents=True)
                (work.folder / folder / "adapter_model.safetensors").write_text(folder)

        return write

    def scores(work: Work) -> None:
        work.write_records(
            [
                SnapshotScore(
                    num_rounds=2 * place,
                    prompt_id=str(prompt),
                    kind="red_team",
                    proxy=float(place),
                    gold=mean + prompt,
                    kl=float(place),
                )
                for place, mean in enumerate(gold)
                for prompt in range(6)
            ]
        )

    kept = ["adapter", *map(snapshot_folder, (2, 4))]
    policies = Policies(
        model=model,
        sl_policy=made(context, "sl_policy", adapters_of("adapter")),
        policy=made(context, "policy", adapters_of(*kept)),
        num_rounds=6,
        snapshots=(2, 4),
    )

    def predictions(work: Work) -> None:
        work.write_records(
            [
                PreferencePrediction(
                    name=str(pair),
                    principle_ids=(),
                    prob_a=1.0,
                    scores_a=(1.0,),
                    scores_b=(0.0 if pair < num_right else 2.0,),
                    predicted=0.7,
                    a_is_longer=None,
                )
                for pair in range(20)
            ],
            VALIDATION,
        )

    return selected_policy(
        context,
        policies,
        scores=made(context, "scores", scores, gold=gold),
        gold=made(context, "gold", predictions, num_right=num_right),
        combine=Combine.mean,
        num_resamples=50,
    )


@pytest.mark.parametrize(
    ("gold", "rounds", "copied"),
    [
        ([0.0, 1.0, 0.5, 0.2], 2, "snapshots/00002"),
        ([0.0, 0.5, 1.0, 0.2], 4, "snapshots/00004"),
        ([0.0, 0.1, 0.2, 0.3], 6, "adapter"),
        ([1.0, 0.5, 0.2, 0.1], 0, "adapter"),  # that of the SL-CAI policy
    ],
)
def test_the_snapshot_at_the_knee_is_kept(
    context: RunContext, tiny_folder: Path, gold: list[float], rounds: int, copied: str
) -> None:
    chosen = scripted(context, local(tiny_folder), gold)
    assert (chosen.verified_folder() / "adapter/adapter_model.safetensors").read_text() == copied
    assert json.loads(chosen.file(SELECTION).read_bytes())["num_rounds"] == rounds
    again = scripted(context, local(tiny_folder), gold)
    assert again == chosen
    assert context.results[-1].status is StageStatus.reused
    assert scripted(context, local(tiny_folder), [9.0, *gold[1:]]) != chosen
    blind = scripted(context, local(tiny_folder), gold, num_right=11)
    assert json.loads(blind.file(SELECTION).read_bytes())["num_rounds"] == 6


def test_snapshots_are_every_so_many_rounds_and_never_the_last() -> None:
    def rounds(num: int, every: int) -> tuple[int, ...]:
        return snapshot_rounds(ppo_config(num_iterations=num, snapshot_every=every))

    assert rounds(6, 1) == (1, 2, 3, 4, 5)
    assert rounds(6, 2) == (2, 4)
    assert rounds(7, 3) == (3, 6)
    assert rounds(4, 4) == rounds(4, 9) == ()


def response(text: str, *, num_tokens: int, finished: bool) -> Response:
    prompt = Prompt(
        id="p",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.evaluation,
        messages=(Message(role="user", content="How are you?"),),
    )
    sample = Sample(text=text, num_tokens=num_tokens, logprob=0.0, finished=finished, seed=0)
    return Response(prompt=prompt, policy="rl_cai", index=0, sample=sample)


def test_log_ratios_are_those_of_two_merged_models(context: RunContext, tiny_folder: Path) -> None:
    """Against the generator's own scores, which read merged weights; temperature 1."""
    model = local(tiny_folder)
    base = context.models.base(model)

    def trained(seed: int, folder: str) -> Callable[[Work], None]:
        def write(work: Work) -> None:
            tuned = adapters.attach(base.model, LORA, adapter="policy", seed=seed)
            scramble(tuned, "policy", torch.Generator().manual_seed(seed), scale=0.2)
            save(base, tuned, "policy", work, name=folder)
            tuned.unload()

        return write

    policies = Policies(
        model=model,
        sl_policy=made(context, "sl_policy", trained(1, "adapter")),
        policy=made(context, "policy", trained(2, snapshot_folder(1))),
        num_rounds=2,
        snapshots=(1,),
    )
    rows = [
        response("I am well", num_tokens=10, finished=True),  # its bytes and the end
        response("I am", num_tokens=4, finished=False),
        response("I am well", num_tokens=12, finished=True),  # two tokens are not had again
        response("", num_tokens=0, finished=False),
    ]
    found = _log_ratios(context, base, policies, rows, num_rounds=1, temperature=1.0)
    assert found[2:] == [None, None]
    encode = base.encoder
    answers = [encode.response_ids("I am well"), encode.text_ids("I am")]
    prompts = [base.prompt_ids(row.prompt.messages) for row in rows[:2]]
    after = context.models.policy(model, policies.policy, folder=snapshot_folder(1))
    told = after.score(prompts, answers)
    before = context.models.policy(model, policies.sl_policy).score(prompts, answers)
    expected = [one - other for one, other in zip(told, before, strict=True)]
    assert min(map(abs, expected)) > 0.1
    assert found[:2] == pytest.approx(expected, abs=1e-3)
    assert _log_ratios(context, base, policies, rows, num_rounds=0, temperature=1.0) == [0.0] * 4
