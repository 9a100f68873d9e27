"""How a learner ends early."""

import threading
from collections.abc import Callable

EXIT_STATUS = 3  # not 0, which says that the run is finished, nor 1 and 2, which say that it failed


class Stopped(Exception):
    """The process was asked to stop; what was not committed is done again after a resume."""


class StopFlag(threading.Event):
    """Set when the process shall stop.

    Both threads ask for it wherever they can stop: between micro-batches, twice a second while
    they wait for episodes, before each sending of a request. That they ask proves that they get
    on, whatever an update takes; `on_asked` is called with it.
    """

    def __init__(self, on_asked: Callable[[], None]) -> None:
        super().__init__()
        self._on_asked = on_asked

    def is_set(self) -> bool:
        """Whether to stop."""
        self._on_asked()
        return super().is_set()
