"""A client of OpenAI-compatible servers: limits, retries, an on-disk cache, a count of the cost.

Around `cai.connection`, which sends one request. Added here: several requests in flight with
answers in order, a rate limit that retries count towards, and the cache, which is addressed by what
was asked (server, model and the request itself), so that whatever interrupts a run, no answer is
paid for twice. What was spent is written down at once where `metered` says, so that a stage's
counts survive a kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from cai import ranks
from cai.artifacts import digest_of, write_atomically
from cai.connection import MAX_SAID, Connection, Json, Refusal, Reply, Sent
from cai.errors import UserError
from cai.model_config import ServerConfig
from cai.paths import cache_dir

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What some requests took."""

    requests: int
    """Answered by a server."""
    retries: int
    """Attempts before those answers."""
    cached: int
    """Answers from the disk."""
    tokens_in: int
    tokens_out: int
    microdollars: float
    """Millionths of a US dollar, by the prices in the settings."""

    def __add__(self, other: Usage) -> Usage:
        theirs = dataclasses.asdict(other)
        return Usage(**{name: own + theirs[name] for name, own in dataclasses.asdict(self).items()})

    def counts(self) -> dict[str, int]:
        """For a stage's counts; empty when nothing was asked."""
        if not self.requests and not self.cached:
            return {}
        return {
            "requests": self.requests,
            "retries": self.retries,
            "cached_answers": self.cached,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost_microdollars": round(self.microdollars),
        }

    def told(self) -> str:
        """The same as a sentence."""
        return (
            f"{self.requests:,} requests ({self.retries:,} retries), {self.cached:,} answers from "
            f"the cache, {self.tokens_in:,} tokens in, {self.tokens_out:,} out, "
            f"{self.microdollars / 1e6:.4f} US dollars"
        )


NOTHING = Usage(requests=0, retries=0, cached=0, tokens_in=0, tokens_out=0, microdollars=0.0)
HIT = Usage(requests=0, retries=0, cached=1, tokens_in=0, tokens_out=0, microdollars=0.0)


class Meter:
    """What was spent, one line per answer of files that may be there from an earlier run.

    Every rank writes a file of its own.

    Args:
        path: Of rank 0; the others' are beside it and named after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        rank = ranks.world().rank
        self._own = path.with_stem(f"{path.stem}-{rank}") if rank else path
        self._lock = threading.Lock()

    def add(self, usage: Usage) -> None:
        """Write one answer's usage down."""
        line = json.dumps(dataclasses.asdict(usage)) + "\n"
        with self._lock, self._own.open("a", encoding="ascii") as stream:
            stream.write(line)

    def total(self) -> Usage:
        """Everything that all ranks wrote; a last line that a kill cut short is not counted."""
        total = NOTHING
        for path in sorted(self.path.parent.glob(f"{self.path.stem}*{self.path.suffix}")):
            *lines, _cut = path.read_text("ascii").split("\n")
            for line in lines:
                total += Usage(**json.loads(line))
        return total


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextlib.contextmanager
def metered(path: Path) -> Iterator[Meter]:
    """Have all requests of a block write their usage to a file."""
    meter = Meter(path)
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


class RateLimit:
    """Spaces requests of several threads evenly.

    Args:
        per_minute: 0 is no limit.
        clock: Seconds, never going back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.clock = clock
        self.sleep = sleep
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Return when the next request may be sent; each caller gets a moment of its own."""
        if not self.interval:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + self.interval
        if start > now:
            self.sleep(start - now)


class Cache:
    """Answers by what was asked, one file each, with the answer's hash.

    Args:
        folder: Made when the first answer is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Any | None:
        """The answer, or None when there is none or its file is damaged."""
        try:
            kept = json.loads(self._path(key).read_bytes())
            return kept["body"] if kept["sha256"] == digest_of(kept["body"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, body: Any) -> None:
        """Keep an answer."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sha256": digest_of(body), "body": body}, ensure_ascii=True)
        write_atomically(path, text.encode("ascii"))


