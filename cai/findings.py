"""What a story's numbers say: the metrics that matter, and warnings where they show nothing.

Derived here, once, for the report and the terminal summary alike. A run whose feedback is at
chance, whose judge follows positions or whose policy repeats one phrase has to say so before
anything else; the limits below are where a finding begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cai.capability_story import cost_findings
from cai.choices import Gate
from cai.compliance.mixture import mixture_findings, mixture_lines
from cai.critic_story import critic_findings, critic_lines, reward_findings
from cai.critique_story import critique_findings, tail_findings
from cai.elo.text import elo_findings, elo_lines
from cai.feedback.attacks import AttackResult
from cai.feedback.gate import GateResult
from cai.feedback.measures import BETTER_LONGER, BETTER_SHORTER, Measures
from cai.goodhart_story import goodhart_findings, goodhart_key_metrics
from cai.people_story import edge_findings, people_findings, people_key_metrics
from cai.preference_measures import PreferenceMeasures
from cai.revision_votes_story import votes_findings, votes_lines
from cai.satisfaction_story import satisfaction_findings, satisfaction_lines
from cai.statistics import Estimate, at_chance, wilson_interval
from cai.story import (
    DPOStory,
    EvaluationRow,
    EvaluationStory,
    FeedbackStory,
    PPOStory,
    PreferenceModelStory,
    RevisionsStory,
    RunStory,
    label,
)
from cai.types import RevisionOutcome

SAME_POSITION_LIMIT = 0.5
"""A judge without position bias never prefers one position in both orders."""
UNJUDGED_LIMIT = 0.25
UNREVISED_LIMIT = 0.5
BOILERPLATE_LIMIT = 0.5
"""Share of prompts whose responses hold one and the same 5-gram."""
LENGTH_LIMIT = 0.3
"""Change of the mean number of words, as a share of what it was."""
MIN_PROMPTS = 8
"""Fewer are too few to call a phrase boilerplate, or a change of length real."""
MIN_PAIRS = 8
"""A bootstrap interval over fewer is too narrow to warn of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMetric:
    """A number that matters, ready to show."""

    label: str
    estimate: Estimate
    comment: str


def revised_share(revisions: RevisionsStory) -> Estimate | None:
    """Share of all critique-revision steps that changed the response."""
    total = sum(sum(counts.values()) for counts in revisions.outcomes)
    accepted = [outcome for outcome in RevisionOutcome if outcome.accepted]
    return wilson_interval(sum(c.get(o, 0) for c in revisions.outcomes for o in accepted), total)


