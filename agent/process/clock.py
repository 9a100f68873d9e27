"""What time it is: durations, orders and stamps that the machine's wall clock cannot disturb.

A wall clock is set while processes run: by NTP some time after boot, by a person, by a hypervisor.
Durations therefore come from `time.monotonic`, and a stamp that is compared with other stamps comes
from `unix_s`: the wall clock as it was read once, plus the time since. The processes that one
supervisor starts share that one reading, so their stamps can be compared with each other.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

LATEST_S = 4_102_444_800.0  # the year 2100
VARIABLE = "PERENNIAL_CLOCK"
"""The environment variable in which a parent hands its reading to its children."""
STEP_S = 1.0
"""A wall clock that is off by less was not set: it runs a little faster or slower."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Like CLOCK_MONOTONIC, but it goes on while the machine is suspended. All processes share it.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SteadyClock:
    """Unix time that runs evenly from one reading of the wall clock: it never jumps or goes back.

    Args:
        inherited: what `described` gave in the process that started this one; a text of another
            boot, or none of ours, is not used.
    """

    def __init__(self, inherited: str = "") -> None:
        origin_ns = _parse(inherited)
        self._origin_ns = time.time_ns() - since_boot_ns() if origin_ns is None else origin_ns

    @property
    def described(self) -> str:
        """The reading, as a child's `inherited` takes it."""
        return f"{self._origin_ns}:{_boot_id()}"

    def go_on_from(self, stamp_s: float) -> None:
        """Move forward to a stamp of an earlier process [Unix s], unless it is in the past.

        So the stamps of one file never go back, also when the clock was set back between two
        processes that write it. A stamp that no clock has shown is of a damaged file.
        """
        if not 0 <= stamp_s <= LATEST_S:
            return
        self._origin_ns += max(0, int(stamp_s * 1e9) - self.unix_ns())

    def unix_ns(self) -> int:
        """Unix time now [ns]."""
        return self._origin_ns + since_boot_ns()

    def unix_s(self) -> float:
        """Unix time now [s]."""
        return self.unix_ns() / 1e9

    def by_wall_clock(self, stamp_s: float) -> float:
        """The moment of a stamp [Unix s] as the wall clock would now call it.

        For readers that subtract it from their own clock, as Prometheus does: the age comes out
        right although the clock was set since.
        """
        step_s = round((time.time_ns() - self.unix_ns()) / 1e9, 1)
        return stamp_s + step_s if abs(step_s) >= STEP_S else stamp_s


def since_boot_ns() -> int:
    """Nanoseconds since the machine was started: equal in all its processes, never set."""
    return time.clock_gettime_ns(_SINCE_BOOT)


def since_boot_s() -> float:
    """Seconds since the machine was started."""
    return since_boot_ns() / 1e9


def _parse(text: str) -> int | None:
    """The reading in the text of `SteadyClock.described`; None if it is none of this boot."""
    origin, _, boot_id = text.partition(":")
    is_number = origin.isascii() and origin.removeprefix("-").isdigit()
    return int(origin) if is_number and len(origin) < 21 and boot_id == _boot_id() else None


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""  # no Linux


_clock = SteadyClock(os.environ.get(VARIABLE, ""))


def unix_ns() -> int:
    """Unix time of this process [ns]: for stamps; see the module."""
    return _clock.unix_ns()


def unix_s() -> float:
    """Unix time of this process [s]: for stamps; see the module."""
    return _clock.unix_s()


def by_wall_clock(stamp_s: float) -> float:
    """A stamp of `unix_s` as the wall clock would now call it: see `SteadyClock`."""
    return _clock.by_wall_clock(stamp_s)


def go_on_from(stamp_s: float) -> None:
    """Have the stamps of this process follow those of an earlier one: see `SteadyClock`."""
    _clock.go_on_from(stamp_s)


def share_clock() -> None:
    """Hand this process's time to the processes that it starts from now on."""
    os.environ[VARIABLE] = _clock.described
