"""Who says how an episode has ended, where the robot itself cannot: a person, or a program."""

from __future__ import annotations

import importlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from agent.process.shown import printable
from agent.wire.errors import ConfigError
from agent.wire.messages import Outcome
from sim_bridge.robot import BridgeError, Observation

KEYS = {
    "s": Outcome.SUCCESS,
    "f": Outcome.FAILURE,
    "i": Outcome.INTERVENED,
    "a": Outcome.ABORTED,
}
NOBODY, OPERATOR = "robot", "operator"


class Judge(Protocol):
    """Asked once a tick; `see` comes with every observation that was taken."""

    def see(self, seen: Observation) -> None:
        """What the policy is shown now."""

    def outcome(self) -> Outcome | None:
        """How the episode has ended; None while it goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_judge(name: str) -> Judge:
    """`operator`: keys on this terminal. "module:function": a detector of one's own.

    Raises ConfigError when there is no such thing.
    """
    if name == NOBODY:
        return Silent()
    if name == OPERATOR:
        return OperatorKeys()
    return Detector(name)


class Silent:
    """Leaves it to the robot."""

    def see(self, seen: Observation) -> None:
        """Nothing to be seen."""

    def outcome(self) -> Outcome | None:
        """Never says a word."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class OperatorKeys(Silent):
    """A person at the terminal: s success, f failure, i I took over, a something else broke."""

    def __init__(self, fd: int | None = None) -> None:
        """fd: of a terminal; standard input unless it says otherwise. Raises ConfigError."""
        self._fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self._fd):
            raise ConfigError(
                "outcome: an operator needs a terminal, and standard input is none; start the "
                "robot by hand, or set outcome to robot or to a detector"
            )

    def __enter__(self) -> Self:
        keys = ", ".join(f"{key} {outcome}" for key, outcome in KEYS.items())
        print(f"How did it end? {keys}", file=sys.stderr, flush=True)
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)  # keys come one by one, Ctrl-C still works
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def outcome(self) -> Outcome | None:
        """Of the last key that means something, if any was pressed since."""
        pressed = b""
        while select.select([self._fd], [], [], 0)[0] and (more := os.read(self._fd, 64)):
            pressed += more
        meant = [KEYS[key] for key in pressed.decode("ascii", "replace") if key in KEYS]
        return meant[-1] if meant else None


class Detector(Silent):
    """A function (images, proprio) -> "success", "failure" or None, asked at each observation."""

    def __init__(self, name: str) -> None:
        """name: "module:function". Raises ConfigError."""
        module, _, function = name.partition(":")
        try:
            self._function: Callable[..., str | None] = getattr(
                importlib.import_module(module), function
            )
        except Exception as error:  # a module of the user's may raise anything
            raise ConfigError(
                f"outcome: expected robot, operator or module:function, got '{name}' "
                f"({type(error).__name__}: {printable(error)})"
            ) from error
        self._said: Outcome | None = None

    def see(self, seen: Observation) -> None:
        """Asks the function. Raises BridgeError for an answer that is none."""
        said = self._function(seen.images, seen.proprio)
        if said not in (None, Outcome.SUCCESS, Outcome.FAILURE):
            raise BridgeError(f"outcome: the detector said {said!r}, not success, failure or None")
        self._said = None if said is None else Outcome(said)

    def outcome(self) -> Outcome | None:
        """What the function said last, once."""
        said, self._said = self._said, None
        return said