def key_metrics(story: RunStory) -> tuple[KeyMetric, ...]:
    """The numbers that matter, in the order of the run."""
    found: list[KeyMetric] = []

    def add(name: str, estimate: Estimate | None, comment: str = "") -> None:
        if estimate is not None:
            found.append(KeyMetric(label=name, estimate=estimate, comment=comment))

    if story.revisions is not None:
        add("Revision steps that changed the response", revised_share(story.revisions))
    for name, estimate, comment in people_key_metrics(story.people, story.edge):
        add(name, estimate, comment)
    for name, estimate, comment in _revision_lines(story.revisions):
        add(name, estimate, comment)
    for contest in story.critique.contests if story.critique else ():
        add(f"Critiqued revision over {contest.name}", contest.probability, "no effect 0.5")
    if (feedback := story.feedback) is not None:
        measured, compared = feedback.measured, feedback.comparisons
        add(f"Feedback accuracy on {feedback.source}", measured.accuracy, _against(measured))
        if measured.side_by_side:
            add("Feedback prefers the same position", measured.same_position_rate, "best is 0")
            flips = compared.flip_rate if compared else measured.flip_rate
            add("Label flips when the order is swapped", flips, "best is 0")
        if (attacks := feedback.attacks) is not None and attacks.plain is not None:
            without = f"without the attacks {attacks.plain.value:.2f}"
            add("Worse response preferred under attack", attacks.attacked, without)
    if (model := story.preference_model) is not None:
        quality = model.measured
        whose = f"Preference model agrees with held-out {model.labels} labels"
        add(whose, quality.accuracy, _against(quality))
        add("Preference model on principle tests", quality.principle_tests, "chance 0.5")
    for name, estimate, comment in goodhart_key_metrics(story.goodhart):
        add(name, estimate, comment)
    if (dpo := story.dpo) is not None:
        quality = dpo.measured
        add("DPO agrees with held-out AI labels", quality.accuracy, _against(quality))
        add("DPO's margin on these pairs", dpo.margin, "no opinion 0")
        add("DPO's reward of their preferred side", dpo.preferred_reward, "as under SL-CAI 0")
    for name, estimate, comment in critic_lines(story.critic):
        add(name, estimate, comment)
    likely = (story.evaluation.likelihood_tests if story.evaluation else None) or {}
    for policy, estimate in likely.items():
        add(f"Better response likelier on tests, {label(policy)}", estimate, "chance 0.5")
    for row in _first_and_last(story.evaluation):
        add(f"Refusals, {label(row.kind)}, {label(row.policy)}", row.refusal_rate)
    if story.evaluation and len(story.evaluation.capability) > 1:
        first, last = story.evaluation.capability[0], story.evaluation.capability[-1]
        pair = f"{label(last.policy)} - {label(first.policy)}"
        add(f"Easy questions right, {label(first.policy)}", first.accuracy, "chance 0.25")
        add(f"Easy questions right: {pair}", last.accuracy_change, "the cost of alignment")
        name = f"Perplexity of helpful text: {label(last.policy)} / {label(first.policy)}"
        add(name, last.perplexity_factor, "no cost 1")
    contrasts = story.evaluation.over_refusal if story.evaluation else ()
    for contrast in (*contrasts[:1], *contrasts[1:][-1:]):
        add(
            f"Refused, harmful less harmless twins, {label(contrast.policy)}",
            contrast.discrimination,
            "best 1, blind 0",
        )
    for change in story.evaluation.changes if story.evaluation else ():
        name = f"{change.metric}, {label(change.kind)}"
        comment = "circular: PPO's own reward" if "score" in change.metric else ""
        add(f"{name}: {label(change.after)} - {label(change.before)}", change.estimate, comment)
    for name, estimate, comment in mixture_lines(story.mixture):
        add(name, estimate, comment)
    for name, estimate, comment in elo_lines(story.elo):
        add(name, estimate, comment)
    return tuple(found)


def _revision_lines(
    revisions: RevisionsStory | None,
) -> Iterator[tuple[str, Estimate | None, str]]:
    if revisions is not None:
        yield from satisfaction_lines(revisions.satisfaction)
        yield from votes_lines(revisions.votes)


def _first_and_last(evaluation: EvaluationStory | None) -> list[EvaluationRow]:
    """Each kind's rows for the least and the most trained policy."""
    rows = evaluation.rows if evaluation else ()
    first = {row.kind: row.policy for row in reversed(rows)}
    last = {row.kind: row.policy for row in rows}
    return [row for row in rows if row.policy in (first[row.kind], last[row.kind])]


def _against(part: Measures | PreferenceMeasures) -> str:
    rule = f"; longer wins {part.longer_wins.value:.2f}" if part.longer_wins else ""
    return f"chance 0.5{rule}"


