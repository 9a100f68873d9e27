"""Whether the learner lives and whether it is ready, for its HTTP threads."""

import threading

from agent.http import Health
from learner.link import Session
from learner.receiver import Receiver


class Vitals:
    """Alive while the thread that makes this and the receiver run; ready with an open epoch."""

    def __init__(self) -> None:
        self._learning = threading.current_thread()
        self._parts: tuple[Session, Receiver] | None = None

    def loaded(self, session: Session, receiver: Receiver) -> None:
        """The model is there and the receiver was started."""
        self._parts = session, receiver

    def health(self) -> Health:
        """For any thread."""
        if not self._learning.is_alive():
            return Health(False, False, "the learning thread has ended")
        if self._parts is None:
            return Health(True, False, "loading the model")
        session, receiver = self._parts
        if not receiver.is_alive():
            return Health(False, False, "the receiving thread has ended")
        if not session.is_open:
            return Health(True, False, "the agent has opened no epoch yet")
        return Health(True, True)
