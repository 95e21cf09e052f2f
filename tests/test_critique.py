from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cai.choices import RevisionsUsed
from cai.constitution import Constitution
from cai.generation import Tokens
from cai.prompts import CRITIQUE_EXAMPLES, NO_OP, revision_examples
from cai.stages import training
from cai.tokens import ChatEncoder
from cai.types import Message, RevisionOutcome
from tests.revising import ENCODER, draft, revise
from tests.scripted import ScriptedGenerator


class Cut(ScriptedGenerator):
    """An answer that ends in `~` was cut there at the token limit."""

    def sample(self, prompts: Sequence[list[int]], **settings: Any) -> list[Tokens]:
        tilde = ENCODER.text_ids("~")[0]
        return [
            replace(tokens, ids=tokens.ids[:-2], finished=False)
            if tokens.ids[-2:-1] == (tilde,)
            else tokens
            for tokens in super().sample(prompts, **settings)
        ]


def test_context_is_reset_after_each_revision(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, ["CRIT1", "REV1", "CRIT2", "REV2"])
    (chain,) = revise(generator, medical, [draft()])
    ask_critique2, ask_revision2 = generator.prompts[2:]
    for text in (ask_critique2, ask_revision2):
        assert "REV1" in text
        assert "CRIT1" not in text
        assert "first answer" not in text
    assert "CRIT2" in ask_revision2
    assert [step.response for step in chain.steps] == ["REV1", "REV2"]


def test_prompts_ask_for_the_drawn_principle(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, ["C", "R"] * 3)
    (chain,) = revise(generator, medical, [draft()], num_revisions=3)
    for step, (asked, revised) in zip(
        chain.steps, zip(generator.prompts[::2], generator.prompts[1::2], strict=True), strict=True
    ):
        principle = medical.find(step.principle_id)
        assert principle.critique in asked
        assert principle.revise in revised
    assert len(set(generator.seeds)) == len(generator.seeds)


def test_principles_are_drawn_per_step_with_replacement(medical: Constitution) -> None:
    drafts = [draft(number=i) for i in range(60)]
    generator = ScriptedGenerator(ENCODER, lambda text: f"answer {len(text)}")
    chains = revise(generator, medical, drafts)
    pairs = [(c.steps[0].principle_id, c.steps[1].principle_id) for c in chains]
    assert len({first for first, _ in pairs}) > len(medical.principles) // 2
    # Twelve principles: the same one twice in a row has probability about 1/12 per chain.
    assert 0 < sum(first == second for first, second in pairs) < 30


@pytest.mark.parametrize(
    ("answers", "outcome", "kept"),
    [
        (["fine", "first answer"], RevisionOutcome.unchanged, "first answer"),
        (["bad", ""], RevisionOutcome.empty_revision, "first answer"),
        (["bad", "Here is the revised response: better"], RevisionOutcome.revised, "better"),
        (["It is bad."] * 2, RevisionOutcome.copied, "first answer"),
        (["bad", "PROMPT"], RevisionOutcome.copied, "first answer"),
        (["bad", CRITIQUE_EXAMPLES[NO_OP].revision], RevisionOutcome.copied, "first answer"),
        (["bad", "Revision request: no"], RevisionOutcome.malformed, "first answer"),
        (["bad", "One. Two and~"], RevisionOutcome.truncated, "first answer"),
        (["bad", "One two. Three~"], RevisionOutcome.shortened, "One two."),
    ],
)
def test_outcomes_are_counted_and_keep_the_response(
    medical: Constitution, answers: list[str], outcome: RevisionOutcome, kept: str
) -> None:
    generator = Cut(ENCODER, answers)
    (chain,) = revise(generator, medical, [draft()], num_revisions=1)
    assert chain.steps[0].outcome is outcome
    assert chain.steps[0].response == kept


@pytest.mark.parametrize("form", ["principle", "critique", "revise"])
def test_a_principle_is_not_a_revision(medical: Constitution, form: str) -> None:
    texts = iter(range(99))

    def answer(asked: str) -> str:
        if "Revision request:" not in asked.rpartition("<|user|>")[2]:
            return f"critique number {next(texts)}"
        (own,) = (p for p in medical.principles if p.revise in asked)
        return getattr(own, form)

    chains = revise(
        ScriptedGenerator(ENCODER, answer), medical, [draft(number=i) for i in range(4)]
    )
    assert {step.outcome for chain in chains for step in chain.steps} == {RevisionOutcome.copied}


def test_a_step_that_is_not_used_hands_on_the_response_before_it(medical: Constitution) -> None:
    generator = Cut(ENCODER, ["c1", "better", "c2", "Critique request:", "c3", "First answer!"])
    (chain,) = revise(generator, medical, [draft()], num_revisions=3)
    assert [step.outcome for step in chain.steps] == ["revised", "malformed", "unchanged"]
    assert [step.response for step in chain.steps] == ["better"] * 3
    assert "better" in generator.prompts[4]


@dataclass(frozen=True)
class Base:
    """What `revision_examples` asks of a model."""

    encoder: ChatEncoder = ENCODER

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.encoder.conversation(messages)


def test_only_accepted_revisions_are_taught(medical: Constitution) -> None:
    answers = ["bad", "One two. Three~", "bad", "Better answer", "bad", "Response (B): no"]
    answers += ["bad", "", "bad", "One two", "bad", "Better and~"]
    chains = revise(Cut(ENCODER, answers), medical, [draft()], num_revisions=6)
    examples = training.revision_examples(Base(), chains, used=RevisionsUsed.all)
    taught = [ENCODER.decode(example.response_ids) for example in examples]
    assert taught == ["One two.", "Better answer", "One two"]
    ended = [example.response_ids[-1] == ENCODER.eos_id for example in examples]
    assert ended == [False, True, True]  # what was cut is not taught to end there
    (last,) = training.revision_examples(Base(), chains, used=RevisionsUsed.final)
    assert ENCODER.decode(last.response_ids) == "One two"


def test_a_prompt_that_does_not_fit_is_an_outcome(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, [], max_context=10)
    (chain,) = revise(generator, medical, [draft()], num_revisions=1)
    step = chain.steps[0]
    assert step.outcome is RevisionOutcome.too_long
    assert step.critique is None
    assert step.revision is None
    assert step.response == "first answer"


def test_a_principle_is_literal_text(medical: Constitution) -> None:
    hostile = "{} ${oc.env:HOME} %s {0.__class__}"
    principle = replace(medical.principles[0], critique=hostile, revise=hostile)
    generator = ScriptedGenerator(ENCODER, ["C", "R"])
    document = replace(medical, principles=(principle,))
    revise(generator, document, [draft()], num_revisions=1)
    assert all(hostile in text for text in generator.prompts)


def test_the_no_op_example_is_always_shown_and_changes_nothing() -> None:
    for num in range(1, len(CRITIQUE_EXAMPLES) + 1):
        assert CRITIQUE_EXAMPLES[NO_OP] in revision_examples(num)
        assert len(revision_examples(num)) == num
    assert CRITIQUE_EXAMPLES[NO_OP].revision == CRITIQUE_EXAMPLES[NO_OP].response
    with pytest.raises(ValueError, match="num_few_shot=9"):
        revision_examples(9)