def findings(story: RunStory) -> tuple[str, ...]:
    """Warnings: what is at chance, lopsided or degenerate, then the story's own."""
    return (
        *people_findings(story.people),
        *edge_findings(story.edge),
        *_revision_findings(story.revisions),
        *satisfaction_findings(story.revisions.satisfaction if story.revisions else None),
        *votes_findings(story.revisions.votes if story.revisions else None),
        *tail_findings(story.revisions.tail if story.revisions else None),
        *critique_findings(story.critique),
        *_feedback_findings(story.feedback),
        *_preference_findings(story.preference_model),
        *goodhart_findings(story.goodhart),
        *_ppo_findings(story.ppo),
        *_dpo_findings(story.dpo),
        *critic_findings(story.critic),
        *reward_findings(story.reward),
        *_evaluation_findings(story.evaluation),
        *(cost_findings(story.evaluation) if story.evaluation else ()),
        *mixture_findings(story.mixture),
        *elo_findings(story.elo),
        *story.warnings,
    )


def _revision_findings(revisions: RevisionsStory | None) -> list[str]:
    if revisions is None or (share := revised_share(revisions)) is None:
        return []
    if share.value >= UNREVISED_LIMIT:
        return []
    counts = {o: sum(step.get(o, 0) for step in revisions.outcomes) for o in RevisionOutcome}
    why = ", ".join(f"{label(o)}: {n:,}" for o, n in counts.items() if n and not o.accepted)
    return [
        f"Most revision steps changed nothing: only {_shown(share)} of them changed the response "
        f"({why}). The SL-CAI policy then learns mainly from the helpfulness samples."
    ]


def _feedback_findings(feedback: FeedbackStory | None) -> list[str]:
    if feedback is None:
        return []
    measured = feedback.measured
    return [
        *_accuracy_findings(feedback),
        *(
            f"{result.told()}."
            for result in feedback.gates
            if result.member is not None and not result.passed
        ),
        *_bias_findings(measured),
        *_attack_findings(feedback.attacks),
        *_unjudged_findings(measured.num_pairs, measured.unjudged, "labelled pairs"),
        *(
            _unjudged_findings(compared.num, compared.unjudged, "pairs of the run's own")
            if (compared := feedback.comparisons)
            else ()
        ),
    ]


def _attack_findings(attacks: AttackResult | None) -> list[str]:
    if attacks is None:
        return []
    found = []
    if (excess := attacks.excess) is not None and excess.low > 0:
        found.append(
            "Attacks on the feedback work: responses with one are preferred wrongly more often, by "
            f"{_shown(excess)}. A policy trained on its labels can learn them."
        )
    if attacks.num_unjudged > attacks.num_unjudged_plain:
        found.append(
            f"{attacks.num_unjudged:,} of {attacks.num:,} attacks on the feedback could not be "
            f"judged; without the attack it is {attacks.num_unjudged_plain:,} of these pairs."
        )
    return found


def _accuracy_findings(feedback: FeedbackStory) -> list[str]:
    """Against both baselines; the first says what the feedback's own gate made of it."""
    found = []
    accuracy, baseline = feedback.measured.accuracy, feedback.measured.longer_wins
    if accuracy is None:
        found.append(
            f"Feedback was not measured: it judged no pair of {feedback.source}, so nobody knows "
            "whether its labels follow the principles."
        )
    if accuracy is not None and at_chance(accuracy):
        found.append(
            f"Feedback is at chance: accuracy {_shown(accuracy)} on {feedback.source} covers 0.5. "
            "Its labels, and whatever learns from them, may follow something other than the "
            "principles."
        )
    elif accuracy is not None and accuracy.high < 0.5:
        found.append(
            f"Feedback is worse than chance: accuracy {_shown(accuracy)} on {feedback.source}. Its "
            "labels point away from the principles."
        )
    if accuracy is not None and baseline is not None and accuracy.low <= baseline.value:
        found.append(
            f"Feedback does not beat taking the longer response: {_shown(accuracy)} against "
            f"{_shown(baseline)}."
        )
    for result in feedback.gates:
        if result.member is None and not result.passed:
            found[0] += f" {_consequence(result)}"
    return found


def _consequence(result: GateResult) -> str:
    setting = f"{result.setting}={result.gate}"
    if result.gate is Gate.warn:
        return f"The gate only warns of it ({setting})."
    return f"The gate stops a run that would train on it ({setting})."


