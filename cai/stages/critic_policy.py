"""Stage `rl_critic`: PPO of a critic on what its critiques do (`phase=critique_rl`).

A prompt is the critique prompt of a draft under a principle drawn for the round and row, an action
is a critique. The frozen base then revises after it, each revision from its own stream, and the
feedback compares the revision with the draft under the principle: the bounded log-odds that the
revision is better are the score. A critique whose revision `cai.acceptance` does not accept gets a
configured score and is counted by outcome. So the critic is paid for what following it improves,
not for how it sounds; neither the reviser nor the feedback learns.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cai import adapters, ranks, training
from cai.artifacts import Artifact, Work, digest_of, write_atomically
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig
from cai.context import RunContext, Stage
from cai.critic_record import CritiqueRollout, RolloutJudgement
from cai.critique import Reviser, Turn, to_sample
from cai.critique_config import CritiqueRLConfig
from cai.engines.rollout_engine import RolloutEngine, rollout_engine
from cai.errors import UserError
from cai.feedback.base import Feedback, Pair
from cai.full_weights import Tuned
from cai.generation import Tokens
from cai.model_config import ModelConfig
from cai.models import POLICY, REFERENCE, BaseModel, role_key, start_of
from cai.prompts import revision_wording
from cai.rollout import RolloutBatch, Sampled
from cai.scoring import Sequences
from cai.seeds import derive_seed, python_rng
from cai.stages.comparisons import Judge
from cai.stages.critic import critique_ids, reviser_of
from cai.stages.direct_reward import judgement_of, keep_judgements
from cai.stages.policy import sample_rollouts
from cai.stages.rewards import ROLLOUTS, no_value
from cai.stages.training import detached, reported, save, training_identity
from cai.types import Response, RevisionOutcome, Sample, dump_line, parse_lines


def turns_of(
    drafts: Sequence[Response], reviser: Reviser, *, num: int, seed: int, iteration: int
) -> list[Turn]:
    """The drafts of one round with their principles: a pure function of the seed and the round.

    Drafts are gone through in a new random order per pass.
    """
    turns = []
    for place in range(iteration * num, (iteration + 1) * num):
        turn, index = divmod(place, len(drafts))
        order = list(range(len(drafts)))
        python_rng(seed, "drafts", turn).shuffle(order)
        draft = drafts[order[index]]
        turns.append(
            Turn(
                prompt=draft.prompt,
                draft=draft.sample.text,
                response=draft.sample.text,
                principle=reviser.draw(draft.prompt, place),
            )
        )
    return turns


def judge_revisions(
    feedback: Feedback,
    turns: Sequence[Turn],
    outcomes: Sequence[tuple[RevisionOutcome, str]],
    *,
    config: CritiqueRLConfig,
    iteration: int,
) -> list[RolloutJudgement]:
    """What each critique of a round is worth; the accepted revisions are judged in one batch.

    Args:
        feedback: Compares revision (a) and draft (b).
        turns: What was criticised.
        outcomes: Of the revision after each critique, and its text.
        config: Bounds, and the score of what is not accepted or not judged.
        iteration: The round.
    """
    asked = [
        (row, turn, text)
        for row, (turn, (outcome, text)) in enumerate(zip(turns, outcomes, strict=True))
        if outcome.accepted
    ]
    pairs = [
        Pair(
            prompt=turn.prompt,
            response_a=text,
            response_b=turn.response,
            principles=(turn.principle,),
        )
        for _, turn, text in asked
    ]
    compared = ranks.in_parts(pairs, config.ppo.shard_size, feedback.compare)
    judged = {
        row: judgement_of(
            comparison,
            iteration=iteration,
            row=row,
            max_log_odds=config.max_log_odds,
            unjudged=config.unjudged,
        )
        for (row, _, _), comparison in zip(asked, compared, strict=True)
    }
    return [
        judged.get(row)
        or RolloutJudgement(
            iteration=iteration,
            row=row,
            prompt_id=turn.prompt.id,
            principle_id=turn.principle.id,
            comparison=None,
            value=None,
            unjudged=None,
            score=config.unaccepted,
        )
        for row, turn in enumerate(turns)
    ]


@dataclasses.dataclass(slots=True, kw_only=True)
class _Sampler:
    """Samples a round's critiques, has them followed and judged, and keeps all of it."""

    base: BaseModel
    engine: RolloutEngine
    reviser: Reviser
    feedback: Feedback
    drafts: list[Response]
    config: CritiqueRLConfig
    seed: int
    folder: Path
    iteration: int = 0
    turns: list[Turn] = dataclasses.field(default_factory=list)
    sampled: list[Sampled] = dataclasses.field(default_factory=list)
    critiques: list[Sample] = dataclasses.field(default_factory=list)
    revisions: list[Sample | None] = dataclasses.field(default_factory=list)
    outcomes: list[tuple[RevisionOutcome, str]] = dataclasses.field(default_factory=list)
    judged: list[RolloutJudgement] = dataclasses.field(default_factory=list)

    def sample(self, iteration: int) -> list[Sampled]:
        """The round's critiques by the critic as it is now."""
        engine = self.engine.updated(iteration)
        ppo = self.config.ppo
        self.iteration = iteration
        self.turns = turns_of(
            self.drafts,
            self.reviser,
            num=ppo.rollouts_per_iteration,
            seed=self.seed,
            iteration=iteration,
        )
        ids = [tuple(critique_ids(self.base, self.reviser.asked(turn))) for turn in self.turns]
        seeds = [
            derive_seed(self.seed, "rollout", iteration, row, turn.prompt.id)
            for row, turn in enumerate(self.turns)
        ]
        self.sampled = sample_rollouts(engine, ids, seeds=seeds, config=ppo)
        self.critiques = [
            to_sample(
                self.base.encoder,
                Tokens(ids=row.response_ids, logprobs=row.logprobs or (), finished=row.finished),
                seed,
            )
            for row, seed in zip(self.sampled, seeds, strict=True)
        ]
        return self.sampled

    def score(self, sequences: Sequences) -> list[float]:
        """What the round's critiques are worth."""
        assert [row.prompt_ids for row in self.sampled] == [ids for ids, _ in sequences]
        self.revisions = ranks.in_parts(
            list(zip(self.turns, self.critiques, strict=True)),
            self.config.ppo.shard_size,
            lambda part: self.reviser.revisions(
                [turn for turn, _ in part], [critique for _, critique in part], 1 + self.iteration
            ),
        )
        found = [
            self.reviser.assess(turn, critique=critique, revision=revision)
            for turn, critique, revision in zip(
                self.turns, self.critiques, self.revisions, strict=True
            )
        ]
        self.outcomes = [(one.outcome, one.text) for one in found]
        self.judged = judge_revisions(
            self.feedback,
            self.turns,
            self.outcomes,
            config=self.config,
            iteration=self.iteration,
        )
        return [one.score for one in self.judged]

    def keep(self, iteration: int, batch: RolloutBatch) -> None:
        """Write the round, for the audit trail; on rank 0."""
        if not ranks.is_first():
            return
        lines = [
            dump_line(
                CritiqueRollout(
                    iteration=iteration,
                    prompt=turn.prompt,
                    draft=turn.draft,
                    principle_id=turn.principle.id,
                    critique=critique,
                    revision=revision,
                    outcome=outcome,
                    response=text,
                    judgement=judgement,
                    kl=kl,
                )
            )
            for turn, critique, revision, (outcome, text), judgement, kl in zip(
                self.turns,
                self.critiques,
                self.revisions,
                self.outcomes,
                self.judged,
                batch.kl_BT.sum(1).tolist(),
                strict=True,
            )
        ]
        name = f"{iteration:05d}.jsonl"
        write_atomically(self.folder / "rollouts" / name, "".join(lines).encode("ascii"))
        judged = "".join(map(dump_line, self.judged)).encode("ascii")
        write_atomically(self.folder / "judgements" / name, judged)


