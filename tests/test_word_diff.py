"""Differences hold both texts, and read as a person would mark them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cai.word_diff import MAX_DIFF_WORDS, word_diff


def joined(parts, *kinds):
    return " ".join(part.text for part in parts if part.kind in kinds).split()


WORDS = st.lists(st.sampled_from(["take", "two", "pills", "never", "ask", "\n\n", "a", "doctor"]))


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_differences_hold_both_texts(before, after):
    before, after = " ".join(before), " ".join(after)
    parts = word_diff(before, after)
    assert joined(parts, "same", "ins") == after.split()
    assert joined(parts, "same", "del") == before.split()


def test_differences_by_example():
    parts = word_diff(
        "You can take two of these pills with wine.", "You should not take two of these pills."
    )
    assert [(part.kind, part.text) for part in parts] == [
        ("same", "You"),
        ("same", " "),
        ("del", "can"),
        ("same", " "),
        ("ins", "should not"),
        ("same", " take two of these"),
        ("same", " "),
        ("del", "pills with wine."),
        ("same", " "),
        ("ins", "pills."),
    ]


def test_a_rewrite_is_one_removal_and_one_addition():
    """Words shared by accident do not break it into scraps."""
    before = "Many people take eight hundred a day with aspirin and it works very well for them."
    after = "Please keep below the label's limit for a day because more than it harms your stomach."
    kinds = [part.kind for part in word_diff(before, after)]
    assert kinds == ["del", "same", "ins"]


def test_texts_too_long_for_difflib_are_shown_unmarked():
    long = "word " * (MAX_DIFF_WORDS + 1)
    (only,) = word_diff(long, "x " + long)
    assert (only.kind, only.text) == ("same", "x " + long)
