"""Over-optimisation: PPO's snapshots under two preference models, against how far they went.

The proxy is what PPO was trained against, the gold one learned from the other half of the
comparisons and never entered training (the train and test preference models of Bai et al. 2022a,
arXiv:2204.05862, fig. 4; the names are those of Gao et al. 2022, arXiv:2210.10760). Rewards grow
about linearly in the square root of KL(policy || SL-CAI) while the optimisation is sound (Bai et
al. 2022a, fig. 13), so that root is the horizontal axis. Where the proxy goes on rising and the
gold one falls, the policy exploits the proxy's mistakes: Goodhart's law.

All snapshots answer the same prompts from the same random streams, and every difference is paired
by prompt. Both scores have mean 0 and standard deviation 1 on SL-CAI samples.

The knee is the snapshot with the highest gold reward, if the fall from it to the last one is real.
A maximum over snapshots is above the last one by luck alone, so the fall's interval is simultaneous
over all of them: its margin is the 97.5 % quantile, over bootstrap resamples of the prompts, of the
largest deviation that any snapshot's difference to the last one has from what was observed (the
"max T" of Westfall & Young 1993; White 2000 calls it a reality check). Without a real fall there is
no knee, which is not to say that there is no over-optimisation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai.choices import Select
from cai.preference_measures import PreferenceMeasures
from cai.statistics import CONFIDENCE, Estimate, bootstrap_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotScore:
    """One response of one snapshot."""

    num_rounds: int
    """Rounds of PPO behind the policy; 0: the SL-CAI policy."""
    prompt_id: str
    kind: str
    proxy: float | None
    """Score of the preference model that PPO was trained against; None where it does not fit."""
    gold: float | None
    kl: float | None
    """Log-ratio to the SL-CAI policy, summed over the response's tokens, nats; None where encoding
    the text again does not give as many tokens as were sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A policy on the held-out prompts."""

    num_rounds: int
    kl: Estimate | None
    """KL(policy || SL-CAI), nats per response."""
    proxy: Estimate
    """Mean score, in SL-CAI standard deviations."""
    gold: Estimate
    gap: Estimate
    """What the proxy gained over the SL-CAI policy less what the gold one did."""

    @property
    def sqrt_kl(self) -> float | None:
        """Root of the KL; an estimate below 0, which sampling can give, counts as 0."""
        return None if self.kl is None else math.sqrt(max(0.0, self.kl.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where the gold reward is highest, and whether what comes after is a fall."""

    place: int
    """Of the snapshot with the highest mean gold reward, the earliest of equals."""
    fall: Estimate | None
    """Its mean less the last snapshot's; None when it is the last."""

    @property
    def found(self) -> bool:
        """Whether the fall is more than what picking a maximum makes."""
        return self.fall is not None and self.fall.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    num_resamples: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Reward against distance."""

    snapshots: tuple[Snapshot, ...]
    """From the SL-CAI policy to the last round's."""
    knee: Knee
    num_prompts: int
    """Whose responses both models scored, of every snapshot."""
    num_not_scored: int
    num_retokenised: int
    """Responses without a KL."""

    @property
    def peak(self) -> Snapshot:
        """The snapshot with the highest gold reward."""
        return self.snapshots[self.knee.place]

    @property
    def last(self) -> Snapshot:
        """The last round's policy."""
        return self.snapshots[-1]

    def chosen(self, select: Select, *, gold_is_known: bool) -> Snapshot:
        """The policy that a run ends with.

        Args:
            select: What was asked for.
            gold_is_known: By `is_known`; a peak of noise is no reason to throw rounds away.
        """
        is_peak = select is Select.gold_peak and gold_is_known and self.knee.found
        return self.peak if is_peak else self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodhartStory:
    """Reward against distance, what saw it, and which policy was kept."""

    measured: Measured
    gold: PreferenceMeasures
    """The gold preference model on held-out AI labels."""
    proxy_accuracy: Estimate | None
    """Of the proxy, on the same pairs."""
    select: Select

    @property
    def gold_is_known(self) -> bool:
        """Whether the gold model measures anything."""
        return is_known(self.gold)

    @property
    def selected(self) -> Snapshot:
        """The policy that the run ends with."""
        return self.measured.chosen(self.select, gold_is_known=self.gold_is_known)


