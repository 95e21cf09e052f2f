"""Range checks of settings; a complaint becomes a `ConfigError` that knows the section."""

from __future__ import annotations

import math


def check(condition: bool, message: str) -> None:
    """Raise with a message that begins with the setting's name."""
    if not condition:
        raise ValueError(message)


def positive(config: object, *names: str) -> None:
    """Settings that must be above 0."""
    for name in names:
        value = getattr(config, name)
        check(value > 0, f"{name} must be above 0, not {value}")


def not_negative(config: object, *names: str) -> None:
    """Settings that must be finite and at least 0."""
    for name in names:
        value = getattr(config, name)
        check(
            math.isfinite(value) and value >= 0,
            f"{name} must be a number of at least 0, not {value}",
        )


def fraction(config: object, *names: str) -> None:
    """Settings that must be between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value <= 1, f"{name} must be between 0 and 1, not {value}")
