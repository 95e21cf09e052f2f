"""The page: complete, without holes where parts are missing, and dead to every attack."""

import base64
import dataclasses
import hashlib
import re
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cai import report
from cai.errors import UserError
from cai.statistics import Estimate
from cai.story import PPOStory, RunStory, SLPolicyStory, duration, sample_anchor
from cai.types import Sample
from tests import attribution_stories, stories

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "<a href='javascript:alert(1)'>x</a>",
    "javascript:alert(1)",
    "<iframe src=https://evil.test></iframe>",
    "<link rel=stylesheet href=//evil.test/x.css>",
    "<style>body{background:url(https://evil.test)}</style>",
    "</style><base href=https://evil.test>",
    "</textarea></title></pre></code></div></section></main>",
    "<!-- ", "-->", "<![CDATA[", "]]>", "<?xml ?>",
    "{{ 7 * 7 }}", "{% for x in y %}", "${oc.env:HOME}", "{#",
    "&lt;script&gt;", "&#x3c;script&#x3e;", "&quot;",
    "\x1b]0;owned\x07", "\x1b[2J", "\u202egnirts\u202c", "\u2066hidden\u2069", "\x00", "\x9b31m",
    "$\\frac{1}{0}$", "\\input{/etc/passwd}", "=cmd|' /C calc'!A0", "| a | b |", 
    "[x](javascript:1)", "\ud800", "\ufeff", "\U000e0041", "A" * 20000, "word " * 3000, "", "  ",
]  # fmt: skip

SCRIPT = "\n" + (Path(report.__file__).parent / "templates" / "report.js").read_text("utf-8")
VOID = {"meta", "br", "wbr", "hr", "img", "input", "link", "base"}


class Page(HTMLParser):
    """Tags with their attributes, visible text, and a check that every tag is closed."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.ids, self._open = [], [], [], []
        self.scripts = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))
        self.ids += [value for name, value in attributes if name == "id"]
        self.words += [value for name, value in attributes if name == "aria-label"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def shape(self):
        return [(tag, [name for name, _ in attributes]) for tag, attributes in self.tags]


def rebuild(value, change):
    """The story with `change` applied to every leaf that is text or a number."""
    if isinstance(value, Enum) or value is None or isinstance(value, bool):
        return value
    if dataclasses.is_dataclass(value):
        kept = isinstance(value, Sample) and change.__name__ == "renumber"
        return value if kept else dataclasses.replace(
            value,
            **{f.name: rebuild(getattr(value, f.name), change) for f in dataclasses.fields(value)},
        )  # fmt: skip
    if isinstance(value, tuple):
        return tuple(rebuild(item, change) for item in value)
    if isinstance(value, dict):
        return {rebuild(k, change): rebuild(v, change) for k, v in value.items()}
    return change(value)


def poisoned(story, payload):
    return rebuild(story, lambda leaf: payload if isinstance(leaf, str) else leaf)


def without_charts(story):
    """Drawing takes a second a page, nearly all of the time; few tests need it."""
    rows = tuple(dataclasses.replace(row, refusal_rate=None) for row in story.evaluation.rows)
    principles = tuple(
        dataclasses.replace(principle, test_accuracy=None)
        for principle in story.constitution.principles
    )
    return dataclasses.replace(
        story,
        constitution=dataclasses.replace(story.constitution, principles=principles),
        sl_policy=dataclasses.replace(story.sl_policy, curves=()),
        feedback=dataclasses.replace(
            story.feedback,
            measured=dataclasses.replace(story.feedback.measured, bins=(), by_principle=()),
            comparisons=dataclasses.replace(story.feedback.comparisons, label_probabilities=()),
        ),
        preference_model=dataclasses.replace(
            story.preference_model,
            curves=(),
            measured=dataclasses.replace(story.preference_model.measured, bins=()),
        ),
        dpo=dataclasses.replace(
            story.dpo, curves=(), measured=dataclasses.replace(story.dpo.measured, bins=())
        ),
        ppo=dataclasses.replace(story.ppo, curves=()),
        evaluation=dataclasses.replace(story.evaluation, rows=rows),
    )


def assert_inert(page):
    allowed = {
        "html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "h2", "h3",
        "h4", "q", "nav", "ol", "ul", "li", "main", "section", "div", "table", "thead", "tbody",
        "tr", "th", "td", "caption", "span", "dl", "dt", "dd", "pre", "code", "details", "summary",
        "article", "ins", "del", "b", "figure", "figcaption", "footer", "svg", "g", "path", "use",
        "defs", "text", "rect", "clippath", "tspan", "circle", "form", "label", "select", "input",
        "button", "script",
    }  # fmt: skip
    for tag, attributes in page.tags:
        assert tag in allowed, tag
        for name, given in attributes:
            value = given or ""
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "action", "formaction", "srcdoc", "xlink:href")
            if name == "href":
                assert re.fullmatch(r"#[a-zA-Z0-9._-]+", value), value
            if name in ("style", "clip-path"):
                assert not re.search(r"url\((?!#)|expression|import", value), value
            if name != "aria-label" and tag != "meta":
                assert "//" not in value, (name, value)
    assert page.scripts == [SCRIPT]
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [[]]
    links = [dict(a)["href"] for tag, a in page.tags if tag == "a"]
    assert {link[1:] for link in links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


@pytest.fixture(scope="module")
def full_html():
    return report.render_report(stories.full_story())


def test_full_page_is_sound(full_html):
    page = Page(full_html)
    assert_inert(page)
    metas = [dict(attributes) for tag, attributes in page.tags if tag == "meta"]
    policy = next(m["content"] for m in metas if "http-equiv" in m)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    style = full_html[full_html.index("<style>") : full_html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(dict(a).get("aria-label") for tag, a in page.tags if tag == "svg")
    assert "None" not in page.text


def test_same_story_same_bytes(full_html):
    assert report.render_report(stories.full_story()) == full_html


@pytest.fixture(scope="module")
def plain_page():
    return Page(report.render_report(poisoned(stories.full_story(), "plain\nword " * 3500)))


@pytest.mark.parametrize("start", [0, 1])
def test_hostile_text_changes_nothing_but_text(start, plain_page):
    """With every text of the story replaced, the tags are those of a page with plain text."""
    payload = " \n".join(PAYLOADS[start::2])
    html = report.render_report(poisoned(stories.full_story(), payload))
    page = Page(html)
    assert_inert(page)
    html.encode("utf-8")
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]", html
    )
    inside_charts = ("path", "g", "use", "defs", "text", "tspan", "circle", "title")
    shapes = [
        [item for item in p.shape if item[0] not in inside_charts] for p in (plain_page, page)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_each_payload_alone_is_inert(payload):
    story = without_charts(stories.full_story())
    assert_inert(Page(report.render_report(poisoned(story, payload))))


def test_the_harness_would_notice():
    """Negative control: what the page must not hold is found when it is there."""
    whole = f"<html><body><script>{SCRIPT}</script></body></html>"
    assert_inert(Page(whole))
    for bad in ("<script>1</script>", "<a href='javascript:1'>x</a>", "<p onclick='x'>y</p>"):
        with pytest.raises(AssertionError):
            assert_inert(Page(whole.replace("</body>", f"{bad}</body>")))


def test_text_is_shown_as_it_is():
    story = dataclasses.replace(
        RunStory(headline=stories.headline()), limits=("<b>x</b> & \x1b \u202e {{ 1 }}",)
    )
    assert "<b>x</b> & ⟨U+001B⟩ ⟨U+202E⟩ {{ 1 }}" in Page(report.render_report(story)).text


def test_every_number_of_the_story_is_on_the_page():
    used = iter(range(1009, 9999))
    whole = stories.full_story()
    numbers = []

    def renumber(leaf):
        if not isinstance(leaf, int):
            return leaf
        numbers.append(next(used))
        return numbers[-1]

    story = rebuild(whole, renumber)
    story = dataclasses.replace(
        story,
        headline=whole.headline,
        # x coordinates of curves are drawn, not written
        sl_policy=dataclasses.replace(story.sl_policy, curves=whole.sl_policy.curves),
        preference_model=dataclasses.replace(
            story.preference_model, curves=whole.preference_model.curves
        ),
        dpo=dataclasses.replace(story.dpo, curves=whole.dpo.curves),
        ppo=dataclasses.replace(story.ppo, curves=whole.ppo.curves),
    )
    numbers.clear()
    estimates = []

    def collect(value):
        if isinstance(value, Estimate):
            estimates.append(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, Sample):
            for field in dataclasses.fields(value):
                if field.name != "curves":
                    collect(getattr(value, field.name))
        elif isinstance(value, tuple | list):
            [collect(item) for item in value]
        elif isinstance(value, dict):
            [collect(item) for item in value.values()]
        elif isinstance(value, int) and not isinstance(value, bool):
            numbers.append(value)

    collect(dataclasses.replace(story, headline=None))
    text = Page(report.render_report(story)).text.replace("\xa0", " ")
    assert len(numbers) > 50
    assert len(estimates) > 60
    missing = [n for n in numbers if f"{n:,}" not in text and str(n) not in text]
    assert missing == []
    assert [e.format() for e in estimates if e.format() not in text] == []
    head = whole.headline
    shown = [str(head.seed), duration(head.seconds), "512.4", "3.41 GB", *head.versions.values()]
    shown += [head.command, head.run_dir, head.started, head.hardware, *head.models.values()]
    assert [item for item in shown if item not in text] == []


def test_every_text_of_the_story_is_on_the_page():
    texts = []

    def collect(leaf):
        if isinstance(leaf, str):
            texts.append(leaf)
        return leaf

    whole = stories.full_story()
    rebuild(dataclasses.replace(whole, headline=None, revisions=None, evaluation=None), collect)
    text = Page(report.render_report(whole)).text
    # Ids and sources of prompts are for the records; known names are written out for people.
    for skipped in ("id", "source"):
        texts = [t for t in texts if t not in {getattr(e.prompt, skipped) for e in whole.examples}]
    missing = [
        item
        for item in texts
        if " ".join(item.split()) not in text and item.replace("_", " ") not in text
    ]
    assert set(missing) <= {"sl_cai", "rl_cai"}


def test_missing_parts_leave_no_hole():
    page = Page(report.render_report(RunStory(headline=stories.headline())))
    assert_inert(page)
    sections = [dict(a)["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["shows", "run", "reproduce"]
    assert "svg" not in {tag for tag, _ in page.tags}
    assert "table" not in {tag for tag, _ in page.tags}


PARTS = {
    "constitution": "constitution", "revisions": "revisions", "sl_policy": "sl-policy",
    "feedback": "feedback", "preference_model": "preference-model", "dpo": "dpo",
    "ppo": "ppo", "attribution": "attribution", "examples": "examples",
    "evaluation": "evaluation", "stages": "stages", "limits": "limits",
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_and_each_part_missing(part):
    whole = without_charts(stories.full_story())
    alone = RunStory(headline=whole.headline, **{part: getattr(whole, part)})
    empty = () if isinstance(getattr(whole, part), tuple) else None
    without = dataclasses.replace(whole, **{part: empty})
    if part == "examples":
        without = dataclasses.replace(without, training=())
    for story, present in ((alone, True), (without, False)):
        page = Page(report.render_report(story))
        sections = [dict(a)["id"] for tag, a in page.tags if tag == "section"]
        assert (PARTS[part] in sections) == present
        links = [dict(a)["href"][1:] for tag, a in page.tags if tag == "a"]
        assert [link for link in links[1:] if not link.startswith("stage-")] == sections


def test_parts_with_nothing_measured_are_still_a_page():
    """A control without principles, training of no step, nothing but counts."""
    whole = stories.full_story()
    story = RunStory(
        headline=dataclasses.replace(whole.headline, peak_memory_bytes=None, versions={}),
        constitution=dataclasses.replace(whole.constitution, principles=()),
        revisions=dataclasses.replace(whole.revisions, outcomes=(), mean_words=(), chains=()),
        sl_policy=SLPolicyStory(num_revisions=0, num_helpfulness=0, num_dropped=0, curves=()),
        feedback=type(whole.feedback)(
            method="multiple_choice", source="nothing", note="", measured=stories.measures()
        ),
        preference_model=dataclasses.replace(
            whole.preference_model,
            num_ai=0,
            num_human=0,
            curves=(),
            measured=stories.preference_measures(),
        ),
        dpo=type(whole.dpo)(
            num_ai=0,
            num_human=0,
            settings={},
            curves=(),
            measured=stories.preference_measures(),
        ),
        ppo=PPOStory(num_rounds=0, num_rollouts=0, settings={}, curves=()),
        evaluation=dataclasses.replace(
            whole.evaluation, rows=(), changes=(), likelihood_tests=None
        ),
    )
    page = Page(report.render_report(story))
    assert_inert(page)
    assert "This document has no principle" in page.text


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        ({"side_by_side": False}, "Nothing is shown side by side by this method"),
        ({"side_by_side": True}, "Only one order of each pair was asked"),
    ],
)
def test_the_page_says_why_there_is_no_position_to_follow(measured, told):
    whole = stories.full_story()
    for values, present in ((measured, True), ({}, False)):
        feedback = dataclasses.replace(
            whole.feedback, measured=stories.measures(**values), comparisons=None, gates=()
        )
        text = Page(report.render_report(RunStory(headline=whole.headline, feedback=feedback))).text
        assert (told in text) == present


def test_texts_of_any_length_are_cut_with_a_count():
    long = "word " * 40_000
    whole = stories.full_story()
    story = RunStory(headline=whole.headline, examples=poisoned(whole.examples, long))
    text = Page(report.render_report(story)).text
    assert f"[{len(long) - report.MAX_CHARACTERS:,} more characters]" in text


def test_write_is_atomic(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write_report(RunStory(headline=stories.headline()), path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(UserError, match="Cannot write"):
        report.write_report(RunStory(headline=stories.headline()), tmp_path / "no" / "report.html")


def traced(**values):
    return RunStory(
        headline=stories.headline(),
        trace=attribution_stories.trace(stories.chains()[0], **values),
    )


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_trace_is_inert_whatever_its_texts_are(payload):
    story = dataclasses.replace(
        traced(), trace=dataclasses.replace(poisoned(traced(), payload).trace, link="")
    )
    assert_inert(Page(report.render_report(story)))


def test_a_trace_links_to_the_sample_in_the_report_of_its_run():
    whole = stories.full_story()
    page = Page(report.render_report(whole))
    anchor = sample_anchor(whole.examples[0].prompt)
    assert anchor in page.ids
    link = f"../../../rlaif/medical/2026/report.html#{anchor}"
    found = Page(report.render_report(traced(link=link)))
    assert link in [dict(a)["href"] for tag, a in found.tags if tag == "a"]
    assert "at this sample" in found.text
    for text in ("Take two, and sleep well.", "red_team-031", "score 0.700", "0.620", "Round 5"):
        assert text in found.text


def test_two_samples_of_one_id_have_an_anchor_each():
    whole = stories.full_story()
    first = whole.examples[0]
    page = Page(report.render_report(dataclasses.replace(whole, examples=(first, first, first))))
    anchor = sample_anchor(first.prompt)
    assert [one for one in page.ids if one.startswith("sample-")] == [
        anchor, f"{anchor}-2", f"{anchor}-3",
    ]  # fmt: skip