def is_known(gold: PreferenceMeasures) -> bool:
    """Whether a preference model agrees with held-out labels more often than chance."""
    return gold.accuracy is not None and gold.accuracy.low > 0.5


def find_knee(gold: Sequence[Sequence[float]], resampling: Resampling) -> Knee:
    """Where the gold reward peaks, and how far it has fallen at the end.

    Args:
        gold: For every snapshot in order, its score on each of the same prompts.
        resampling: Of the prompts.
    """
    scores_SP = np.asarray(gold, dtype=np.float64)  # noqa: N806 -- snapshots, prompts
    means = scores_SP.mean(axis=1)
    place = int(means.argmax())
    last = len(means) - 1
    if place == last:
        return Knee(place=place, fall=None)
    falls = scores_SP[:last] - scores_SP[last]
    observed = falls.mean(axis=1)
    num = scores_SP.shape[1]
    generator = np.random.Generator(np.random.PCG64(resampling.seed))
    drawn = generator.multinomial(num, [1 / num] * num, size=resampling.num_resamples)
    deviations = drawn @ falls.T / num - observed
    tail = (1 + CONFIDENCE) / 2
    value = float(observed[place])
    return Knee(
        place=place,
        fall=Estimate(
            value=value,
            low=value - float(np.quantile(deviations.max(axis=1), tail)),
            high=value + float(np.quantile((-deviations).max(axis=1), tail)),
            num=num,
        ),
    )


def common_prompts(records: Sequence[SnapshotScore]) -> list[tuple[str, str]]:
    """Kind and id of the prompts whose responses both models scored, of every snapshot."""
    num = len({record.num_rounds for record in records})
    scored = Counter((r.kind, r.prompt_id) for r in records if _is_scored(r))
    return [prompt for prompt, times in scored.items() if times == num]


def _is_scored(record: SnapshotScore) -> bool:
    return record.proxy is not None and record.gold is not None


def measure(records: Sequence[SnapshotScore], resampling: Resampling) -> Measured:
    """All snapshots, in the order of their rounds.

    Args:
        records: Of all snapshots, each prompt once for each; some prompt is common to all.
        resampling: Of the prompts.
    """
    rounds = sorted({record.num_rounds for record in records})
    by_key = {(r.num_rounds, r.kind, r.prompt_id): r for r in records}
    prompts = common_prompts(records)
    rows = [[by_key[num, *prompt] for prompt in prompts] for num in rounds]
    proxy = [[row.proxy or 0.0 for row in own] for own in rows]
    gold = [[row.gold or 0.0 for row in own] for own in rows]
    ahead = np.subtract(proxy, gold)
    gaps = (ahead - ahead[0]).tolist()

    def mean(values: Sequence[float]) -> Estimate:
        found = _mean(values, resampling)
        assert found is not None
        return found

    return Measured(
        snapshots=tuple(
            Snapshot(
                num_rounds=num,
                kl=_mean([row.kl for row in rows[place] if row.kl is not None], resampling),
                proxy=mean(proxy[place]),
                gold=mean(gold[place]),
                gap=mean(gaps[place]),
            )
            for place, num in enumerate(rounds)
        ),
        knee=find_knee(gold, resampling),
        num_prompts=len(prompts),
        num_not_scored=sum(not _is_scored(record) for record in records),
        num_retokenised=sum(record.kl is None for record in records),
    )


def _mean(values: Sequence[float], resampling: Resampling) -> Estimate | None:
    return bootstrap_mean(values, num_resamples=resampling.num_resamples, seed=resampling.seed)
