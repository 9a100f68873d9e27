"""How a physical robot is made ready for an episode: it moves home, or a person does it all."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Callable

import numpy as np

from agent.process.shown import shown
from agent.wire.errors import ConfigError
from sim_bridge.robots.config import RestConfig

RATE_HZ = 20.0  # of the commands on the way home
LOOK_S = 0.1  # how often it is looked whether the process shall stop


def check_rest(config: RestConfig, action_dim: int) -> None:
    """Raises ConfigError unless its actions have `action_dim` numbers."""
    for name, numbers in (("home", config.home), ("hold_action", config.hold_action)):
        if len(numbers) not in (0, action_dim):
            raise ConfigError(
                f"rest.{name}: expected {action_dim} numbers or none, got {len(numbers)}"
            )


def move_home(
    present_A: np.ndarray,
    home_A: np.ndarray,
    duration_s: float,
    send: Callable[[np.ndarray], None],
    should_stop: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sends commands, f32[A], on a straight line from the present pose; ends early if it must.

    It does not look whether the robot follows.
    """
    count = max(1, round(duration_s * RATE_HZ))
    for share in np.arange(1, count + 1) / count:
        if should_stop():
            return
        send((present_A + share * (home_A - present_A)).astype(np.float32))
        sleep(1 / RATE_HZ)


class Person:
    """Someone at the terminal who puts robot and scene into order and then presses Enter."""

    def __init__(self, fd: int | None = None) -> None:
        """fd: of a terminal; standard input unless it says otherwise. Raises ConfigError."""
        self._fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self._fd):
            raise ConfigError(
                "rest.home: none, so a person resets the robot at a terminal, and standard input "
                "is none; start the robot by hand, or set rest.home"
            )

    def reset(self, task: str, should_stop: Callable[[], bool]) -> None:
        """Waits for Enter, as long as it takes, or until the process shall stop.

        An Enter that was pressed before is none: nobody looked at this scene then.
        """
        termios.tcflush(self._fd, termios.TCIFLUSH)
        asked = f"Reset the robot and the scene for {shown(task)}, then press Enter."
        print(asked, file=sys.stderr)
        sys.stderr.flush()
        while not should_stop():
            if select.select([self._fd], [], [], LOOK_S)[0]:
                pressed = os.read(self._fd, 64)
                if not pressed or b"\n" in pressed or b"\r" in pressed:
                    return
