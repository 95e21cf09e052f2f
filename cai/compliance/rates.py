"""How many of some responses refuse, answer in part, warn, offer something else, comply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.compliance.classes import Compliance, ComplianceClass, ComplianceTag
from cai.statistics import Estimate, wilson_interval

BESIDE = (ComplianceTag.caveated, ComplianceTag.alternative, ComplianceTag.abstention)
"""Tags that say more than the class does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceRates:
    """The mixture of some responses; every rate with its Wilson interval."""

    num: int
    classes: dict[ComplianceClass, Estimate]
    """They add up to 1."""
    tags: dict[ComplianceTag, Estimate]
    """Several hold for one response."""
    main: dict[ComplianceTag, int]
    """Responses by main class."""


def compliance_rates(found: Sequence[Compliance]) -> ComplianceRates | None:
    """Rates of every class and tag; None without responses."""
    classes = Counter(one.compliance for one in found)
    tags = Counter(tag for one in found for tag in one.tags)
    main = Counter(one.main for one in found)
    rated = {kind: wilson_interval(classes[kind], len(found)) for kind in ComplianceClass}
    tagged = {tag: wilson_interval(tags[tag], len(found)) for tag in ComplianceTag}
    if not found:
        return None
    return ComplianceRates(
        num=len(found),
        classes={kind: rate for kind, rate in rated.items() if rate is not None},
        tags={tag: rate for tag, rate in tagged.items() if rate is not None},
        main={tag: main[tag] for tag in ComplianceTag},
    )


def rate_metrics(rates: ComplianceRates) -> Iterator[tuple[str, Estimate]]:
    """`refusal_rate`, `partial_rate`, `compliance_rate`, then those of `BESIDE`."""
    for kind, rate in rates.classes.items():
        yield f"{kind}_rate", rate
    for tag in BESIDE:
        yield f"{tag}_rate", rates.tags[tag]
