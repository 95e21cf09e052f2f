"""Some of a constitution's principles, drawn by a seed of their own.

How much the number of principles matters is a question of the paper's (Bai et al. 2022, sec. 3.4
and fig. 6: more of them change the mean score little and make red-team samples more diverse).
Subsets of one seed are nested: that of 8 holds that of 4, so a sweep over the number adds
principles and exchanges none. Every principle is as likely to be in as any other, whatever its
weight.
"""

from __future__ import annotations

import dataclasses

from cai import paths
from cai.config import ConstitutionConfig
from cai.constitution import Constitution, digest_of, load
from cai.errors import ConfigError
from cai.seeds import python_rng

SETTING = "constitution.num_principles"


def chosen_document(config: ConstitutionConfig) -> Constitution:
    """The constitution of a run: the document, or the subset of it that is asked for.

    Raises:
        UserError: when it cannot be read, or has fewer principles than are asked for.
    """
    document = load(config.document, folder=paths.CONSTITUTIONS)
    return subset(document, num=config.num_principles, seed=config.subset_seed)


def subset(document: Constitution, *, num: int | None, seed: int) -> Constitution:
    """The document with `num` of its principles, in its order; as it is with None.

    Args:
        document: The whole.
        num: How many are kept.
        seed: Of the draw; not the run's, so that runs of several seeds have the same principles.

    Raises:
        ConfigError: when it has fewer, or none at all.
    """
    if num is None:
        return document
    there = len(document.principles)
    if num > there:
        known = f"{there} principles; type a number up to {there}" if there else "no principles"
        raise ConfigError(f"{SETTING}={num}: {document.name} has {known}, or {SETTING}=null")
    order = list(range(there))
    python_rng(seed, "principle subset").shuffle(order)
    kept = tuple(document.principles[place] for place in sorted(order[:num]))
    ids = {principle.id for principle in kept}
    return dataclasses.replace(
        document,
        principles=kept,
        left_out=tuple(p.id for p in document.principles if p.id not in ids),
        digest=digest_of(kept, document.unguided, document.compliance),
        origins={name: origin for name, origin in document.origins.items() if name in ids},
    )
