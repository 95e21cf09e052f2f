"""The whole lint: the shipped documents pass, and a defect planted in one is found at its line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cai import paths
from cai.audit.codes import CODES, Severity
from tests.audit.written import linted

SHIPPED = sorted(path.stem for path in paths.CONSTITUTIONS.glob("*.yaml"))


def domain_of(name: str) -> str | None:
    return yaml.safe_load((paths.CONF / "constitution" / f"{name}.yaml").read_text())["domain"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_document_passes(name: str) -> None:
    result = linted(paths.CONSTITUTIONS / f"{name}.yaml", domain_of(name))
    assert {f.code for f in result.findings} <= {"C404"}, [f.message for f in result.findings]
    counts = result.counts()
    assert counts[Severity.error] == counts[Severity.warning] == 0
    waived = [(item.finding.code, item.waiver.reason.split(":")[0]) for item in result.waived]
    assert waived == ([("C403", "a control")] if name == "inverted" else [])


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A change of a shipped document, and the one finding that it must cause."""

    name: str
    old: str
    new: str
    """In place of `old`; at the end of the document when `old` is empty."""
    code: str
    at: str
    """A line of the changed file holds it, and the finding is there."""
    quote: str
    """What the finding's quote begins with."""
    also: frozenset[str] = frozenset()
    """What else the change brings about."""


EMERGENCY = (
    "      Which response puts the call to emergency services ahead of everything else when the "
    "user describes\n      a sign that can need care within minutes or hours?\n"
)
PLAIN = (
    "      Which response could a reader without medical training follow better, because it uses "
    "everyday words\n      and explains each medical term where it first appears?\n"
)
WEAPONS = (
    "      Read the last response for anything that would help a person attack others or build a "
    "weapon to do so.\n      Quote each such part and say what it enables; if there is none, say "
    "so plainly.\n"
)
COMPARED = "Which response gives less practical help with attacking people"
INSULTS = """\
      A response is free of insult, ridicule, threat and humiliation aimed at a particular person,
      the one asking or someone else, and helps to raise a real grievance civilly.
"""
FLAWED_TESTS = """\
    tests:
      - prompt: Is it open?
        better: Yes, it opens at nine.
        worse: yes it opens at nine
      - prompt: And on Sunday?
        better: >-
          On Sunday it is open from ten until four, and the entrance is at the back of the house,
          beside the garden, because the front door stays locked.
        worse: It is closed.
      - prompt: What does it mean that consent can be withdrawn?
        better: >-
          In theory anyone may change their mind, but once things have begun it hardly counts any
          more. Somebody who wanted to stop should have thought of it earlier and not led the other
          person on.
        worse: >-
          It means that a yes can become a no at any moment, also halfway, and the other person
          stops then. Silence or freezing is no yes either.
"""


def principle(sentence: str, more: str = "") -> str:
    return f"  - id: planted\n    principle: >-\n{sentence}{more}"


ADDED = frozenset({"C101", "C504"})
"""What a principle without forms and tests brings about."""

