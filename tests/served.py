"""A real HTTP server on this machine that answers like an OpenAI-compatible one."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cai.model_config import ServerConfig


@dataclass(kw_only=True)
class Sent:
    """What the server says to one request."""

    status: int = 200
    body: Any = None
    """JSON, or bytes or a text as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Before it answers."""
    lost: bool = False
    """The connection ends without an answer."""


@dataclass(kw_only=True)
class Asked:
    """One request as it came."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    """Names in lower case."""


@dataclass(kw_only=True)
class Served:
    """A running server and what it was asked."""

    url: str
    asked: list[Asked]


@contextlib.contextmanager
def serving(
    answer: Callable[[Asked, int], Sent],
    *,
    listed: Callable[[], Any] = lambda: {"data": [{"id": "judge-1"}]},
) -> Iterator[Served]:
    """Serve on a free port.

    `answer` gets each request and its number, from 0; `listed` is what a GET is answered with,
    which is not counted.
    """
    asked: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Asked(path=self.path, body=json.loads(raw), headers=headers)
            with lock:
                number = len(asked)
                asked.append(request)
            sent = answer(request, number)
            time.sleep(sent.seconds)
            if sent.lost:
                self.close_connection = True
                return
            self._send(sent)

        def do_GET(self) -> None:
            self._send(Sent(body=listed()))

        def _send(self, sent: Sent) -> None:
            body = sent.body.encode() if isinstance(sent.body, str) else sent.body
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(sent.status)
                for name, value in sent.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # all connections that a client opens at once
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Served(url=f"http://127.0.0.1:{server.server_address[1]}/v1", asked=asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def server_config(url: str, **changes: object) -> ServerConfig:
    values = {
        "url": url,
        "model": "judge-1",
        "key_env": None,
        "num_parallel": 4,
        "requests_per_minute": 0.0,
        "max_retries": 2,
        "timeout_seconds": 5.0,
        "price_input": 0.0,
        "price_output": 0.0,
    }
    return ServerConfig(**(values | changes))


def chat(
    text: str,
    positions: list[tuple[str, dict[str, float]]] | None = None,
    *,
    tokens: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """A chat completion; positions are tokens with the log-probabilities listed there."""
    content = [
        {
            "token": token,
            "logprob": top.get(token, -0.01),
            "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()],
        }
        for token, top in positions or ()
    ]
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": content} if positions is not None else None,
            }
        ],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }


AT_ONCE = {"retry-after-ms": "1"}
"""Headers with which the client retries without its usual half second."""


def refusing(status: int, message: str, **headers: str) -> Sent:
    return Sent(status=status, body={"error": {"message": message}}, headers=headers)
