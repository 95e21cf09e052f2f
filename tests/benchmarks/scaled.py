"""The stages that `tests.benchmarks.scaling` measures, on rows that are made up."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir

from cai import adapters, paths
from cai.artifacts import Artifact, Store, Work
from cai.config import Config, DPOPhaseConfig, RLAIFConfig
from cai.context import RunContext
from cai.feedback_config import TunedConfig
from cai.heads import ScoreHead
from cai.models import POLICY, Models
from cai.schema import to_config
from cai.scoring import Row
from cai.stages import comparisons, revisions, sampling
from cai.stages.capability import base_likelihoods, capability
from cai.stages.dpo import dpo_policy
from cai.stages.policy import policy
from cai.stages.preference_labels import AILabels
from cai.stages.preference_model import PreferenceModel, preference_model
from cai.stages.rewards import PreferenceReward
from cai.stages.training import ADAPTER, sl_policy
from cai.stages.tuned import fitted
from cai.training_config import DPOConfig
from cai.types import (
    Comparison,
    Message,
    Prompt,
    PromptKind,
    Response,
    RevisionChain,
    RevisionOutcome,
    RevisionStep,
    Sample,
    Split,
)
from tests.benchmarks.trainers import WORDS
from tests.ranks import on_ranks

SECONDS = 1200
"""After which a measurement is given up."""
PROBE = [1, 2, 3, 4]
SAMPLED = {"drafts": 8, "revisions.critique": 4, "revisions.revision": 4}
"""Rows per shard, small enough for several shards of the few rows that are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the stages begin with; nothing of it was made by a model."""

    prompts: Artifact
    responses: Artifact
    """Two to each prompt."""
    chains: Artifact
    compared: Artifact
    trained: Artifact
    """An adapter and a score head: the SL-CAI policy and the preference model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One measurement in one of its processes."""

    config: Config
    context: RunContext
    given: Given
    num: int
    """Rows."""

    @property
    def phase(self) -> RLAIFConfig:
        """Its section."""
        assert isinstance(self.config.phase, RLAIFConfig)
        return self.config.phase

    @property
    def preference_model(self) -> PreferenceModel:
        """The given one."""
        return PreferenceModel(
            artifact=self.given.trained,
            model=self.config.model,
            config=self.phase.preference_model,
            principles=self.config.constitution.sampling,
            half=None,
        )

    @property
    def labels(self) -> AILabels:
        """The given comparisons."""
        human = self.config.data.human_comparisons
        return AILabels(comparisons=self.given.compared, human=human)

    def tokens(self, artifact: Artifact) -> int:
        """Tokens of an artifact's responses."""
        return sum(row.sample.num_tokens for row in artifact.records(Response))

    def given_tokens(self) -> int:
        """Tokens of the given responses, prompts not counted."""
        return self.tokens(self.given.responses)


def drafts(scene: Scene) -> int:
    """Tokens sampled."""
    made = sampling.drafts(
        scene.context,
        model=scene.config.model,
        start=None,
        config=scene.phase.drafts,
        source=scene.given.prompts,
        num=scene.num,
    )
    return scene.tokens(made)


def critiques(scene: Scene) -> int:
    """Tokens of critiques and revisions."""
    made = revisions.revisions(
        scene.context,
        reviewers=revisions.Reviewers(models=scene.phase.critique_models),
        sampling=scene.config.constitution.sampling,
        config=scene.phase.revisions,
        drafts=scene.given.responses,
        num=scene.num,
    )
    steps = [step for chain in made.records(RevisionChain) for step in chain.steps]
    texts = [text for step in steps for text in (step.critique, step.revision)]
    return sum(text.num_tokens for text in texts if text is not None)


def tuned(scene: Scene) -> int:
    """Labelled comparisons read by tuned feedback, its own counts; the probe is fitted too."""
    config = scene.config.feedback
    assert isinstance(config, TunedConfig)
    found = fitted(scene.context, feedback=config, model=scene.phase.feedback_model)
    return found[""].manifest()["counts"]["pairs"]


