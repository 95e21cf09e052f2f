from __future__ import annotations

from dataclasses import replace

import pytest

from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig, SamplingConfig
from cai.constitution import Constitution
from cai.critique import Reviser
from cai.prompts import CRITIQUE_EXAMPLES, NO_OP, clean_revision, revision_examples
from cai.tokens import ChatEncoder
from cai.types import (
    Message,
    Prompt,
    PromptKind,
    Response,
    RevisionOutcome,
    Sample,
    Split,
)
from tests.conftest import byte_tokenizer
from tests.scripted import ScriptedGenerator

ENCODER = ChatEncoder(byte_tokenizer())


def draft(text: str = "first answer", number: int = 0) -> Response:
    prompt = Prompt(
        id=f"p{number}",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content="PROMPT"),),
    )
    sample = Sample(text=text, num_tokens=3, logprob=-1.0, finished=True, seed=0)
    return Response(prompt=prompt, policy="base", index=0, sample=sample)


def reviser(
    generator: ScriptedGenerator, constitution: Constitution, num_revisions: int = 2
) -> Reviser:
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0, shard_size=4)
    return Reviser(
        generator=generator,
        encoder=ENCODER,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
        config=RevisionsConfig(
            num_revisions=num_revisions, num_few_shot=1, critique=sampling, revision=sampling
        ),
        seed=7,
    )


def test_context_is_reset_after_each_revision(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, ["CRIT1", "REV1", "CRIT2", "REV2"])
    (chain,) = reviser(generator, medical).revise([draft()], lambda _: None)
    ask_critique2, ask_revision2 = generator.prompts[2:]
    for text in (ask_critique2, ask_revision2):
        assert "REV1" in text
        assert "CRIT1" not in text
        assert "first answer" not in text
    assert "CRIT2" in ask_revision2
    assert [step.response for step in chain.steps] == ["REV1", "REV2"]


def test_prompts_ask_for_the_drawn_principle(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, ["C", "R"] * 3)
    (chain,) = reviser(generator, medical, num_revisions=3).revise([draft()], lambda _: None)
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
    chains = reviser(generator, medical).revise(drafts, lambda _: None)
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
    ],
)
def test_outcomes_are_counted_and_keep_the_response(
    medical: Constitution, answers: list[str], outcome: RevisionOutcome, kept: str
) -> None:
    generator = ScriptedGenerator(ENCODER, answers)
    (chain,) = reviser(generator, medical, num_revisions=1).revise([draft()], lambda _: None)
    assert chain.steps[0].outcome is outcome
    assert chain.steps[0].response == kept


def test_a_prompt_that_does_not_fit_is_an_outcome(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, [], max_context=10)
    (chain,) = reviser(generator, medical, num_revisions=1).revise([draft()], lambda _: None)
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
    reviser(generator, document, num_revisions=1).revise([draft()], lambda _: None)
    assert all(hostile in text for text in generator.prompts)


def test_the_no_op_example_is_always_shown_and_changes_nothing() -> None:
    for num in range(1, len(CRITIQUE_EXAMPLES) + 1):
        assert CRITIQUE_EXAMPLES[NO_OP] in revision_examples(num)
        assert len(revision_examples(num)) == num
    assert CRITIQUE_EXAMPLES[NO_OP].revision == CRITIQUE_EXAMPLES[NO_OP].response
    with pytest.raises(ValueError, match="num_few_shot=9"):
        revision_examples(9)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Just an answer.", "Just an answer."),
        ("Sure! Here is a revised response: No.", "No."),
        ("Revision: Better now", "Better now"),
        ('"Quoted whole."', "Quoted whole."),
        ("> quoted line\n> second", "quoted line\nsecond"),
        ("Take care \U0001f600\U0001f600 \u2764\ufe0f", "Take care"),
        ("Use a ratio of 3:1.", "Use a ratio of 3:1."),
        ("New York: a city of many.", "New York: a city of many."),
        ("Revised approach to budgets: save more.", "Revised approach to budgets: save more."),
        ("Here is the thing: I can't.", "Here is the thing: I can't."),
        ("I write C#", "I write C#"),
        ("Do **that**", "Do **that**"),
        ("Bye ***** #####", "Bye"),
        ("", ""),
    ],
)
def test_clean_revision(text: str, clean: str) -> None:
    assert clean_revision(text) == clean