class Client:
    """Puts requests to one server; the settings' limits are those of all ranks together.

    Args:
        server: Its settings.
        rate_limit: Another clock, for tests.
    """

    def __init__(self, server: ServerConfig, *, rate_limit: RateLimit | None = None) -> None:
        self.server = server
        self.cache = Cache(cache_dir() / "answers")
        num = ranks.num_processes()
        self._in_flight = max(1, server.num_parallel // num)
        self._rate_limit = rate_limit or RateLimit(server.requests_per_minute / num)
        self._stopped = threading.Event()
        self._connection = Connection(server, before_attempt=self._before_attempt)

    def call(self, path: str, body: Json | None = None) -> Reply:
        """A call that is no completion; never from the cache."""
        return self._connection.call(path, body)

    def ask(
        self, path: str, requests: Sequence[Json], *, parse: Callable[[Any], T]
    ) -> list[T | Refusal]:
        """Answers in the order of the requests.

        Args:
            path: `chat/completions` or `completions`.
            requests: JSON bodies; without a model, the settings' is asked.
            parse: Reads an answer's JSON; its KeyError, IndexError, TypeError or ValueError means
                that the answer is malformed, and it is not kept.

        Raises:
            UserError: when the server cannot be used; the answers that came are kept.
        """
        bodies = [{"model": self.server.model, **request} for request in requests]
        keys = [digest_of([self.server.url, path, body]) for body in bodies]
        distinct = dict(zip(keys, bodies, strict=True))
        meter = _METER.get()
        answers = self._in_parallel(
            {key: partial(self._answer, path, key, distinct[key], parse, meter) for key in distinct}
        )
        if meter is not None:
            for _ in range(len(keys) - len(distinct)):
                meter.add(HIT)
        return [answers[key] for key in keys]

    def _in_parallel(self, jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """Results by key; after a failure no request is begun, and those in flight are waited for.

        The threads do not outlive the process, so a signal does not wait for them.
        """
        self._stopped.clear()
        waiting: SimpleQueue[str] = SimpleQueue()
        done: SimpleQueue[tuple[str, T] | BaseException] = SimpleQueue()
        for key in jobs:
            waiting.put(key)

        def work() -> None:
            with contextlib.suppress(Empty):
                while not self._stopped.is_set():
                    key = waiting.get_nowait()
                    try:
                        done.put((key, jobs[key]()))
                    except BaseException as error:
                        self._stopped.set()
                        done.put(error)

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self._in_flight, len(jobs)))
        ]
        results: dict[str, T] = {}
        for thread in threads:
            thread.start()
        try:
            while len(results) < len(jobs):
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                results[found[0]] = found[1]
        except BaseException as error:
            self._stopped.set()
            if isinstance(error, Exception):
                for thread in threads:
                    thread.join()
            raise
        return results

    def _answer(
        self,
        path: str,
        key: str,
        body: Json,
        parse: Callable[[Any], T],
        meter: Meter | None,
    ) -> T | Refusal:
        kept = self.cache.get(key)
        if kept is not None:
            if meter is not None:
                meter.add(HIT)
            return self._parsed(kept, parse)
        sent = self._connection.complete(path, body)
        if isinstance(sent, Refusal):
            return sent
        answer = self._parsed(sent.body, parse)
        self.cache.put(key, sent.body)
        if meter is not None:
            meter.add(self._usage(sent))
        return answer

    def _parsed(self, body: Any, parse: Callable[[Any], T]) -> T:
        try:
            return parse(body)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.server.url} sent an answer that is not one of an OpenAI-compatible server: "
                f"{type(error).__name__}: {str(error)[:MAX_SAID]}. Is its server.url right, up to "
                "and including /v1?"
            ) from error

    def _usage(self, sent: Sent) -> Usage:
        usage = sent.body.get("usage") or {}
        tokens_in, tokens_out = (
            int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")
        )
        return Usage(
            requests=1,
            retries=sent.retries,
            cached=0,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            microdollars=tokens_in * self.server.price_input
            + tokens_out * self.server.price_output,
        )

    def _before_attempt(self) -> None:
        """Wait for the rate limit; after another request's failure, give up."""
        if self._stopped.is_set():
            raise _Stopped
        self._rate_limit.wait()


class _Stopped(BaseException):
    """Another request has failed; no `Exception`, which the package would take for a lost line."""
