"""Progress as a log file sees it, and as a terminal does."""

import io
import os
import re

import pytest

from cai import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(total, steps, *, initial=0, **notes):
    """Lines written when each step takes (count, seconds)."""
    out, clock = io.StringIO(), Clock()
    with progress.bar(
        total, name="drafts", unit="prompts", initial=initial, stream=out, clock=clock
    ) as bar:
        for count, seconds in steps:
            clock.now += seconds
            if notes:
                bar.note(**notes)
            bar.update(count)
    assert "\r" not in out.getvalue()
    return out.getvalue().splitlines()


def test_plain_line_has_count_rate_and_time_left():
    assert run(48, [(8, 10), (8, 10), (32, 10)]) == [
        "drafts: 16/48 prompts, 1.2 s each, 0:40 left",
        "drafts: 48/48 prompts, took 0:30, 1.6/s",
    ]


def test_one_line_at_most_every_15_seconds():
    lines = run(1000, [(1, 0.125)] * 1000)  # 125 seconds
    assert len(lines) == 9
    assert lines[0] == "drafts: 120/1000 prompts, 8/s, 1:50 left"


def test_reused_work_does_not_count_towards_the_rate():
    assert run(48, [(4, 20), (4, 20)], initial=40) == [
        "drafts: 44/48 prompts, 40 of them done before, 5 s each, 0:20 left",
        "drafts: 48/48 prompts, 40 of them done before, took 0:40, 5 s each",
    ]


def test_everything_reused_says_so_and_nothing_to_do_says_nothing_wrong():
    assert run(48, [], initial=48) == ["drafts: 48/48 prompts, done before"]
    assert run(0, []) == ["drafts: 0/0 prompts"]


def test_notes_are_shown_last():
    assert run(2, [(2, 1)], loss=2.34567, stage="sl") == [
        "drafts: 2/2 prompts, took 0:01, 2/s, loss=2.35, stage=sl"
    ]


def test_interrupted_work_says_where_it_stopped():
    out, clock = io.StringIO(), Clock()

    def work():
        with progress.bar(9, name="ppo", unit="rounds", stream=out, clock=clock) as bar:
            clock.now += 4
            bar.update(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue() == "ppo: stopped at 2/9 rounds, took 0:04, 2 s each\n"


def test_long_times_have_hours():
    assert run(2, [(1, 7323), (1, 0)])[0].endswith("7323 s each, 2:02:03 left")


def test_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with progress.bar(4, name="drafts", unit="prompts", initial=2, stream=out) as bar:
        bar.note(loss=1.5)
        bar.update(2)
    last = out.getvalue().split("\r")[-1]
    assert "drafts: 100%" in last
    assert re.search(r"4/4 \[00:00<00:00, .* prompts/s, loss=1.5\]", last)


def test_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with progress.bar(1, name="drafts", unit="prompts", stream=out) as bar:
        bar.update()
    assert "\r" not in out.getvalue()


def test_a_terminal_without_a_width_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = os.openpty()  # its size is 0 x 0 until somebody sets it
    with (
        open(writer, "w") as out,
        progress.bar(1, name="drafts", unit="prompts", stream=out) as bar,
    ):
        bar.update()
    assert os.read(reader, 1000).startswith(b"drafts: 1/1 prompts, took 0:00")
    os.close(reader)