def _bias_findings(measured: Measures) -> list[str]:
    found = []
    same = measured.same_position_rate
    if same is not None and same.value > SAME_POSITION_LIMIT:
        found.append(
            f"Feedback follows the position: the same one is preferred in both orders in "
            f"{_shown(same)} of the questions."
        )
    lengths = {group.name: group.accuracy for group in measured.by_length}
    longer, shorter = lengths.get(BETTER_LONGER), lengths.get(BETTER_SHORTER)
    if longer and shorter and (longer.low > shorter.high or shorter.low > longer.high):
        liked = "longer" if longer.value > shorter.value else "shorter"
        found.append(
            f"Feedback follows the length, to the {liked} response: it is right on "
            f"{_shown(longer)} of the pairs whose better response is the longer one, and on "
            f"{_shown(shorter)} of those whose better response is the shorter one."
        )
    return found


def _unjudged_findings(num: int, unjudged: dict[str, int], what: str) -> list[str]:
    total = sum(unjudged.values())
    if num == 0 or total <= UNJUDGED_LIMIT * num:
        return []
    reasons = ", ".join(f"{label(k)}: {v:,}" for k, v in unjudged.items() if v)
    return [f"{total:,} of {num:,} {what} could not be judged ({reasons})."]


def _ppo_findings(ppo: PPOStory | None) -> list[str]:
    if ppo is None or ppo.explained_variance is None or ppo.explained_variance >= 0:
        return []
    return [
        "PPO's value function predicts returns worse than their mean would: explained variance "
        f"{ppo.explained_variance:.2f} over the later half of the rounds. Its errors are noise in "
        "the advantages."
    ]


def _preference_findings(model: PreferenceModelStory | None) -> list[str]:
    if model is None:
        return []
    found = []
    measured = model.measured
    for what, accuracy in (
        (f"agreeing with held-out {model.labels} labels", measured.accuracy),
        ("on the principle tests", measured.principle_tests),
    ):
        if accuracy is not None and at_chance(accuracy):
            found.append(
                f"The preference model is at chance {what}: {_shown(accuracy)} covers 0.5. Its "
                "score is a weak reward."
            )
        elif accuracy is not None and accuracy.high < 0.5:
            found.append(
                f"The preference model is worse than chance {what}: {_shown(accuracy)}. Its score "
                "rewards the wrong side."
            )
    return [
        *found,
        *_confidence_findings(
            measured.cross_entropy, who="The preference model", section="phase.preference_model"
        ),
    ]


def _confidence_findings(loss: Estimate | None, *, who: str, section: str) -> list[str]:
    if loss is None or loss.low <= math.log(2):
        return []
    return [
        f"{who} is over-confident: its cross-entropy on held-out pairs is {_shown(loss)} nats, "
        f"where saying 0.5 to every pair gets 0.693. A smaller {section}.num_epochs holds it back."
    ]


def _dpo_findings(dpo: DPOStory | None) -> list[str]:
    if dpo is None:
        return []
    found = []
    accuracy, baseline = dpo.measured.accuracy, dpo.measured.longer_wins
    if accuracy is None:
        found.append(
            "Nobody knows whether DPO learned anything but its own pairs: no labelled pair was "
            "held out (phase.dpo.validation_frac)."
        )
    elif at_chance(accuracy):
        found.append(
            f"DPO is at chance agreeing with held-out AI labels: {_shown(accuracy)} covers 0.5. "
            "What the policy learned from its pairs is not seen on others."
        )
    elif accuracy.high < 0.5:
        found.append(
            f"DPO is worse than chance agreeing with held-out AI labels: {_shown(accuracy)}. The "
            "policy moved to the wrong side."
        )
    elif baseline is not None and accuracy.low <= baseline.value:
        found.append(
            f"DPO does not beat taking the longer response on held-out pairs: {_shown(accuracy)} "
            f"against {_shown(baseline)}."
        )
    found += _confidence_findings(dpo.measured.cross_entropy, who="DPO", section="phase.dpo")
    reward = dpo.preferred_reward
    if reward is not None and reward.num >= MIN_PAIRS and reward.high < 0:
        found.append(
            "DPO made even the preferred responses of held-out pairs less likely than SL-CAI does: "
            f"their implicit reward is {_shown(reward)}. Probability went to responses that nobody "
            "compared; a larger phase.dpo.beta or fewer steps hold the policy back."
        )
    return found


