"""What a file of responses has to tell: rates, agreement with people, and some of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.agreement import confusion, kappa_estimate
from cai.compliance.classes import ComplianceClass
from cai.compliance.rates import ComplianceRates, compliance_rates, rate_metrics
from cai.compliance.table import ClassifiedResponse, ResponseTable, in_group, name_of
from cai.statistics import Estimate, wilson_interval

MAX_SHOWN = 300
"""Rows on the page; all are in `responses.jsonl`."""
CATEGORIES = tuple(ComplianceClass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The rules against people's labels, in the three classes."""

    column: str
    kappa: Estimate | None
    """Cohen's, with a bootstrap interval over rows."""
    accuracy: Estimate
    table: list[list[int]]
    """Rows: the label; columns: what the rules found; in the order of `ComplianceClass`."""
    num_unlabelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRates:
    """The rows with one value in one column."""

    column: str
    value: str
    rates: ComplianceRates
    agreement: Agreement | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesStory:
    """A classified file."""

    name: str
    rates: ComplianceRates
    agreement: Agreement | None
    groups: tuple[GroupRates, ...]
    ungrouped: dict[str, int]
    shown: tuple[ClassifiedResponse, ...]
    """Spread over the file, those that people label otherwise first."""

    @property
    def num_left_out(self) -> int:
        """Rows that are not on the page."""
        return self.rates.num - len(self.shown)


def responses_story(
    table: ResponseTable, *, label: str | None, num_bootstrap: int, seed: int
) -> ResponsesStory:
    """Count everything once."""
    rates = compliance_rates([row.found for row in table.rows])
    assert rates is not None  # an empty file is refused when it is read

    def agreement(rows: Sequence[ClassifiedResponse]) -> Agreement | None:
        return _agreement(rows, label=label, num_bootstrap=num_bootstrap, seed=seed)

    groups = []
    for column, values in table.groups.items():
        for value in values:
            own = [row for row in table.rows if in_group(row, column, value)]
            mixture = compliance_rates([row.found for row in own])
            assert mixture is not None
            groups.append(
                GroupRates(column=column, value=value, rates=mixture, agreement=agreement(own))
            )
    return ResponsesStory(
        name=name_of(table),
        rates=rates,
        agreement=agreement(table.rows),
        groups=tuple(groups),
        ungrouped=table.ungrouped,
        shown=_shown(table.rows),
    )


def _agreement(
    rows: Sequence[ClassifiedResponse], *, label: str | None, num_bootstrap: int, seed: int
) -> Agreement | None:
    if label is None:
        return None
    labelled = [(row.label, row.found.compliance) for row in rows if row.label is not None]
    labels, found = [one for one, _ in labelled], [other for _, other in labelled]
    right = sum(one is other for one, other in labelled)
    accuracy = wilson_interval(right, len(labelled))
    if accuracy is None:
        return None
    return Agreement(
        column=label,
        kappa=kappa_estimate(
            labels, found, categories=CATEGORIES, num_resamples=num_bootstrap, seed=seed
        ),
        accuracy=accuracy,
        table=confusion(labels, found, categories=CATEGORIES),
        num_unlabelled=len(rows) - len(labelled),
    )


def _shown(rows: Sequence[ClassifiedResponse]) -> tuple[ClassifiedResponse, ...]:
    """At most `MAX_SHOWN`: half of them where people differ, the others spread evenly."""
    differ = [row for row in rows if row.label not in (None, row.found.compliance)]
    first = differ[: MAX_SHOWN // 2]
    taken = set(map(id, first))
    rest = [row for row in rows if id(row) not in taken]
    num = MAX_SHOWN - len(first)
    step = max(1.0, len(rest) / num)
    return (*first, *(rest[int(k * step)] for k in range(min(num, len(rest)))))


def responses_metrics(story: ResponsesStory) -> Iterator[tuple[str, Estimate | float]]:
    """`responses/...`, by column and value below it, and the agreement with people."""
    yield "responses/num", float(story.rates.num)
    yield from _named("responses", story.rates, story.agreement)
    used: set[str] = set()
    for group in story.groups:
        name = f"responses/{_key(group.column)}/{_key(group.value)}"
        if name in used:  # two values that differ in characters that a name cannot have
            name += f"-{len(used)}"
        used.add(name)
        yield f"{name}/num", float(group.rates.num)
        yield from _named(name, group.rates, group.agreement)


def _named(
    name: str, rates: ComplianceRates, agreement: Agreement | None
) -> Iterator[tuple[str, Estimate | float]]:
    for key, rate in rate_metrics(rates):
        yield f"{name}/{key}", rate
    for tag, count in rates.main.items():
        yield f"{name}/main/{tag}", float(count)
    if agreement is None:
        return
    if agreement.kappa is not None:
        yield f"{name}/kappa", agreement.kappa
    yield f"{name}/accuracy", agreement.accuracy
    for label, counts in zip(CATEGORIES, agreement.table, strict=True):
        for found, count in zip(CATEGORIES, counts, strict=True):
            yield f"{name}/confusion/{label}/{found}", float(count)


def _key(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in text)
    return kept[:60] or "none"
