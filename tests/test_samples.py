"""What a reader can look through, where it comes from, and the model card."""

import dataclasses
import re

import pytest
import yaml

from cai import lineage, samples
from cai.model_card import model_card, write_model_card
from cai.report import render_report
from cai.story import RunStory, SampleSource, StageStory
from cai.types import Comparison, PrincipleLabel, Unjudged
from tests import pages, stories
from tests.test_report import PAYLOADS, poisoned


def comparison(**values):
    fields = {
        "prompt": stories.prompt(3, "red_team", "fraud", "How?"),
        "response_a": "one",
        "response_b": "two",
        "principle_ids": ("p",),
        "judgements": (),
        "labels": (PrincipleLabel(principle_id="p", prob_a=0.25, weight=1.0),),
        "prob_a": 0.25,
        "weight": 1.0,
        "unjudged": None,
        "seed": 0,
    }
    return Comparison(**fields | values)


def test_training_samples_say_what_became_of_them():
    unjudged = comparison(prob_a=None, labels=(), unjudged=next(iter(Unjudged)))
    found = samples.training_samples(stories.chains(), [comparison(), unjudged])
    chains = stories.chains()
    assert [one.source for one in found[: len(chains)]] == [SampleSource.revision] * len(chains)
    assert found[-2].told == "P(a preferred) 0.250"
    assert found[-1].told.startswith("No label: ")
    used = [step for step in chains[0].steps if step.outcome.accepted]
    assert [a.text for a in found[0].answers] == [
        chains[0].draft.text, *(step.response for step in used),
    ]  # fmt: skip


def test_what_a_page_cannot_hold_is_counted():
    rows = [comparison()] * (samples.MAX_TRAINING + 7)
    assert len(samples.training_samples([], rows)) == samples.MAX_TRAINING
    assert samples.num_left_out([], [], rows) == 7
    assert samples.num_left_out([], stories.chains(), rows[:3]) == 0


def stage(name, digest, *inputs):
    return StageStory(
        name=name, full_name=name, status="computed", seconds=1.0, num_records=1, digest=digest,
        inputs=inputs, version=1,
    )  # fmt: skip


def test_lineage_draws_an_edge_only_where_no_other_way_leads():
    """a -> b -> c and a -> c: the second is implied, so two lines for three inputs."""
    stages = [stage("a", "01"), stage("b", "02", "01"), stage("c", "03", "02", "01")]
    chart = lineage.lineage_chart(stages)
    assert chart.svg.count('class="edge"') == 2
    assert "c from b, a" in chart.alternative
    assert [f"#stage-{n}" in chart.svg for n in (1, 2, 3, 4)] == [True, True, True, False]
    ys = [part.split('"')[0] for part in chart.svg.split('y="')[1::3]]
    assert len(set(ys)) == 3


def test_lineage_of_nothing_and_of_stages_outside_the_run():
    assert lineage.lineage_chart([]) is None
    assert lineage.lineage_chart([stage("a", "01", "09")]) is None


def test_the_card_has_front_matter_results_with_intervals_and_the_command():
    story = stories.full_story()
    card = model_card(story)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "smollm2_135m"
    assert f"    {story.headline.command}" in body
    for heading in ("Constitution", "Evaluation", "Limits", "How to reproduce"):
        assert f"## {heading}" in body
    for principle in story.constitution.principles:
        assert principle.id.replace("_", "\\_") in body
    assert "n = " in body


def test_no_card_without_a_trained_policy(tmp_path):
    write_model_card(RunStory(headline=stories.headline()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_markup_in_a_card_is_text(payload):
    card = model_card(poisoned(stories.full_story(), payload))
    _, front, body = card.split("---\n", 2)
    yaml.safe_load(front)
    points = [line for line in body.splitlines() if not line.startswith("    ")]
    assert all("<" not in line for line in points)
    assert not any(re.search(r"(?<!\\)(\]\(|!\[|`|\*)", line) for line in points)


def test_a_closing_tag_in_a_response_closes_nothing():
    whole = stories.full_story()
    hostile = "</script><script>alert(1)</script>\u2028\u2029<!--"
    story = dataclasses.replace(whole, training=poisoned(whole.training, hostile))
    page = render_report(story)
    assert page.count("<script>") == 1
    assert page.count("</script>") == 1
    assert "\u2028" not in page


@pytest.mark.skipif(pages.CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser(tmp_path):
    page = render_report(pages.many(60))
    path = tmp_path / "report.html"
    path.write_text(page, "utf-8")
    opened = pages.chromium("--dump-dom", path.as_uri(), folder=tmp_path)
    assert not [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert "62 of 62" not in page
    assert "62 of 62 samples, the first 50 shown" in opened.stdout
    script = """
      const shown = () => page.querySelectorAll("#samples > :not([hidden])").length;
      const found = {all: shown(), wide: page.documentElement.scrollWidth};
      page.getElementById("more").click();
      found.more = shown();
      set("by-source", "comparison");
      found.comparisons = shown();
      set("by-source", "all");
      set("by-order", "largest reward change");
      found.changes = [...page.querySelectorAll("#samples > :not([hidden])")]
        .map((one) => Math.abs(one.dataset.change)).slice(0, 20);
      set("by-class", "refusal");
      set("by-policy", "RL-CAI");
      found.refusals = shown();
      set("by-diff", true);
      found.marked = page.querySelectorAll("#samples ins").length > 0;
      set("by-diff", false);
      found.unmarked = page.querySelectorAll("#samples ins").length;
      const svg = page.querySelector("#ppo svg");
      svg.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", {key: "ArrowRight"}));
      found.readout = page.querySelector("#ppo .readout").textContent;
      return found;"""
    found = pages.driven(page, script, folder=tmp_path, width=390)
    refusals = sum(one.answers[-1].compliance == "refusal" for one in pages.many(60).examples)
    assert (found["all"], found["more"], found["comparisons"]) == (50, 62, 1)
    assert found["wide"] == 390
    assert found["changes"] == sorted(found["changes"], reverse=True)
    assert found["refusals"] == refusals
    assert found["marked"]
    assert found["unmarked"] == 0
    assert " at round 1" in found["readout"]
