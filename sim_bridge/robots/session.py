"""A robot's conversation with the server where nothing moves meanwhile: one request at a time."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

from agent.wire.messages import Fault, Hello, Welcome
from sim_bridge.client import RequestTable
from sim_bridge.robot import BridgeError

KEY = "session"  # of its one open request
WAIT_S = 0.1
CONTRACT = ("chunk_steps", "action_dim", "proprio_dim", "images")  # fields of Welcome

log = logging.getLogger(__name__)


class Session:
    """One client; `instance_id` is new with every object."""

    def __init__(self, requests: RequestTable, client_id: str) -> None:
        self.requests = requests
        self.client_id = client_id
        self.instance_id = uuid.uuid4().hex
        self._name = ""

    def greet(self, name: str, should_stop: Callable[[], bool]) -> Welcome | None:
        """The server's contract; None if `should_stop` first. Raises BridgeError if refused."""
        self._name = name
        hello = Hello(self.client_id, name, instance_id=self.instance_id)
        reply = self.ask(hello, should_stop)
        if reply is not None and not isinstance(reply, Welcome):
            raise BridgeError(f"hello to {self.requests.endpoint}: {describe(reply)}")
        return reply

    def greet_again(self, former: Welcome, should_stop: Callable[[], bool]) -> None:
        """For a server that has been started again. Raises BridgeError if its contract is not
        `former` any more.
        """
        welcome = self.greet(self._name, should_stop)
        if welcome is None:
            return
        for name in CONTRACT:
            had, has = getattr(former, name), getattr(welcome, name)
            if had != has:
                raise BridgeError(
                    f"{name}: the agent was started again and has {has}, it had {had}; start this "
                    "robot again, too"
                )
        log.warning("the agent was started again: going on with the new one")

    def ask(
        self,
        message: object,
        should_stop: Callable[[], bool],
        hold: Callable[[], object] = lambda: None,
        hold_every_s: float = WAIT_S,
    ) -> object:
        """The reply, which may be a Fault; None if `should_stop` before it came.

        hold: called again and again while the server is waited for.
        """
        self.requests.ask(KEY, message)
        while not should_stop():
            hold()
            for answer in self.requests.receive(hold_every_s):
                if answer.key == KEY:
                    return answer.reply
        self.requests.cancel(KEY)
        return None


def describe(reply: object) -> str:
    """One line for a reply that was not hoped for."""
    if reply is None:
        return "no answer"
    if isinstance(reply, Fault):
        return f"{reply.code}: {reply.message}"
    return f"unexpected {type(reply).__name__}"
