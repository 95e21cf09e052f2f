"""Fault points: one hook that tests and users can arm from outside to kill a run anywhere.

`CAI_FAULT="revisions:shard=2:kill"` kills the process with SIGKILL the second time the point
`revisions:shard` is passed; `raise` raises, `interrupt` sends SIGINT, `terminate` SIGTERM, `warn`
SIGUSR1 (`cai.preemption`), and `enospc` raises the error of a full disk. Without the variable the
hook does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "CAI_FAULT"
ACTIONS = ("kill", "raise", "interrupt", "terminate", "warn", "enospc")

_passed: Counter[str] = Counter()


class InjectedFaultError(RuntimeError):
    """Raised by the action `raise`."""


def _parse(spec: str) -> tuple[str, int, str]:
    point, _, rest = spec.partition("=")
    count, _, action = rest.partition(":")
    if not count.isdigit() or action not in ACTIONS:
        raise ValueError(
            f"{VARIABLE}={spec!r}: write <stage>:<event>=<nth time>:<action>, "
            f"with an action of {', '.join(ACTIONS)}"
        )
    return point, int(count), action


def fault(point: str) -> None:
    """Pass a fault point, e.g. `drafts:shard`; does nothing unless armed for it."""
    spec = os.environ.get(VARIABLE)
    if not spec:
        return
    armed, nth, action = _parse(spec)
    if point != armed:
        return
    _passed[point] += 1
    if _passed[point] != nth:
        return
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "warn":
            os.kill(os.getpid(), signal.SIGUSR1)
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _:
            raise InjectedFaultError(point)