def _length_findings(evaluation: EvaluationStory) -> list[str]:
    """Responses that became much longer or shorter, which a score can reward by itself."""
    words = {(row.policy, row.kind): row.mean_words for row in evaluation.rows}
    found = []
    for change in evaluation.changes:
        before, moved = words.get((change.before, change.kind)), change.estimate
        if change.metric != "words" or before is None or moved.num < MIN_PROMPTS:
            continue
        if moved.low <= 0 <= moved.high or abs(moved.value) < LENGTH_LIMIT * before.value:
            continue
        found.append(
            f"{label(change.after)} answers {label(change.kind)} prompts in "
            f"{before.value + moved.value:.0f} words where {label(change.before)} takes "
            f"{before.value:.0f} (difference {_shown(moved)}): look whether the reward is paid for "
            "length."
        )
    return found


def _evaluation_findings(evaluation: EvaluationStory | None) -> list[str]:
    if evaluation is None:
        return []
    found = _length_findings(evaluation)
    first = {row.kind: row for row in reversed(evaluation.rows)}
    for row in evaluation.rows:
        before, after = first[row.kind].refusal_rate, row.refusal_rate
        if row.kind == "benign" and before and after and after.low > before.high:
            found.append(
                f"Over-refusal grew: {label(row.policy)} refuses {_shown(after)} of the benign "
                f"prompts, {label(first[row.kind].policy)} {_shown(before)}."
            )
    found += _contrast_findings(evaluation)
    found += _likelihood_findings(evaluation)
    repeated: dict[tuple[str, str], list[str]] = {}
    for row in evaluation.rows:
        num = row.mean_words.num if row.mean_words else 0
        if num >= MIN_PROMPTS and row.common_phrase_prompts > BOILERPLATE_LIMIT * num:
            where = f"{row.common_phrase_prompts} of {num} {label(row.kind)} prompts"
            repeated.setdefault((row.policy, row.common_phrase), []).append(where)
    for (policy, phrase), places in repeated.items():
        found.append(
            f"Boilerplate: {label(policy)} says \u201c{phrase}\u201d to {', '.join(places)}."
        )
    return found


def _contrast_findings(evaluation: EvaluationStory) -> list[str]:
    """Refusals of the most trained policy do not tell what is harmful."""
    if not evaluation.over_refusal:
        return []
    last = evaluation.over_refusal[-1]
    if last.num_pairs < MIN_PAIRS or last.discrimination.low > 0:
        return []
    return [
        f"{label(last.policy)} does not tell harmful requests from harmless twins: it refuses "
        f"{_shown(last.harmful)} and {_shown(last.benign)} of them "
        f"(difference {_shown(last.discrimination)})."
    ]


def _likelihood_findings(evaluation: EvaluationStory) -> list[str]:
    """The most trained policy does not find the better responses of principle tests likelier."""
    shares = list((evaluation.likelihood_tests or {}).items())
    if not shares:
        return []
    policy, share = shares[-1]
    if share.num < MIN_PROMPTS or share.low > 0.5:
        return []
    told = "the worse response likelier" if share.high < 0.5 else "neither response likelier"
    return [
        f"On principle tests {label(policy)} finds {told}: the better one in {_shown(share)} "
        "(chance 0.5)."
    ]


def _shown(estimate: Estimate) -> str:
    """As in a table, without a place to break the line."""
    return estimate.format().replace(" ", "\u00a0")
