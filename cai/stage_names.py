"""What stages of one run are called where several have the same name: by whose texts they are of.

`responses` is sampled from every policy; a person reads `responses (sl_cai)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the plan and reports need no torch
    from cai.context import StageResult


def stage_names(results: Sequence[StageResult]) -> list[str]:
    """Names in the order of the run; with policies where a name alone would say too little."""
    keys = {result.artifact.digest: result.key for result in results}
    policies = {
        key["inputs"].get("adapter"): key["identity"]["policy"]
        for key in keys.values()
        if "policy" in key.get("identity", {})
    }
    times = Counter(result.name for result in results)
    names = []
    for result in results:
        found = _subjects(result.key, keys, policies) if times[result.name] > 1 else []
        names.append(f"{result.name} ({', '.join(found)})" if found else result.name)
    return names


def _subjects(
    key: dict[str, Any], keys: dict[str, dict[str, Any]], policies: dict[str | None, str]
) -> list[str]:
    """Policies whose texts an artifact is of; empty where its key does not tell."""
    identity, inputs = key.get("identity", {}), key.get("inputs", {})
    if "policy" in identity:
        return [identity["policy"]]
    texts = [inputs[name] for name in ("before", "after", "responses") if name in inputs]
    if texts:
        return [name for one in texts for name in _subjects(keys.get(one, {}), keys, policies)]
    name = policies.get(inputs.get("adapter"))
    return [name] if name is not None and "model" in identity else []
