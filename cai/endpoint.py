"""A client of OpenAI-compatible servers: limits, retries, an on-disk cache, a count of the cost.

Around the `openai` package, which sends the requests, waits longer after each failure and obeys
`Retry-After`. Added here: several requests in flight with answers in order, a rate limit that
retries count towards, and the cache, which is addressed by what was asked (server, model and the
request itself), so that whatever interrupts a run, no answer is paid for twice. What was spent is
written down at once where `metered` says, so that a stage's counts survive a kill.

The key is read from the environment variable that the settings name, when the first request is
sent; it goes into the request's header and nowhere else, and is blotted out of what a server says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from cai.artifacts import digest_of, write_atomically
from cai.errors import UserError
from cai.model_config import ServerConfig
from cai.paths import cache_dir

if TYPE_CHECKING:
    import httpx2
    from openai import APIStatusError, OpenAI

T = TypeVar("T")
Json = Mapping[str, Any]

log = logging.getLogger(__name__)

MAX_SAID = 300
"""Characters of a server's own words in an error message."""
REFUSED = (400, 413, 422)
"""Statuses that mean: not this request."""


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
    """What was spent, one line per answer of a file that may be there from an earlier run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(self, usage: Usage) -> None:
        """Write one answer's usage down."""
        line = json.dumps(dataclasses.asdict(usage)) + "\n"
        with self._lock, self.path.open("a", encoding="ascii") as stream:
            stream.write(line)

    def total(self) -> Usage:
        """Everything in the file; a last line that a kill cut short is not counted."""
        total = NOTHING
        if self.path.is_file():
            *lines, _cut = self.path.read_text("ascii").split("\n")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A server did not take one request as it is."""

    said: str
    """Its words, the key blotted out."""

    @property
    def too_long(self) -> bool:
        """Whether the prompt did not fit its context."""
        said = self.said.lower()
        return "context_length" in said or "context length" in said or "maximum length" in said


class Client:
    """Puts requests to one server.

    Args:
        server: Its settings.
        rate_limit: Another clock, for tests.
    """

    def __init__(self, server: ServerConfig, *, rate_limit: RateLimit | None = None) -> None:
        self.server = server
        self.cache = Cache(cache_dir() / "answers")
        self._rate_limit = rate_limit or RateLimit(server.requests_per_minute)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._client: OpenAI | None = None

    def ask(
        self, path: str, requests: Sequence[Json], *, parse: Callable[[Any], T]
    ) -> list[T | Refusal]:
        """Answers in the order of the requests.

        Args:
            path: `chat/completions` or `completions`.
            requests: JSON bodies without the model.
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
            for _ in range(min(self.server.num_parallel, len(jobs)))
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
        sent = self._send(path, body)
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

    def _usage(self, sent: _Sent) -> Usage:
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

    @property
    def _key(self) -> str | None:
        name = self.server.key_env
        if name is None:
            return None
        if not os.environ.get(name):
            raise UserError(
                f"The environment variable {name} holds no key for {self.server.url}. Type: "
                f"export {name}=...  or, for a server without keys, server.key_env=null"
            )
        return os.environ[name]

    def _openai(self) -> OpenAI:
        """The package's client, made for the first request that the cache cannot answer."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> OpenAI:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError as error:
            raise UserError(
                "A server is asked through the package `openai`; type: pip install -e '.[endpoint]'"
            ) from error
        return OpenAI(
            api_key=self._key or "none",  # without one, the package would look for its own variable
            base_url=self.server.url,
            timeout=self.server.timeout_seconds,
            max_retries=self.server.max_retries,
            http_client=DefaultHttpxClient(event_hooks={"request": [self._before_attempt]}),
        )

    def _before_attempt(self, request: httpx2.Request) -> None:
        """Wait for the rate limit; take out what the package adds from variables of its own."""
        if self._stopped.is_set():
            raise _Stopped
        own = ("OpenAI-Organization", "OpenAI-Project")
        for name in own if self._key is not None else (*own, "Authorization"):
            request.headers.pop(name, None)
        self._rate_limit.wait()

    def _send(self, path: str, body: Json) -> _Sent | Refusal:
        """One answer, after the client's own retries."""
        client = self._openai()  # says what to install before the import below fails
        import openai

        rest = {key: value for key, value in body.items() if key not in ("messages", "prompt")}
        try:
            if path == "completions":
                raw = client.completions.with_raw_response.create(
                    model=self.server.model, prompt=body["prompt"], extra_body=rest
                )
            else:
                raw = client.chat.completions.with_raw_response.create(
                    model=self.server.model, messages=body["messages"], extra_body=rest
                )
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                return Refusal(said=self._said(error))
            raise UserError(self._explain(error.status_code, self._said(error))) from error
        except openai.APITimeoutError as error:
            raise UserError(
                f"{self.server.url} did not answer within {self.server.timeout_seconds:g} s, "
                f"{self.server.max_retries + 1} times. Type a larger server.timeout_seconds or a "
                "smaller server.num_parallel; answers that came are kept"
            ) from error
        except openai.APIConnectionError as error:
            raise UserError(
                f"{self.server.url} cannot be reached ({self._clean(str(error.__cause__))}). Start "
                "the server, or type its address: server.url=http://HOST:PORT/v1"
            ) from error
        try:
            found = json.loads(raw.http_response.text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self.server.url} sent an answer that is not a JSON object. Is its server.url "
                "right, up to and including /v1?"
            )
        return _Sent(body=found, retries=raw.retries_taken)

    def _clean(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:MAX_SAID]

    def _said(self, error: APIStatusError) -> str:
        """The server's own words about an error."""
        body = error.body
        if isinstance(body, dict):
            inner = body.get("error")
            body = inner if isinstance(inner, dict) else body
            parts = [str(body[name]) for name in ("code", "message") if body.get(name)]
            return self._clean(": ".join(parts) or str(body))
        return self._clean(error.response.text)

    def _explain(self, status: int, said: str) -> str:
        where = f"{self.server.url} answered {status} ({said})."
        tried = f"{self.server.max_retries} retries"
        match status:
            case 401 | 403:
                name = self.server.key_env
                held = f"the one in the environment variable {name}" if name else "none was sent"
                return f"{where} It wants another key: {held}; server.key_env names the variable"
            case 404:
                return (
                    f"{where} It has no model {self.server.model}, or no such interface: check "
                    "server.model and server.url, which ends in /v1"
                )
            case 429:
                return (
                    f"{where} Still too many requests after {tried}. Type a smaller "
                    "server.requests_per_minute or server.num_parallel; answers that came are kept"
                )
            case _ if status >= 500:
                return (
                    f"{where} That is the server's fault, after {tried}; answers that came are kept"
                )
            case _:
                return where


class _Stopped(BaseException):
    """Another request has failed; no `Exception`, which the package would take for a lost line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A server's answer."""

    body: dict[str, Any]
    retries: int