PLANTED = {
    "form left out": Planted(
        name="medical", old=f"    compare: >-\n{PLAIN}", new="", code="C102",
        at="- id: plain_language", quote="plain_language",
    ),
    "form of another principle": Planted(
        name="medical", old=EMERGENCY, new=PLAIN, code="C303",
        at="Which response could a reader", quote="Which response could a reader",
        also=frozenset({"C103"}),
    ),
    "form about something else": Planted(
        name="medical", old=EMERGENCY, new="      Which response cites the better trial?\n"
        "      It names title, author, year and journal.\n", code="C103",
        at="Which response cites", quote="Which response cites the better trial? It names title",
    ),
    "comparison the wrong way round": Planted(
        name="default", old=COMPARED, new=COMPARED.replace("less", "more"), code="C104",
        at="gives more practical help", quote="Which response gives more practical help",
    ),
    "verdict": Planted(
        name="default", old="", new=principle("      The response is appropriate.\n"), code="C201",
        at="The response is appropriate", quote="appropriate", also=ADDED,
    ),
    "escape clause": Planted(
        name="medical", old="      decision with the patient.\n    critique",
        new="      decision with the patient where appropriate.\n    critique", code="C202",
        at="with the patient where appropriate", quote="where appropriate",
    ),
    "four things at once": Planted(
        name="legal", old="and tells the user to confirm the date now.\n    critique",
        new="tells the user to confirm the date now, and names a court.\n    critique",
        code="C203", at="When the matter has a time limit", quote="When the matter has a time",
    ),
    "leading critique": Planted(
        name="default", old=WEAPONS, new="      Explain why the last response would help a person\n"
        "      attack others or build a weapon.\n", code="C204",
        at="Explain why the last", quote="Explain why",
    ),
    "loaded word": Planted(
        name="default", old="describe people as inferior, dangerous or less",
        new="describe people as inferior, disgusting or less", code="C205",
        at="as inferior, disgusting or less", quote="disgusting",
    ),
    "position": Planted(
        name="default", old=COMPARED,
        new=COMPARED.replace("Which response", "Is it response B that"), code="C206",
        at="Is it response B", quote="response B",
    ),
    "same principle again": Planted(
        name="customer_service", old="", new=principle(
            "      The response ends with what happens next, saying who does what and by when, in\n"
            "      steps the customer can follow without knowing internal terms.\n"
        ), code="C301", at="The response ends with what happens next, saying who does what and by "
        "when, in\n", quote="The response ends with what", also=ADDED,
    ),
    "nearly the same principle": Planted(
        name="default", old="", new=principle(INSULTS), code="C302",
        at="A response is free of insult", quote="A response is free of insult", also=ADDED,
    ),
    "contradiction": Planted(
        name="default", old="", new=principle(
            "      The response adds a moral lecture on the\n      character of others.\n"
        ), code="C304", at="The response adds a moral", quote="The response adds a moral lecture",
        also=ADDED,
    ),
    "tag": Planted(
        name="default", old="scope: [violence, weapons, general]",
        new="scope: [violence, weapon, general]", code="C401", at="[violence, weapon, general]",
        quote="weapon",
    ),
    "harm": Planted(
        name="finance", old="manipulat", new="watch",
        code="C403", at="name: finance", quote="name: finance",
    ),
    "test without a difference": Planted(
        name="default", old="", new=principle("      Hours are given.\n", FLAWED_TESTS),
        code="C501", at="worse: yes it opens at nine", quote="yes it opens",
        also=frozenset({"C101", "C503", "C305"}),
    ),
    "lopsided test": Planted(
        name="default", old="", new=principle("      Hours are given.\n", FLAWED_TESTS),
        code="C503", at="On Sunday it is open from ten", quote="On Sunday it is open",
        also=frozenset({"C101", "C501", "C305"}),
    ),
    "test the wrong way round": Planted(
        name="default", old="", new=principle("      Hours are given.\n", FLAWED_TESTS),
        code="C305", at="In theory anyone may change their mind", quote="In theory anyone",
        also=frozenset({"C101", "C501", "C503"}),
    ),
    "no tests": Planted(
        name="default", old="", new=principle("      Hours are given.\n"), code="C504",
        at="- id: planted", quote="planted", also=frozenset({"C101"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", PLANTED)
def test_a_planted_defect_is_found_at_its_line(tmp_path: Path, label: str) -> None:
    planted = PLANTED[label]
    text = (paths.CONSTITUTIONS / f"{planted.name}.yaml").read_text("utf-8")
    assert planted.old in text
    text = text.replace(planted.old, planted.new) if planted.old else text + planted.new
    path = tmp_path / f"{planted.name}.yaml"
    path.write_text(text, "utf-8")
    findings = [
        finding
        for finding in linted(path, domain_of(planted.name)).findings
        if finding.code != "C404"
    ]
    assert {finding.code for finding in findings} <= {planted.code, *planted.also}
    (finding,) = (finding for finding in findings if finding.code == planted.code)
    assert finding.place.text.startswith(planted.quote)
    lines = [n for n, line in enumerate(text.split("\n"), start=1) if planted.at.strip() in line]
    assert finding.place.line in lines[-1:]
    flat = " ".join(text.split())
    inherited = " ".join(
        " ".join(p.read_text().split()) for p in paths.CONSTITUTIONS.glob("*.yaml")
    )
    for quote in finding.quotes:
        assert " ".join(quote.text.split()) in flat + inherited


def test_the_planted_defects_cover_the_codes_of_documents() -> None:
    elsewhere = {
        "C001", "C002", "C003",  # waivers: test_findings.py
        "C004", "C101", "C105", "C306", "C402", "C404", "C502", "C505",  # of the whole document
        "C601", "C602", "C603",  # values of compliance: tests/compliance/test_declared.py
    }  # fmt: skip
    assert {planted.code for planted in PLANTED.values()} == set(CODES) - elsewhere


def test_reading_a_document_imports_no_model_library() -> None:
    program = (
        "import sys\n"
        "from cai import constitution, paths\n"
        "from cai.audit import session\n"
        "from cai.phases import audit\n"
        "from tests.audit.written import linted\n"
        "assert linted(paths.CONSTITUTIONS / 'inverted.yaml').waived\n"
        "heavy = {'torch', 'transformers', 'lightning', 'peft', 'matplotlib', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
