"""The constitutions of a matrix, read and told apart before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cai import constitution, paths
from cai.constitution import Constitution
from cai.errors import ConfigError

SETTING = "phase.constitutions"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
CONTROL = "control"
"""Scope of principles that a document is a control by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One constitution of a matrix."""

    name: str
    """What reports, metrics and adapters call it: letters, digits, `_` and `-`, so that it is a
    folder's name and a PEFT adapter's."""
    document: Constitution

    @property
    def control(self) -> bool:
        """Whether it says nothing, or says of itself that it is a control."""
        principles = self.document.principles
        return all(CONTROL in principle.scope for principle in principles)


def read_subjects(named: Sequence[str]) -> tuple[Subject, ...]:
    """The documents, in order.

    Raises:
        UserError: when one cannot be read.
        ConfigError: when two are the same, or have the same name.
    """
    found: dict[str, tuple[str, Constitution]] = {}
    for text in named:
        document = constitution.load(text, folder=paths.CONSTITUTIONS, setting=SETTING)
        name = adapter_name(document.name)
        if name in found:
            raise ConfigError(
                f"{SETTING}: {found[name][0]} and {text} are both called {name}, so their adapters "
                "and numbers could not be told apart. Give one of the documents another `name`"
            )
        for other, (typed, one) in found.items():
            if one.digest == document.digest:
                raise ConfigError(
                    f"{SETTING}: {typed} and {text} have the same principles ({other}, {name}), so "
                    "they would be the same policy twice. Leave one out"
                )
        found[name] = (text, document)
    return tuple(Subject(name=name, document=one) for name, (_, one) in found.items())


def adapter_name(name: str) -> str:
    """A document's name as a folder and an adapter can have it."""
    return _UNSAFE.sub("-", name).strip("-")[:64] or "constitution"
