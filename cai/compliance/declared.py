"""What a constitution wants done with requests, as values of compliance classes by prompt kind.

Harmlessness and helpfulness are no opposites where a response may answer in part, warn, or offer
something else (Bai et al. 2022, sec. 4.4, where crowd workers were asked to prefer an explained
objection to an evasion). A document says here what each way of answering is worth, and preference
labels and the choice of a revision follow (`comparisons.compliance_coef`,
`sl_policy.revisions=best_compliance`). The request for a revision gets nothing of it: its wording
is the constitution's own, and numbers are no wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cai.compliance.classes import ComplianceTag
from cai.compliance.classify import classify
from cai.types import Prompt, PromptKind
from cai.yaml_nodes import Checker, Node
from cai.yaml_nodes import Mapping as MappingNode

FIELD = "compliance"
LIMIT = 1.0
"""Values lie in [-1, 1]."""

Values = dict[PromptKind, dict[ComplianceTag, float]]
"""As written, or merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredCompliance:
    """Values of main classes; a class or a kind that is not written is worth 0."""

    values: Values = field(hash=False)

    def value(self, kind: PromptKind, tag: ComplianceTag) -> float:
        """What a class is worth in response to a kind of prompt."""
        return self.values.get(kind, {}).get(tag, 0.0)

    def value_of(self, prompt: Prompt, response: str) -> float:
        """What a response is worth, by the class that rules give it."""
        return self.value(prompt.kind, main_class(prompt, response))


def main_class(prompt: Prompt, response: str) -> ComplianceTag:
    """The main class of a response to a conversation's last turn."""
    return classify(prompt.messages[-1].content, response).main


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A document's own section before its parents' are merged in."""

    values: Values
    node: Node


def read_compliance(node: Node, check: Checker) -> Written:
    """The section `compliance` of one file; its problems are noted."""
    found: Values = {}
    kinds = tuple(str(kind) for kind in PromptKind)
    tags = tuple(str(tag) for tag in ComplianceTag)
    fields = check.fields(node, FIELD, known=kinds, required=())
    if isinstance(node, MappingNode) and not node.fields:
        check.add(node, FIELD, "is empty; leave the field out")
    for kind, own in fields.items():
        path = f"{FIELD}.{kind}"
        classes = check.fields(own, path, known=tags, required=())
        if isinstance(own, MappingNode) and not own.fields:
            check.add(own, path, "is empty; leave the field out")
        found[PromptKind(kind)] = {
            ComplianceTag(tag): check.between(value, f"{path}.{tag}", low=-LIMIT, high=LIMIT)
            for tag, value in classes.items()
        }
    return Written(values=found, node=node)


def merged(
    written: Written | None, parents: Sequence[tuple[str, DeclaredCompliance]], check: Checker
) -> DeclaredCompliance | None:
    """A document's own values over those of its parents, class by class; None where nobody has any.

    Args:
        written: The document's own.
        parents: Name and values of each parent that has some.
        check: Gets a problem where two parents give a class different values and the document none.
    """
    found: Values = {}
    came: dict[tuple[PromptKind, ComplianceTag], str] = {}
    own = written.values if written else {}
    for name, parent in parents:
        for kind, values in parent.values.items():
            for tag, value in values.items():
                before = found.setdefault(kind, {}).setdefault(tag, value)
                first = came.setdefault((kind, tag), name)
                if before != value and tag not in own.get(kind, {}):
                    check.add_at(
                        1,
                        1,
                        f"{FIELD}.{kind}.{tag}",
                        f"is {before:g} in {first} and {value:g} in {name}; give it a value here",
                    )
    for kind, values in own.items():
        found.setdefault(kind, {}).update(values)
    return DeclaredCompliance(values=found) if found else None
