"""One server, asked through the package `openai`, and what its errors mean in words.

The package sends the requests, waits longer after each failure and obeys `Retry-After`. The key is
read from the environment variable that the settings name, when the first request is sent; it goes
into the request's header and nowhere else, and is blotted out of what a server says.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cai.errors import UserError
from cai.model_config import ServerConfig

if TYPE_CHECKING:
    import httpx2
    from openai import APIStatusError, OpenAI

Json = Mapping[str, Any]

MAX_SAID = 300
"""Characters of a server's own words in an error message."""
REFUSED = (400, 413, 422)
"""Statuses that mean: not this request."""


class UnreachableError(UserError):
    """Nothing answers at a server's address."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A server's answer."""

    body: dict[str, Any]
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server says to a call that is no completion."""

    status: int
    said: str
    """Its answer as it came, or its words about an error."""

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked."""
        return self.status < 400


class Connection:
    """Sends requests to one server.

    Args:
        server: Its settings.
        before_attempt: Called before a request is sent, the first time and again.
    """

    def __init__(
        self, server: ServerConfig, *, before_attempt: Callable[[], None] = lambda: None
    ) -> None:
        self.server = server
        self._before = before_attempt
        self._lock = threading.Lock()
        self._client: OpenAI | None = None

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
        """The package's client, made when it is first needed."""
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
        """Take out what the package adds from variables of its own."""
        self._before()
        own = ("OpenAI-Organization", "OpenAI-Project")
        for name in own if self._key is not None else (*own, "Authorization"):
            request.headers.pop(name, None)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Say in words that no answer came.

        Raises:
            UserError: after the package's own retries.
        """
        self._openai()  # says what to install before the import below fails
        import openai

        try:
            yield
        except openai.APITimeoutError as error:
            raise UserError(
                f"{self.server.url} did not answer within {self.server.timeout_seconds:g} s, "
                f"{self.server.max_retries + 1} times. Type a larger server.timeout_seconds or a "
                "smaller server.num_parallel; answers that came are kept"
            ) from error
        except openai.APIConnectionError as error:
            raise UnreachableError(
                f"{self.server.url} cannot be reached ({self._clean(str(error.__cause__))}). Start "
                "the server, or type its address: server.url=http://HOST:PORT/v1; the same command "
                "goes on from what was finished"
            ) from error

    def complete(self, path: str, body: Json) -> Sent | Refusal:
        """One answer of `completions` or `chat/completions`.

        Raises:
            UserError: when the server cannot be used.
        """
        with self._answered():
            import openai

            try:
                raw = self._created(self._openai(), path, body)
            except openai.APIStatusError as error:
                if error.status_code in REFUSED:
                    return Refusal(said=self._said(error))
                raise UserError(self._explain(error.status_code, self._said(error))) from error
        try:
            found = json.loads(raw.http_response.text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self.server.url} sent an answer that is not a JSON object. Is its server.url "
                "right, up to and including /v1?"
            )
        return Sent(body=found, retries=raw.retries_taken)

    def _created(self, client: OpenAI, path: str, body: Json) -> Any:
        rest = {
            key: value for key, value in body.items() if key not in ("model", "messages", "prompt")
        }
        if path == "completions":
            return client.completions.with_raw_response.create(
                model=body["model"], prompt=body["prompt"], extra_body=rest
            )
        return client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=rest
        )

    def call(self, path: str, body: Json | None = None) -> Reply:
        """One of the other calls, e.g. `/models`; with a body it is a POST.

        Args:
            path: Behind the server's url; or a whole address.
            body: JSON.

        Raises:
            UserError: when nothing answers.
        """
        with self._answered():
            import openai

            client = self._openai()
            try:
                if body is None:
                    return Reply(status=200, said=client.get(path, cast_to=str))
                return Reply(status=200, said=client.post(path, cast_to=str, body=body))
            except openai.APIStatusError as error:
                return Reply(status=error.status_code, said=self._said(error))

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
