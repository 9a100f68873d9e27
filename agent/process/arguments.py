"""Numbers on a command line, as argparse's `type`: its own words would name a function of ours."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from agent.process.shown import shown


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Take a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # also of so many digits that Python refuses them
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {low} to {high}, got {shown(text, 40)}"
            )
        return number

    return read


def real_number(low: float, high: float, *, is_open: bool = False) -> Callable[[str], float]:
    """Take a number from `low` to `high`; with `is_open` not `low` itself."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (is_open and number == low):
            limits = f"above {low:g} up to {high:g}" if is_open else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"expected a number {limits}, got {shown(text, 40)}")
        return number

    return read


def whole_numbers(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """Take several, with commas between them."""
    read_one = whole_number(low, high)

    def read(text: str) -> tuple[int, ...]:
        return tuple(read_one(word) for word in text.split(","))

    return read
