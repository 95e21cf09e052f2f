"""The client of servers, against a real one on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cai import paths
from cai.endpoint import Cache, Client, RateLimit, Refusal, Usage, metered
from cai.errors import UserError
from tests.served import AT_ONCE, Asked, Sent, chat, refusing, server_config, serving

KEY = "sk-hunter2-hunter2"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody-else")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)


def echo(asked: Asked, _number: int) -> Sent:
    return Sent(body=chat(asked.body["messages"][0]["content"], tokens=(10, 2)))


def said(body: dict) -> str:
    return body["choices"][0]["message"]["content"]


def ask(client: Client, *texts: str) -> list[str | Refusal]:
    requests = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return client.ask("chat/completions", requests, parse=said)


def test_answers_come_in_the_order_of_the_requests_whatever_the_order_of_arrival() -> None:
    def late_first(asked: Asked, number: int) -> Sent:
        sent = echo(asked, number)
        sent.seconds = 0.2 if said(sent.body) == "0" else 0.0
        return sent

    texts = [str(i) for i in range(12)]
    with serving(late_first) as server:
        assert ask(Client(server_config(server.url)), *texts) == texts
    assert len(server.asked) == 12
    assert all(a.path == "/v1/chat/completions" for a in server.asked)
    assert {a.body["model"] for a in server.asked} == {"judge-1"}


def test_requests_are_in_flight_together_and_never_more_than_allowed() -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def slow(asked: Asked, number: int) -> Sent:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return echo(asked, number)

    with serving(slow) as server:
        ask(Client(server_config(server.url, num_parallel=3)), *map(str, range(9)))
    assert most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_is_tried_again(status: int, tmp_path: Path) -> None:
    def once(asked: Asked, number: int) -> Sent:
        return refusing(status, "not now", **AT_ONCE) if number < 2 else echo(asked, number)

    with serving(once) as server, metered(tmp_path / "usage") as meter:
        assert ask(Client(server_config(server.url, max_retries=2)), "a") == ["a"]
    assert len(server.asked) == 3
    assert meter.total().counts()["retries"] == 2
    assert meter.total().counts()["requests"] == 1


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (refusing(500, "out of order", **AT_ONCE), r"answered 500 \(out of order\).*after 2 retr"),
        (refusing(429, "slow down", **AT_ONCE), "smaller server.requests_per_minute"),
        (refusing(401, "bad key"), "wants another key: none was sent"),
        (refusing(404, "no judge-1"), "has no model judge-1, or no such interface"),
        (Sent(body=b"<html>hello"), "not a JSON object"),
        (Sent(body=b"[1, 2]"), "not a JSON object"),
        (Sent(body={"choices": []}), "not one of an OpenAI-compatible server: IndexError"),
        (Sent(body={"answer": "yes"}), "not one of an OpenAI-compatible server: KeyError"),
    ],
)
def test_what_cannot_be_used_says_why_and_what_to_type(sent: Sent, message: str) -> None:
    with serving(lambda _asked, _number: sent) as server:
        client = Client(server_config(server.url, max_retries=2))
        with pytest.raises(UserError, match=message) as caught:
            ask(client, "a")
    assert server.url in str(caught.value)
    assert not list(paths.cache_dir().rglob("*.json"))


def test_a_server_that_is_too_slow_is_given_up_after_the_retries() -> None:
    slow = Sent(body=chat("late"), seconds=0.6)
    with serving(lambda _asked, _number: slow) as server:
        client = Client(server_config(server.url, timeout_seconds=0.1, max_retries=1))
        with pytest.raises(UserError, match=r"did not answer within 0\.1 s, 2 times"):
            ask(client, "a")
    assert len(server.asked) == 2


def test_a_server_that_is_not_there_is_named() -> None:
    with serving(echo) as server:
        pass
    with pytest.raises(UserError, match=rf"{server.url} cannot be reached .*Start the server"):
        ask(Client(server_config(server.url, max_retries=0)), "a")


def test_a_refused_request_is_a_value_and_the_others_are_answered() -> None:
    def one(asked: Asked, number: int) -> Sent:
        if said(echo(asked, number).body) == "long":
            return refusing(400, "This model's maximum context length is 8 tokens.")
        return echo(asked, number)

    with serving(one) as server:
        first, refused, last = ask(Client(server_config(server.url)), "a", "long", "b")
    assert (first, last) == ("a", "b")
    assert isinstance(refused, Refusal)
    assert refused.too_long
    assert not Refusal(said="logprobs are not supported").too_long


def test_nothing_is_asked_or_paid_for_twice(tmp_path: Path) -> None:
    prices = {"price_input": 0.5, "price_output": 2.0}
    with serving(echo) as server:
        with metered(tmp_path / "one") as first:
            ask(Client(server_config(server.url, **prices)), "a", "b", "a")
        with metered(tmp_path / "two") as second:
            assert ask(Client(server_config(server.url, **prices)), "b", "a", "c") == list("bac")
    assert [said(echo(a, 0).body) for a in server.asked].count("a") == 1
    assert len(server.asked) == 3
    # "a" and "b": 20 tokens in at $0.5 and 4 out at $2 a million: 10 + 8 = 18 microdollars.
    assert first.total().counts() == {
        "requests": 2,
        "retries": 0,
        "cached_answers": 1,
        "tokens_in": 20,
        "tokens_out": 4,
        "cost_microdollars": 18,
    }
    # "c" alone: 10 x 0.5 + 2 x 2 = 9.
    assert second.total().counts()["cost_microdollars"] == 9
    assert second.total().cached == 2
    assert "0.0000 US dollars" in second.total().told()


def test_another_server_model_or_question_is_another_answer() -> None:
    with serving(echo) as server, serving(echo) as other:
        ask(Client(server_config(server.url)), "a")
        ask(Client(server_config(server.url, model="judge-2")), "a")
        ask(Client(server_config(other.url)), "a")
        ask(Client(server_config(server.url, num_parallel=1, timeout_seconds=9.0)), "a")
    assert (len(server.asked), len(other.asked)) == (2, 1)


def test_a_failure_keeps_the_answers_that_came() -> None:
    broken = True

    def third_fails(asked: Asked, number: int) -> Sent:
        text = said(echo(asked, number).body)
        return refusing(401, "no") if broken and text == "2" else echo(asked, number)

    texts = [str(i) for i in range(6)]
    with serving(third_fails) as server:
        client = Client(server_config(server.url, num_parallel=1))
        with pytest.raises(UserError):
            ask(client, *texts)
        assert len(server.asked) == 3  # nothing is begun after the failure
        broken = False
        assert ask(client, *texts) == texts
    assert [said(echo(a, 0).body) for a in server.asked] == ["0", "1", "2", "2", "3", "4", "5"]


def test_a_damaged_answer_on_the_disk_is_asked_for_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "answers")
    assert cache.get("ab12") is None
    cache.put("ab12", {"x": [1, "\u2028"]})
    assert cache.get("ab12") == {"x": [1, "\u2028"]}
    (path,) = tmp_path.rglob("*.json")
    content = path.read_text()
    path.write_text(content.replace("[1,", "[2,"))
    assert cache.get("ab12") is None
    path.write_text(content[:-5])
    assert cache.get("ab12") is None


def test_usage_survives_a_kill_and_is_summed_over_runs(tmp_path: Path) -> None:
    one = Usage(requests=1, retries=0, cached=0, tokens_in=7, tokens_out=1, microdollars=0.4)
    for _ in range(2):
        with metered(tmp_path / "usage") as meter:
            meter.add(one)
    with (tmp_path / "usage").open("a") as stream:
        stream.write('{"requests": 1, "retries": 0, "tok')  # a kill in the middle of a line
    assert meter.total() == one + one
    assert meter.total().counts()["cost_microdollars"] == 1
    with metered(tmp_path / "none") as unused:
        pass
    assert unused.total().counts() == {}


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_the_rate_limit_spaces_requests() -> None:
    fake = FakeTime()
    limit = RateLimit(30, clock=fake.clock, sleep=fake.sleep)
    starts = []
    for pause in (0.0, 0.0, 0.0, 5.0, 0.0):
        fake.now += pause
        limit.wait()
        starts.append(fake.now)
    # 30 a minute: one every 2 s; the pause of 5 s is not made up for by a burst.
    assert starts == [100, 102, 104, 109, 111]
    assert RateLimit(0, clock=fake.clock, sleep=fake.sleep).wait() is None
    assert fake.now == 111


def test_retries_count_towards_the_rate_limit() -> None:
    fake = FakeTime()
    limit = RateLimit(60, clock=fake.clock, sleep=fake.sleep)

    def once(asked: Asked, number: int) -> Sent:
        return refusing(503, "not now", **AT_ONCE) if number == 0 else echo(asked, number)

    with serving(once) as server:
        client = Client(server_config(server.url, num_parallel=1), rate_limit=limit)
        ask(client, "a", "b")
        ask(client, "a", "b")  # from the cache: waits for nobody
    assert len(server.asked) == 3
    assert fake.slept == [1.0, 1.0]


def test_the_key_goes_into_the_header_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    allowed = True

    def checking(asked: Asked, number: int) -> Sent:
        key = asked.headers.get("authorization", "")
        return echo(asked, number) if allowed else refusing(401, f"bad key {key}, really")

    with serving(checking) as server, metered(tmp_path / "usage"):
        ask(Client(server_config(server.url, key_env="JUDGE_KEY")), "a")
        allowed = False
        with pytest.raises(UserError, match="JUDGE_KEY") as caught:
            ask(Client(server_config(server.url, key_env="JUDGE_KEY")), "b")
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)
    assert "hunter2" not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not any(b"hunter2" in path.read_bytes() for path in files)


def test_without_key_env_no_key_of_the_environment_is_sent() -> None:
    with serving(echo) as server:
        ask(Client(server_config(server.url)), "a")
    headers = server.asked[0].headers
    assert "authorization" not in headers
    assert not any("somebody-else" in value for value in headers.values())


def test_a_key_that_is_not_there_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with (
        serving(echo) as server,
        pytest.raises(UserError, match=r"export JUDGE_KEY=.*server\.key_env=null"),
    ):
        ask(Client(server_config(server.url, key_env="JUDGE_KEY")), "a")
    assert server.asked == []


def test_the_package_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[endpoint\]'"):
        ask(Client(server_config("http://127.0.0.1:9/v1")), "a")


def test_a_signal_does_not_wait_for_answers() -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, stop)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        with serving(lambda _asked, _number: Sent(body=chat("late"), seconds=1.5)) as server:
            started = time.monotonic()
            with pytest.raises(Stop):
                ask(Client(server_config(server.url)), "a", "b")
            assert time.monotonic() - started < 1.2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_cache_s_files_hold_one_json_object_each() -> None:
    with serving(echo) as server:
        ask(Client(server_config(server.url)), "\u20ac")
    (path,) = paths.cache_dir().rglob("*.json")
    assert json.loads(path.read_bytes())["body"]["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 2,
    }