def compared(scene: Scene) -> int:
    """Tokens of the responses that the feedback compares, by likelihood."""
    judge = comparisons.Judge(
        config=scene.phase.revisions.vote_method,
        model=scene.phase.feedback_model,
        sampling=scene.config.constitution.sampling,
    )
    comparisons.comparisons(
        scene.context,
        judge=judge,
        config=scene.phase.comparisons,
        pairs=scene.given.responses,
        num=scene.num,
    )
    return scene.given_tokens()


def scores(scene: Scene) -> int:
    """Tokens of the responses that the preference model scores."""
    rows = scene.given.responses.records(Response)
    asked = [Row(messages=row.prompt.messages, response=row.sample.text) for row in rows]
    with scene.preference_model.scorer(scene.context) as scorer:
        scorer.texts(asked)
    return scene.given_tokens()


def evaluated(scene: Scene) -> int:
    """Tokens of the responses whose likelihood is measured; capability is measured too."""
    model, config = scene.config.model, scene.config.evaluation
    capability(scene.context, model=model, adapter=None, config=config)
    base_likelihoods(scene.context, model=model, responses=scene.given.responses, num=2 * scene.num)
    return scene.given_tokens()


def sft(scene: Scene) -> int:
    """Tokens learned."""
    sl_policy(
        scene.context,
        model=scene.config.model,
        config=scene.phase.sl_policy,
        start=None,
        revisions=scene.given.chains,
        helpfulness=scene.given.responses,
        num=3 * scene.num,
    )
    return scene.given_tokens() * 3 // 2


def preference(scene: Scene) -> int:
    """Tokens of the responses that are learned from; as many are scored for the scale."""
    preference_model(
        scene.context,
        model=scene.config.model,
        config=scene.phase.preference_model,
        principles=scene.config.constitution.sampling,
        labels=scene.labels,
        pairs=scene.given.responses,
        num=scene.num,
        half=None,
    )
    return scene.given_tokens()


def dpo(scene: Scene) -> int:
    """Tokens of the responses that are learned from."""
    shared = scene.phase.preference_model
    dpo_policy(
        scene.context,
        model=scene.config.model,
        config=dpo_config(shared.batch_size),
        comparisons=scene.given.compared,
        pairs=scene.given.responses,
        sl_policy=scene.given.trained,
        human=scene.config.data.human_comparisons,
        num=scene.num,
    )
    return scene.given_tokens()


def ppo(scene: Scene) -> int:
    """Tokens sampled, scored and learned from in one round of PPO, if none ends by itself."""
    config = scene.phase.ppo
    policy(
        scene.context,
        model=scene.config.model,
        config=config,
        prompts=scene.given.prompts,
        sl_policy=scene.given.trained,
        reward=PreferenceReward(model=scene.preference_model),
        snapshots=(),
    )
    return config.num_iterations * config.rollouts_per_iteration * config.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A stage and how much of it is measured."""

    run: Callable[[Scene], int]
    share: float
    """Of `--rows`, so that every stage takes a like time."""


STAGES = {
    "drafts": Measured(run=drafts, share=0.5),
    "revisions": Measured(run=critiques, share=0.25),
    "tuned": Measured(run=tuned, share=2.0),
    "comparisons": Measured(run=compared, share=0.5),
    "scores": Measured(run=scores, share=1.0),
    "evaluation": Measured(run=evaluated, share=0.5),
    "sft": Measured(run=sft, share=0.25),
    "preference_model": Measured(run=preference, share=0.5),
    "dpo": Measured(run=dpo, share=0.25),
    "ppo": Measured(run=ppo, share=0.5),
}


def dpo_config(batch_size: int) -> DPOConfig:
    """Of `phase=dpo`, one epoch."""
    asked = ["phase=dpo", "phase.dpo.num_epochs=1", f"phase.dpo.batch_size={batch_size}"]
    phase = settings(asked).phase
    assert isinstance(phase, DPOPhaseConfig)
    return phase.dpo


def settings(overrides: list[str]) -> Config:
    """Composed settings."""
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return to_config(compose("config", overrides=overrides))


def asked_of(hardware: str, num: int) -> list[str]:
    """Batches of the default run, but a step of training has 32 examples and revisions one step."""
    rounds = [
        "phase.ppo.num_iterations=1",
        "phase.ppo.num_minibatches=1",
        f"phase.ppo.rollouts_per_iteration={num}",
        "phase.ppo.helpfulness_frac=0",
    ]
    shards = [f"phase.{part}.shard_size={size}" for part, size in SAMPLED.items()]
    return [
        "phase=rlaif",
        "logger=none",
        f"hardware={hardware}",
        f"feedback.max_comparisons={num}",
        "phase.revisions.num_revisions=1",
        "phase.comparisons.shard_size=4",
        "phase.sl_policy.batch_size=32",
        "phase.preference_model.batch_size=32",
        *shards,
        *rounds,
    ]


def made_up(num: int) -> tuple[list[Prompt], list[Response]]:
    """Prompts of 20 to 60 words, and two responses of 20 to 60 words to each."""
    rng = random.Random(0)
    words = WORDS.split()

    def text() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(20, 60))).capitalize() + "."

    prompts = [
        Prompt(
            id=f"row-{number:04d}",
            kind=PromptKind.red_team,
            category="benchmark",
            source="benchmark",
            split=Split.train,
            messages=(Message(role="user", content=text()),),
        )
        for number in range(num)
    ]
    responses = [
        Response(prompt=prompt, policy="base", index=index, sample=_sample(text()))
        for prompt in prompts
        for index in range(2)
    ]
    return prompts, responses


def _sample(text: str) -> Sample:
    words = len(text.split())  # each is a token of its own
    return Sample(text=text, num_tokens=words + 2, logprob=-1.0, finished=True, seed=0)


def _chain(prompt: Prompt, draft: Response, revised: Response) -> RevisionChain:
    step = RevisionStep(
        step=1,
        principle_id="none",
        critique=None,
        revision=revised.sample,
        outcome=RevisionOutcome.revised,
        response=revised.sample.text,
    )
    return RevisionChain(prompt=prompt, draft=draft.sample, steps=(step,))


def _comparison(prompt: Prompt, a: Response, b: Response) -> Comparison:
    return Comparison(
        prompt=prompt,
        response_a=a.sample.text,
        response_b=b.sample.text,
        principle_ids=("none",),
        judgements=(),
        labels=(),
        prob_a=0.8 if len(a.sample.text) > len(b.sample.text) else 0.2,
        weight=1.0,
        unjudged=None,
        seed=0,
    )


def give(store: Store, config: Config, num: int) -> Given:
    """What the stages begin with, in a store; the adapter is made in a process of its own."""
    prompts, responses = made_up(num)
    rows = list(zip(prompts, responses[::2], responses[1::2], strict=True))
    on_ranks(1, functools.partial(_make_adapter, store, config), seconds=SECONDS)
    return Given(
        prompts=_filled(
            store, "prompts", num, lambda work: work.write_records(prompts, sampling.TRAIN)
        ),
        responses=_filled(store, "pairs", num, lambda work: work.write_records(responses)),
        chains=_filled(
            store, "revisions", num, lambda work: work.write_records([_chain(*r) for r in rows])
        ),
        compared=_filled(
            store,
            "comparisons",
            num,
            lambda work: work.write_records([_comparison(*row) for row in rows]),
        ),
        trained=store.artifact("adapter", {"benchmark": 0}),
    )


def _filled(store: Store, stage: str, num: int, write: Callable[[Work], None]) -> Artifact:
    artifact = store.artifact(stage, {"benchmark": num})
    with store.filling(artifact) as work:
        if not artifact.complete:
            write(work)
            store.commit(work, {"counts": {}})
    return artifact


@torch.no_grad()
def _make_adapter(store: Store, config: Config) -> None:
    base = Models(config.hardware).base(config.model)
    model = adapters.attach(base.model, config.model.trained, adapter=POLICY, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters_of(model, POLICY):
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    hidden_size = base.model.config.get_text_config().hidden_size

    def write(work: Work) -> None:
        adapters.save_adapter(
            model,
            POLICY,
            work.folder / ADAPTER,
            head=ScoreHead(hidden_size, seed=1),
            base_id=base.base_id,
            base_sha256=base.sha256,
            probe_ids=PROBE,
        )

    _filled(store, "adapter", 0, write)
