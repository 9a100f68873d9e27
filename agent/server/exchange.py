"""How work travels between the server's threads: requests to be answered, and a mailbox.

All state of the server belongs to the thread that runs the loop. Other threads (inference, loader,
journal) only post actions to its mailbox.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.wire.messages import Fault
from agent.wire.wakeup import Wakeup

Send = Callable[[object], None]


@dataclass(slots=True)
class Exchange:
    """One request and its one reply, now or later. Times are of the loop's clock [s].

    sender: the client's name in the list of clients, "" on sockets without keys. party: whose
    limits it counts against, see `agent.server.shares`.
    """

    send: Send = field(repr=False)
    received_s: float
    expires_s: float | None = None  # the client no longer waits after this
    sender: str = ""
    party: str = ""
    is_open: bool = True

    def reply(self, message: object) -> None:
        """Answers; a second answer would be a bug and raises RuntimeError."""
        if not self.is_open:
            raise RuntimeError(f"second reply to one request: {type(message).__name__}")
        self.is_open = False
        self.send(message)

    def fail(self, code: str, text: str) -> None:
        """Answers with a Fault unless there was an answer."""
        if self.is_open:
            self.reply(Fault(code, text))

    def is_expired(self, now_s: float) -> bool:
        """Whether the client has stopped waiting."""
        return self.expires_s is not None and now_s > self.expires_s


@dataclass(frozen=True, slots=True)
class Action:
    """Something to be done by the loop's thread, for a request or for none."""

    run: Callable[[], object]
    exchange: Exchange | None


class Mailbox:
    """Actions for the loop's thread, in the order of posting."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._actions: queue.SimpleQueue[Action] = queue.SimpleQueue()

    def post(self, run: Callable[[], object], exchange: Exchange | None = None) -> None:
        """Has the loop call `run` soon; callable from any thread.

        If it raises, `exchange` gets the Fault.
        """
        self._actions.put(Action(run, exchange))
        self._wakeup.set()

    def take(self) -> list[Action]:
        """The actions posted so far."""
        return [self._actions.get_nowait() for _ in range(self._actions.qsize())]
