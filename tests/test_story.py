"""Words and numbers as people read them."""

import math
import sys
import unicodedata

import pytest

from cai import story


def test_visible_writes_out_what_hides_or_commands():
    text = "a\x1b]0;title\x07b\u202ec\u200bd\x00e\ud800f\x9bg\u2028h\U000e0041i\rj"
    assert story.visible(text) == (
        "a⟨U+001B⟩]0;title⟨U+0007⟩b⟨U+202E⟩c⟨U+200B⟩d⟨U+0000⟩e⟨U+D800⟩f⟨U+009B⟩g⟨U+2028⟩h"
        "⟨U+E0041⟩i⟨U+000D⟩j"
    )


def test_visible_leaves_ordinary_text_alone():
    for text in (
        "a\tb\nc",
        "naïve \u4e2d\u6587 \u05e9\u05dc\u05d5\u05dd",
        "\U0001f468\u200d\U0001f469",
    ):
        assert story.visible(text) == text
    assert story.visible("a\r\nb") == "a\nb"


def test_visible_covers_every_control_and_format_character():
    """Only joiners and the visible Arabic, Kaithi, Egyptian and musical format signs stay."""
    kept = {"\t", "\n", "\u200c", "\u200d"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, "")
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
            signs = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN", "MUSICAL", "SHORTHAND")
            expected = character in kept or (name.startswith(signs) and character != "\u061c")
            assert (story.visible(character) == character) == expected, hex(code)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0430, "0.0430"),
        (0.123456, "0.123"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (12345, "12,345"),
        (0.0, "0.00"),
        (2.3e-6, "2.30e-06"),
        (-0.5, "-0.500"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_figures(value, text):
    assert story.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (42, "42 s"), (252, "4 min 12 s"), (3790, "1 h 3 min"), (59.7, "1 min 0 s")],
)
def test_durations(seconds, text):
    assert story.duration(seconds) == text


def test_curve_takes_the_keys_that_are_there():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "val": 1.7}]
    found = story.curve(
        rows,
        {"loss": "training", "val": "held out", "x": "absent"},
        title="",
        x_label="",
        y_label="",
    )
    assert [(s.name, s.points) for s in found.series] == [
        ("training", ((1, 2.0), (2, 1.5))),
        ("held out", ((2, 1.7),)),
    ]
    assert story.curve(rows, {"x": "absent"}, title="", x_label="", y_label="") is None
