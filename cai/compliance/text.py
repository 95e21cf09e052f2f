"""The closing text of `phase=evaluate evaluation.responses=FILE` in the terminal."""

from __future__ import annotations

from pathlib import Path

from cai.compliance.classes import ComplianceClass
from cai.compliance.rates import rate_metrics
from cai.compliance.story import Agreement, ResponsesStory
from cai.summary import Page

MAX_GROUPS = 20
"""Lines of groups; all of them are on the page and in `metrics.json`."""


def terminal_responses(story: ResponsesStory, *, run_dir: Path, encoding: str) -> str:
    """Rates, agreement with people where there are labels, and where everything is."""
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    page.text(f"{story.rates.num:,} responses of {story.name}, by rules on wording")
    page.gap("What becomes of the requests, with 95 % intervals")
    for name, rate in rate_metrics(story.rates):
        page.lines.append(f"  {name.removesuffix('_rate'):<13} {rate.format()}")
    if story.agreement is not None:
        _agreement(page, story.agreement)
    if story.groups:
        page.gap("Refused, by column")
        names = [page.clean(f"{group.column} {group.value or '(empty)'}") for group in story.groups]
        wide = min(50, max(map(len, names)))
        for name, group in list(zip(names, story.groups, strict=True))[:MAX_GROUPS]:
            refused = group.rates.classes[ComplianceClass.refusal].format()
            kappa = group.agreement.kappa if group.agreement else None
            told = f"   kappa {kappa.value:.2f}" if kappa else ""
            page.lines.append(f"  {name[:wide]:<{wide}}  {refused}{told}")
        if len(names) > MAX_GROUPS:
            page.lines.append(f"  and {len(names) - MAX_GROUPS:,} more")
    page.gap()
    page.line(f"Every row: {run_dir / 'responses.jsonl'}")
    page.line(f"Report: {run_dir / 'report.html'}")
    return "\n".join(page.lines)


def _agreement(page: Page, agreement: Agreement) -> None:
    page.gap(f"Against the labels in {page.clean(agreement.column)}")
    kappa = agreement.kappa.format() if agreement.kappa else "not defined"
    page.lines.append(f"  Cohen's kappa {kappa}")
    page.lines.append(f"  same class    {agreement.accuracy.format()}")
    heads = "".join(f"{kind:>12}" for kind in ComplianceClass)
    page.lines.append(f"  {'label':<14}{heads}")
    for kind, counts in zip(ComplianceClass, agreement.table, strict=True):
        page.lines.append(f"  {kind:<14}" + "".join(f"{count:>12,}" for count in counts))
