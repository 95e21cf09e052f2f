"""The kinds of harm in a run's red-team prompts, read from the sets that the config names."""

from __future__ import annotations

import logging
from collections import Counter

from cai.audit.scope import Harm
from cai.choices import DataFormat
from cai.config import DataConfig
from cai.data import load_domain, load_prompts
from cai.types import Prompt, PromptKind

log = logging.getLogger(__name__)


def harms_of(data: DataConfig, domain: str | None) -> tuple[Harm, ...]:
    """Categories of red-team prompts, the general ones first; in the order of the files.

    A share of 1 from the domain leaves the general prompts out, a share of 0 the domain's. A set on
    the hub is left out, because reading a document asks no network.

    Raises:
        UserError: when a set is not there or has a row that is not valid.
    """
    found: list[Harm] = []
    if domain is None or data.domain_frac < 1:
        if data.red_team.format is DataFormat.hub:
            log.warning("data.red_team is on the hub: its kinds of harm are not looked up")
        else:
            general = load_prompts(data.red_team, kind=PromptKind.red_team, evaluation_frac=0.0)
            found += _harms(general, of_domain=False)
    if domain is not None and data.domain_frac > 0:
        own = load_domain(domain, 0.0)
        found += _harms(
            [prompt for prompt in own if prompt.kind is PromptKind.red_team], of_domain=True
        )
    return tuple(found)


def _harms(prompts: list[Prompt], *, of_domain: bool) -> list[Harm]:
    counts = Counter((prompt.category, prompt.source) for prompt in prompts)
    return [
        Harm(category=category, source=source, num_prompts=num, of_domain=of_domain)
        for (category, source), num in counts.items()
    ]
