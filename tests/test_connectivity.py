"""The decision between online and offline, without wandb and without a network."""

import socket
import time

import pytest

from cai import connectivity

URL = "https://api.example.test"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_no_key_means_offline_without_a_word(caplog):
    assert connectivity.choose_mode("auto", URL) == "offline"
    assert caplog.records == []


def test_online_that_cannot_be_had_is_offline_with_the_reason(caplog, monkeypatch):
    assert connectivity.choose_mode("online", URL) == "offline"
    assert "no API key" in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert connectivity.choose_mode("online", "http://127.0.0.1:9") == "offline"
    assert "127.0.0.1 did not answer within 2 s" in caplog.text


def test_key_and_route_mean_online_unless_offline_is_asked_for(server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert connectivity.choose_mode("auto", server) == "online"
    assert connectivity.choose_mode("online", server) == "online"
    assert connectivity.choose_mode("offline", server) == "offline"


@pytest.mark.parametrize("host", ["api.example.test", "api.wandb.ai"])
def test_netrc_counts_as_a_key(tmp_path, host):
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password abc\n")
    assert connectivity.has_credentials(URL)


@pytest.mark.parametrize(
    "text", ["", "machine other\n login u\n password p\n", "machine \x00 {{{ nonsense", "\xff"]
)
def test_other_or_broken_netrc_does_not(tmp_path, text):
    (tmp_path / ".netrc").write_bytes(text.encode("latin-1"))
    assert not connectivity.has_credentials(URL)


def test_netrc_variable_names_another_file(tmp_path, monkeypatch):
    named = tmp_path / "elsewhere"
    named.write_text("machine api.example.test login user password abc\n")
    monkeypatch.setenv("NETRC", str(named))
    assert connectivity.has_credentials(URL)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "http://[", ""]
)
def test_unreachable_addresses_are_decided_in_time(url):
    start = time.monotonic()
    assert not connectivity.can_connect(url, seconds=1.0)
    assert time.monotonic() - start < 1.5


def test_proxy_is_what_must_answer(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server)
    assert connectivity.can_connect("http://no-such-host.invalid", seconds=2)
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    assert not connectivity.can_connect("http://no-such-host.invalid", seconds=2)
