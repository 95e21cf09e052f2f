"""Ways a run ends early that the user should read as a sentence, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right; the message says what, why and what to type."""

    exit_code = 1


class ConfigError(UserError):
    """The settings are wrong; nothing has run."""

    exit_code = 2


class RunFailedError(UserError):
    """A run of a multirun failed in another process, where it said why."""


class SelfCheckError(UserError):
    """A training's own invariants do not hold before its first update; nothing was learned."""


class Interrupted(BaseException):
    """A signal asked the process to stop.

    It is no `Exception`, so neither Hydra nor a library that retries takes it for a failed job and
    goes on; unlike `KeyboardInterrupt`, Lightning does not turn it into `SystemExit`.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum
