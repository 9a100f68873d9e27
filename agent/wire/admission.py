"""Lets connections in once their address may come: nothing that they send is read before.

libzmq asks by ZAP (its RFC 27) who may come. pyzmq's authenticator answers that for good; here the
question of an address that has sent a flood waits until its pause is over.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import wait

import zmq
from zmq.auth import Authenticator
from zmq.auth.thread import ThreadAuthenticator

from agent.wire.flood import Pauses

ZAP_DOMAIN = "perennial"
_QUESTIONS = "inproc://zeromq.zap.01"  # as ZAP has it; once for a whole context
_LOOK_S = 0.05  # between two looks whether the pause is over
_STOP_S = 1.0
_MANY = 4096  # questions that wait; those of connections that are gone are among them


class _Desk(Authenticator):
    """Takes the next question before the last one is answered."""

    def start(self) -> None:
        self.zap_socket = self.context.socket(zmq.ROUTER, socket_class=zmq.Socket)
        self.zap_socket.linger = 0
        self.zap_socket.bind(_QUESTIONS)


class Admission(ThreadAuthenticator, _Desk):
    """Answers for all sockets of its own context. Close it after its sockets.

    Attributes:
        pauses: addresses that are not let in now; another thread's, who only reads them here.
    """

    def __init__(self) -> None:
        super().__init__(zmq.Context())
        self.pauses = Pauses()
        self._waiting: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread, once one has waited
        self._route: list[bytes] = []

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Has libzmq ask for each connection of this socket; to be called before it is bound."""
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody answers: nobody gets in

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answers a question at once, or later if its address has to wait."""
        split = msg.index(b"") + 1
        route, question = msg[:split], msg[split:]
        if not self._must_wait(question):
            await self._send_answer(route, question)
        elif len(self._waiting) < _MANY:
            self._loop = asyncio.get_running_loop()
            task = asyncio.create_task(self._answer_later(route, question))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def answer(self, question: list[bytes]) -> None:
        """Says whether a connection may come, and whose it is."""
        await super().handle_zap_message(question)

    async def _answer_later(self, route: list[bytes], question: list[bytes]) -> None:
        while self._must_wait(question):  # libzmq ends the connection if it takes too long
            await asyncio.sleep(_LOOK_S)
        await self._send_answer(route, question)

    def _must_wait(self, question: list[bytes]) -> bool:
        return self.pauses.is_paused(address_in(question), time.monotonic())

    async def _send_answer(self, route: list[bytes], question: list[bytes]) -> None:
        self._route = route  # one at a time: nothing is awaited in between
        await self.answer(question)

    def _send_zap_reply(
        self,
        request_id: bytes,
        status_code: bytes,
        status_text: bytes,
        user_id: str = "anonymous",
    ) -> None:
        self.zap_socket.send_multipart(self._route, zmq.SNDMORE)
        super()._send_zap_reply(request_id, status_code, status_text, user_id)

    def close(self) -> None:
        """Stops the threads; whoever waits gets no answer."""
        if self._loop is not None and self.is_alive():
            wait([asyncio.run_coroutine_threadsafe(self._give_up(), self._loop)], _STOP_S)
        self.stop()
        self.context.destroy(linger=0)

    async def _give_up(self) -> None:
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def address_in(question: list[bytes]) -> str:
    """The address that a question of ZAP is about, "" for none (ipc)."""
    return question[3].decode("ascii", "replace") if len(question) > 3 else ""
