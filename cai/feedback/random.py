"""Random labels: a fair coin for every pair, tossed from its seed; no model is asked.

The control for everything that is learned from labels: all stages run as with any other feedback,
and whatever a policy gains was not taught by its judge. The coin prefers a text and not a place:
swapping the two responses gives the complement, as with a judge without position bias, and the same
pair is judged the same way again under the same principle and seed. Its expected accuracy is 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai.feedback.base import Case, Judged, Method
from cai.seeds import python_rng
from cai.types import Judgement


class Random(Method):
    """Prefers one of the two responses by a coin."""

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement for each case: 1 for one response and 0 for the other."""
        return [(_judgement(case),) for case in cases]


def _judgement(case: Case) -> Judgement:
    first, second = sorted((case.response_a, case.response_b))
    preferred = python_rng(case.seed, "coin", first, second).choice((first, second))
    prob_a = float(preferred == case.response_a)
    return Judgement(
        principle_id=case.principle.id,
        member=None,
        first=None,
        letter_a=None,
        letter_b=None,
        value_a=prob_a,
        value_b=1 - prob_a,
        prob_a=prob_a,
        text=None,
    )
