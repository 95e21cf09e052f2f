"""Can wandb's server be used: decided in two seconds, before wandb is asked to start a run.

A failed online `wandb.init` costs up to 102 s and makes later offline ones in the same process time
out (measured, and wandb#9865), so the decision is taken outside wandb: is there a key, and does the
host accept a connection? The key itself is neither kept nor checked.
"""

from __future__ import annotations

import logging
import netrc
import os
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from cai.choices import WandbMode

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0


def choose_mode(wanted: str, base_url: str) -> str:
    """`online` or `offline`: online needs a key and a host that answers.

    A person who asked for online and cannot have it is told why and gets offline.
    """
    if wanted in ("offline", "dryrun"):
        return "offline"
    obstacle = None
    if not has_credentials(base_url):
        obstacle = "no API key in the environment or in netrc"
    elif not can_connect(base_url, seconds=CONNECT_SECONDS):
        obstacle = f"{urlsplit(base_url).hostname} did not answer within {CONNECT_SECONDS:g} s"
    if obstacle is None:
        return "online"
    if wanted != WandbMode.auto.value:
        logger.warning("wandb is used offline although mode is %s: %s", wanted, obstacle)
    return "offline"


def has_credentials(base_url: str) -> bool:
    """Whether wandb would find an API key without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    hosts = {urlsplit(base_url).netloc, "api.wandb.ai"}
    for path in paths:
        try:
            entries = netrc.netrc(path.expanduser()).hosts
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        return any(entries[host][2] for host in hosts & entries.keys())
    return False


def can_connect(url: str, *, seconds: float) -> bool:
    """Whether the address, or the proxy that leads to it, accepts a connection in time.

    In a thread, because looking up a name has no time limit of its own.
    """
    reached = threading.Event()

    def connect() -> None:
        try:
            parts = urlsplit(_proxy_for(url) or url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
        except (OSError, ValueError):  # unreachable; an address that cannot be parsed
            return
        reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return reached.is_set()


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
