"""One progress bar per stage: tqdm on a terminal, sparse plain lines everywhere else.

In a log file or a CI job a bar that redraws itself is noise, so without a terminal one line is
written at most every 15 seconds and one at the end, with no carriage returns. In both forms, work
that an earlier run had done (`initial`) counts as progress but not towards the rate: time left is
judged by what this run does. Of several processes rank 0 alone shows anything, and a bar that is
shared counts what all of them do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from tqdm import tqdm

from cai import ranks

LINE_SECONDS = 15.0


class Bar(Protocol):
    """What a stage tells about its progress."""

    def update(self, n: int = 1) -> None:
        """So many more are done here; 0 looks at what the others have done."""

    def note(self, **values: float | str) -> None:
        """Latest values to show beside the count, e.g. `loss=2.31`."""


@contextmanager
def bar(
    total: int,
    *,
    name: str,
    unit: str,
    initial: int = 0,
    shared: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Show progress until the block ends, also when it ends by an exception.

    Args:
        total: Count at the end, reused work included.
        name: Stage.
        unit: What is counted, plural, e.g. `prompts`.
        initial: How many an earlier run has done.
        shared: Each rank counts its own part of the total; otherwise all count the same.
        stream: Standard error when None.
        clock: Seconds; for tests.
    """
    counter = ranks.Counter() if shared else None
    own = _own(total, name=name, unit=unit, initial=initial, stream=stream, clock=clock)
    with own if ranks.is_first() else contextlib.nullcontext(_Silent()) as drawn:
        yield drawn if counter is None else _SharedBar(drawn, counter)


@contextmanager
def _own(
    total: int,
    *,
    name: str,
    unit: str,
    initial: int,
    stream: TextIO | None,
    clock: Callable[[], float],
) -> Iterator[Bar]:
    out = sys.stderr if stream is None else stream
    if out.isatty() and os.environ.get("TERM") != "dumb" and _has_width(out):
        with tqdm(
            total=total,
            desc=name,
            unit=f" {unit}",
            initial=initial,
            file=out,
            dynamic_ncols=True,
            mininterval=0.2,
        ) as drawn:
            yield _TerminalBar(drawn)
        return
    lines = _LineBar(total, name=name, unit=unit, initial=initial, out=out, clock=clock)
    try:
        yield lines
    except BaseException:
        lines.finish("stopped at ")
        raise
    lines.finish("")


def _has_width(out: TextIO) -> bool:
    """Whether a terminal says how wide it is; on one that says 0 tqdm draws nothing."""
    try:
        return os.get_terminal_size(out.fileno()).columns > 0
    except OSError:
        return True


class _Silent:
    """What a rank shows that is not the first."""

    def update(self, n: int = 1) -> None:
        """Nothing is shown."""

    def note(self, **values: float | str) -> None:
        """Nothing is shown."""


class _SharedBar:
    """A bar that every rank counts its part of."""

    def __init__(self, drawn: Bar, counter: ranks.Counter) -> None:
        self._drawn, self._counter = drawn, counter
        self._seen = 0

    def update(self, n: int = 1) -> None:
        done = self._counter.add(n)
        self._drawn.update(done - self._seen)
        self._seen = done

    def note(self, **values: float | str) -> None:
        self._drawn.note(**values)


class _TerminalBar:
    def __init__(self, drawn: tqdm) -> None:
        self._drawn = drawn

    def update(self, n: int = 1) -> None:
        self._drawn.update(n)

    def note(self, **values: float | str) -> None:
        self._drawn.set_postfix_str(_notes(values), refresh=False)


class _LineBar:
    def __init__(
        self,
        total: int,
        *,
        name: str,
        unit: str,
        initial: int,
        out: TextIO,
        clock: Callable[[], float],
    ) -> None:
        self._total, self._name, self._unit, self._initial = total, name, unit, initial
        self._out, self._clock = out, clock
        self._done = initial
        self._notes: dict[str, float | str] = {}
        self._start = self._last = clock()

    def update(self, n: int = 1) -> None:
        self._done += n
        if self._clock() - self._last >= LINE_SECONDS and self._done < self._total:
            self._last = self._clock()
            rate = self._rate()
            left = _duration((self._total - self._done) / rate) if rate > 0 else ""
            self._write("", [_rate(rate), f"{left} left"] if rate > 0 else [])

    def note(self, **values: float | str) -> None:
        self._notes.update(values)

    def finish(self, prefix: str) -> None:
        if self._done == self._initial and self._done >= self._total:
            self._write(prefix, ["done before"] if self._total else [])
            return
        elapsed = _duration(self._clock() - self._start)
        rate = self._rate()
        self._write(prefix, [f"took {elapsed}", *([_rate(rate)] if rate > 0 else [])])

    def _rate(self) -> float:
        elapsed = self._clock() - self._start
        return (self._done - self._initial) / elapsed if elapsed > 0 else 0.0

    def _write(self, prefix: str, parts: list[str]) -> None:
        reused = [f"{self._initial} of them done before"] if 0 < self._initial < self._done else []
        notes = [_notes(self._notes)] if self._notes else []
        head = f"{self._name}: {prefix}{self._done}/{self._total} {self._unit}"
        self._out.write(", ".join([head, *reused, *parts, *notes]) + "\n")
        self._out.flush()


def _notes(values: dict[str, float | str]) -> str:
    shown = (f"{k}={v if isinstance(v, str) else format(v, '.3g')}" for k, v in values.items())
    return ", ".join(shown)


def _rate(per_second: float) -> str:
    """Two figures; when slower than one a second, the seconds that one takes."""
    if per_second >= 100:
        return f"{per_second:,.0f}/s"
    if per_second >= 1:
        return f"{per_second:.2g}/s"
    taken = 1 / per_second
    return f"{taken:.0f} s each" if taken >= 100 else f"{taken:.2g} s each"


def _duration(seconds: float) -> str:
    """Time as tqdm writes it: 0:27, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
