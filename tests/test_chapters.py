from cai.chapters import Bootstrap, Records, evaluation_story
from cai.compliance.classify import classify
from cai.types import (
    Evaluated,
    LikelihoodTest,
    Message,
    Prompt,
    PromptKind,
    Response,
    Sample,
    Split,
)

BOOTSTRAP = Bootstrap(num=50, seed=0)


def evaluated(policy, number, score):
    prompt = Prompt(
        id=f"p{number}",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.evaluation,
        messages=(Message(role="user", content="?"),),
    )
    sample = Sample(text="one two", num_tokens=2, logprob=-1.0, finished=True, seed=0)
    response = Response(prompt=prompt, policy=policy, index=0, sample=sample)
    return Evaluated(response=response, score=score, compliance=classify("?", sample.text))


def story(base, trained):
    rows = [
        evaluated(policy, number, score)
        for policy, scores in (("base", base), ("rl_cai", trained))
        for number, score in enumerate(scores)
    ]
    nothing: list[LikelihoodTest] = []
    return evaluation_story(
        Records(
            chains=[],
            evaluated=rows,
            likelihoods={"base": nothing, "rl_cai": nothing},
            base_likelihoods={},
            capability={},
            controls=[],
            control_comparisons=[],
            checks=[],
            comparisons=[],
            held_out=[],
            pm_tests=[],
            contrasts=[],
        ),
        BOOTSTRAP,
    )


def score_change(told):
    found = [change for change in told.changes if "score" in change.metric]
    return found[0].estimate if found else None


def test_a_response_without_a_score_is_left_out_and_is_no_zero():
    told = story([1.0, None, 3.0], [2.0, 9.0, None])
    assert [row.mean_score.num for row in told.rows] == [2, 2]
    assert [row.mean_score.value for row in told.rows] == [2.0, 5.5]
    change = score_change(told)
    assert (change.value, change.num) == (1.0, 1)
    assert told.note == ""


def test_without_a_preference_model_no_score_is_told():
    told = story([None, None], [None, None])
    assert score_change(told) is None
    assert all(row.mean_score is None for row in told.rows)
    assert "Preference-model scores are not measured" in told.note
