"""What a settings' dataclass asks of its values when it is made."""

from __future__ import annotations

from collections.abc import Sequence

from agent.process.errors import ConfigError


def require(condition: object, message: str) -> None:
    """Raise ConfigError with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless low <= value <= high."""
    require(low <= value <= high, f"{name}: expected {low:g} to {high:g}, got {value}")


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    require(value in choices, f"{name}: expected one of {', '.join(choices)}, got {value!r:.80}")