def _begin(base: BaseModel, model: ModelConfig, seed: int) -> Tuned:
    """The critic that training begins with as the reference: `start`, or the base as it is."""
    start = start_of(model)
    if start is None:
        return adapters.attach(base.model, model.trained, adapter=REFERENCE, seed=seed)
    if not start.probed:
        return adapters.load_plain(base.model, start.folder, adapter=REFERENCE)
    return adapters.load(base.model, start.folder, adapter=REFERENCE, base_sha256=base.sha256)


def rl_critic(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    revisions: RevisionsConfig,
    config: CritiqueRLConfig,
    judge: Judge,
    drafts: Artifact,
) -> Artifact:
    """The critic after PPO, with a KL penalty to the one that it began as.

    Args:
        context: The run.
        model: The critique model; with `start`, that critic goes on learning.
        sampling: How principles are drawn.
        revisions: Worked examples of the critique prompts, and how revisions are sampled.
        config: PPO and the score.
        judge: The feedback.
        drafts: Responses to training prompts.
    """
    plain = dataclasses.replace(model, start=None)

    def run(work: Work) -> None:
        base = context.models.base(plain)
        seed = derive_seed(context.seed, "rl_critic")
        apart = dataclasses.replace(context, models=context.models.apart())
        reviser = reviser_of(apart, model=plain, sampling=sampling, config=revisions, seed=seed)
        feedback = judge.feedback(apart, "rl_critic")
        kept = _usable(drafts.records(Response), base, reviser, config)
        tuned = _begin(base, model, seed)
        with detached(tuned):
            adapters.copy_adapter(tuned, REFERENCE, POLICY)
            engine = rollout_engine(base, tuned, folder=work.scratch / "pushed", name="rl_critic")
            sampler = _Sampler(
                base=base,
                engine=engine,
                reviser=reviser,
                feedback=feedback,
                drafts=kept,
                config=config,
                seed=seed,
                folder=work.scratch,
            )
            for name in ("rollouts", "judgements"):
                (work.scratch / name).mkdir(exist_ok=True)
            with reported(
                context,
                work,
                total=config.ppo.num_iterations,
                unit="rounds",
                shown="objective/scores",
            ) as on_step:
                training.train_ppo(
                    tuned,
                    value=no_value(base, tuned, config.ppo, source=REFERENCE),
                    policy_adapter=POLICY,
                    reference_adapter=REFERENCE,
                    score=sampler.score,
                    sample=sampler.sample,
                    config=config.ppo,
                    seed=seed,
                    hardware=context.hardware,
                    work_dir=work.scratch / "checkpoints",
                    on_step=on_step,
                    on_rollout=sampler.keep,
                    pad_id=base.eos_id,
                    stage="rl_critic",
                )
            engine.close()
            save(base, tuned, POLICY, work)
            ranks.barrier()
            content = b"".join(
                path.read_bytes() for path in sorted((work.scratch / "rollouts").glob("*.jsonl"))
            )
            if ranks.is_first():
                write_atomically(work.folder / ROLLOUTS, content)
            unjudged = keep_judgements(work.scratch / "judgements", work)
        work.counts = {
            "rounds": config.ppo.num_iterations,
            "rollouts": config.ppo.num_iterations * config.ppo.rollouts_per_iteration,
            **_outcomes(content),
            **unjudged,
        }

    section = dataclasses.asdict(config.ppo)
    del section["snapshot_every"], section["select"], section["helpfulness_frac"]
    return context.run(
        Stage(
            name="rl_critic",
            version=1,
            config={
                "ppo": section,
                "max_log_odds": config.max_log_odds,
                "unaccepted": config.unaccepted,
                "unjudged": dataclasses.asdict(config.unjudged),
                "num_few_shot": revisions.num_few_shot,
                "revision": dataclasses.asdict(revisions.revision),
            },
            inputs={"drafts": drafts, **judge.inputs()},
            identity=training_identity(plain)
            | judge.identity(context)
            | {"critic": role_key(model), "wording": digest_of(revision_wording())},
            expect={
                "rollouts": config.ppo.num_iterations * config.ppo.rollouts_per_iteration,
                "rounds": config.ppo.num_iterations,
            },
            run=run,
        )
    )


def _usable(
    drafts: Sequence[Response], base: BaseModel, reviser: Reviser, config: CritiqueRLConfig
) -> list[Response]:
    """Drafts with a text whose critique fits the context under every principle.

    Raises:
        UserError: when there is none.
    """
    fits = base.generator(base.model).fits
    kept = []
    for draft in drafts:
        text = draft.sample.text
        turns = [
            Turn(prompt=draft.prompt, draft=text, response=text, principle=principle)
            for principle in reviser.constitution.asked
        ]
        if text and all(
            fits(critique_ids(base, reviser.asked(turn)), config.ppo.max_new_tokens)
            for turn in turns
        ):
            kept.append(draft)
    if not kept:
        raise UserError(
            "rl_critic: no draft leaves room for a critique of phase.ppo.max_new_tokens="
            f"{config.ppo.max_new_tokens} in {base.config.name}'s max_context="
            f"{base.config.max_context}; type a smaller one or a larger other"
        )
    return kept


def _outcomes(rollouts: bytes) -> dict[str, int]:
    """How often each outcome of a revision was paid."""
    found = parse_lines(CritiqueRollout, rollouts.decode("ascii"), ROLLOUTS)
    return dict(sorted(Counter(str(one.outcome) for one in found).items()))
