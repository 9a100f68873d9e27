"""A file that says when the bridge last had an answer, and the check that reads it.

A bridge has no HTTP port to ask. `python -m sim_bridge.heartbeat PATH --max-age-s 30` is a
container's HEALTHCHECK: one line, status 0 if the last answer is at most so old, else 1.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from agent.durable import explain_trouble, may_pass
from agent.process.arguments import real_number
from agent.process.clock import since_boot_s
from agent.process.paths import user_path
from agent.process.shown import complain
from agent.wire.errors import ConfigError

PERIOD_S = 1.0  # between two writes, at least
MAX_AGE_S = 30.0


class Heartbeat:
    """Keeps the time of the last answered request in the file `path`, in seconds since boot.

    Nobody sets that clock, and the check, on the same machine, reads it too. The file is replaced,
    never half written. Raises ConfigError if it cannot be created; a failure that may pass, or
    comes later, is reported once and leaves the file to grow old.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = since_boot_s) -> None:
        self._path, self._clock = path, clock
        self._next_path = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
        self._answered = 0
        self._answered_s = self._written_s = float("-inf")
        self._has_failed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            path.unlink(missing_ok=True)  # of the process before
            self._next_path.touch(exist_ok=False)
            self._next_path.unlink()
        except OSError as error:
            if may_pass(error):
                self._tell_of(error)
                return
            raise ConfigError(
                f"heartbeat_path: cannot write '{path}' ({error.strerror}); name another path or "
                "leave it empty"
            ) from error

    def observe(self, answered: int) -> None:
        """Takes in how many requests were answered so far; call it once a pass."""
        now_s = self._clock()
        if answered != self._answered:
            self._answered, self._answered_s = answered, now_s
        is_news = self._answered_s != self._written_s
        if not is_news or now_s - self._written_s < PERIOD_S:
            return
        self._written_s = self._answered_s
        try:
            self._next_path.write_text(f"{self._written_s:.3f}\n")
            os.replace(self._next_path, self._path)
        except OSError as error:
            self._tell_of(error)

    def _tell_of(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            complain("sim_bridge", f"heartbeat_path: {explain_trouble(error, self._path)}")


def _refuse_foreign(path: Path) -> None:
    """Raises ConfigError for a file that no bridge has written, OSError."""
    if not path.exists():
        return
    with path.open("rb") as file:
        text = file.read(64)
    try:
        float(text or "0")
    except ValueError:
        raise ConfigError(
            f"heartbeat_path: '{path}' is another program's file; name another path"
        ) from None


def check(path: Path, max_age_s: float, now_s: float) -> tuple[bool, str]:
    """Whether the last answer is young enough, and a line that says so.

    A time in the future was left from before the machine was started again.
    """
    try:
        age_s = now_s - float(path.read_text())
    except FileNotFoundError:
        return False, f"no answer yet: there is no '{path}'"
    except OSError as error:
        return False, f"cannot read '{path}': {error.strerror}"
    except ValueError:
        return False, f"'{path}' does not hold a time"
    line = f"last answer {age_s:.1f} s ago, at most {max_age_s:g} s are allowed"
    return -PERIOD_S <= age_s <= max_age_s, line  # the time in the file is rounded


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sim_bridge.heartbeat",
        description="Says how long ago a bridge had its last answer from the agent.",
    )
    parser.add_argument("path", type=user_path, help="the bridge's heartbeat_path")
    parser.add_argument(
        "--max-age-s", type=real_number(0, 1e9), default=MAX_AGE_S, help="default: %(default)g"
    )
    arguments = parser.parse_args(argv)
    is_alive, line = check(arguments.path, arguments.max_age_s, since_boot_s())
    print(line)
    return 0 if is_alive else 1


if __name__ == "__main__":
    sys.exit(main())
