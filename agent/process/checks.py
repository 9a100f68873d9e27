"""What a settings' dataclass asks of its values when it is made."""

from __future__ import annotations

from collections.abc import Sequence

from agent.process.errors import ConfigError


def require(condition: object, message: str) -> None:
    """Raise ConfigError with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless `value` is a number and low <= value <= high.

    A truth value is none, though Python counts with it.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(
        is_number and low <= value <= high, f"{name}: expected {low:g} to {high:g}, got {value!r}"
    )


def require_above(name: str, value: float, low: float, high: float) -> None:
    """As `require_range`, but `low` itself is refused."""
    require_range(name, value, low, high)
    require(value > low, f"{name}: expected more than {low:g}, got {value}")


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    require(value in choices, f"{name}: expected one of {', '.join(choices)}, got {value!r:.80}")
