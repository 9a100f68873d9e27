"""How SIGTERM, SIGINT and SIGHUP end a process, at whatever moment they come.

Everything durable survives `kill -9`, so a process may be cut off wherever it is. Unless it says
otherwise, a signal kills it on the spot, as if nobody had caught it, also in the middle of a long
call into a library. While it works it says otherwise: then a signal sets a flag and the work ends
in order. A thread of its own sees the signal too, since no Python handler can interrupt a library,
and cuts off what still lives after LIMIT_S, unless that finishes something that somebody waits for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar, NoReturn

from agent.process.shown import complain
from agent.process.streams import prepare_streams, printing

PROGRAM = "perennial"
LIMIT_S = 1.7  # from the signal to the cut: with the exit itself, a process ends within 2 s
FINISHING_LIMIT_S = 30.0  # the longest that answers, seals or a robot may put the cut off
EXIT_S = 0.5  # for leaving the interpreter once they are finished
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S = 0.05
_FIRST_PID = 1  # of a container, without an init process
_STDERR = 2


class Ended(SystemExit):
    """Raised in the main thread by a signal inside `StopFlag.unwinding`."""


class StopFlag:
    """Whether the process was told to stop, and what a signal does from now on.

    It is one flag for the whole process, however many objects there are. In a process that is not
    `stoppable`, such as a test, it is never set.
    """

    def __call__(self) -> bool:
        """Whether to stop."""
        ending = _Ending.current
        return ending is not None and ending.is_set

    @contextmanager
    def working(self, on_stop: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within, a signal sets the flag and calls `on_stop`; the work ends by itself, soon."""
        ending = _Ending.current
        if ending is None:
            yield
            return
        with ending.caught(lambda _: on_stop()):
            yield

    @contextmanager
    def unwinding(self) -> Iterator[None]:
        """Within, a signal raises Ended: for what has to put something away, such as children."""
        ending = _Ending.current
        if ending is None:
            yield
            return
        with ending.caught(ending.unwind):
            yield

    @contextmanager
    def putting_away(self) -> Iterator[None]:
        """Within, a signal that would kill raises Ended: something is half written, and must go.

        Where a signal sets the flag or raises already, or in another thread, nothing changes.
        """
        ending = _Ending.current
        is_main = threading.current_thread() is threading.main_thread()
        if ending is None or not ending.kills or not is_main:
            yield
            return
        with ending.caught(ending.unwind):
            yield

    @contextmanager
    def finishing(self, what: str = "") -> Iterator[None]:
        """Within, nothing is cut off: an answer or a seal is under way, or a robot moves.

        what: is waited for; people are told of it once it takes long. "" where nobody has to know.
        """
        ending = _Ending.current
        if ending is None:
            yield
            return
        with ending.finishing(what):
            yield


class _Ending:
    """The signals of one process; the main thread makes it."""

    current: ClassVar[_Ending | None] = None

    def __init__(self, program: str, status: int | None) -> None:
        self.is_set = False
        self._program, self._status = program, status
        self._on_stop: Callable[[int], None] | None = None
        self._finishing, self._finished_s, self._finishing_what = 0, 0.0, ""
        self._lock = threading.Lock()
        self._writer: socket.socket | None = None
        # Under nohup a process outlives its terminal.
        is_alone = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._signals = [s for s in SIGNALS if s != signal.SIGHUP or not is_alone]
        self._former = {number: signal.getsignal(number) for number in self._signals}
        self._nowhere = os.open(os.devnull, os.O_WRONLY)  # what a dying process was doing
        self._die_of_signals()

    @property
    def kills(self) -> bool:
        """Whether a signal would kill the process now."""
        return self._on_stop is None and not self.is_set

    @contextmanager
    def caught(self, on_stop: Callable[[int], None]) -> Iterator[None]:
        """Within, a signal sets the flag and calls `on_stop` in the main thread."""
        former, self._on_stop = self._on_stop, on_stop
        if former is None and not self.is_set:
            self._catch_signals()
        try:
            yield
        finally:
            self._on_stop = former
            if former is None and not self.is_set:  # else no further signal changes anything
                self._die_of_signals()

    @contextmanager
    def finishing(self, what: str) -> Iterator[None]:
        with self._lock:
            self._finishing += 1
            self._finishing_what = what or self._finishing_what
        try:
            yield
        finally:
            with self._lock:
                self._finishing -= 1
                self._finished_s = time.monotonic()

    def unwind(self, number: int) -> NoReturn:
        raise Ended(self.status_after(number))

    def status_after(self, number: int) -> int:
        """The exit status of a process that ends in order because of this signal."""
        return 128 + number if self._status is None else self._status

    def release(self) -> None:
        """Gives the signals back, unless the process is about to end because of one."""
        if self.is_set:
            # While it leaves, the interpreter takes its handlers away: a late signal would kill it.
            for number in self._signals:
                signal.signal(number, signal.SIG_IGN)
            return
        self._stop_watching()
        for number, handler in self._former.items():
            faulthandler.unregister(number)
            signal.signal(number, handler)
        os.close(self._nowhere)
        _Ending.current = None

    def _die_of_signals(self) -> None:
        """From now on a signal kills at once, whatever library the main thread is in.

        The handler is C, and needs no interpreter. That there is one shows whoever looks at the
        process that it has got so far.
        """
        self._stop_watching()
        if os.getpid() == _FIRST_PID:  # the kernel spares it where a signal has its default action
            self._on_stop = self.unwind
            self._catch_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
            faulthandler.register(number, self._nowhere, all_threads=False, chain=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see hold_back_interrupts

    def _catch_signals(self) -> None:
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="stopping", daemon=True).start()
        for number in self._signals:
            faulthandler.unregister(number)
            signal.signal(number, self._on_signal)

    def _stop_watching(self) -> None:
        if self._writer is not None:
            signal.set_wakeup_fd(-1)
            self._writer.close()  # which ends the thread
            self._writer = None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self.is_set:  # the first one counts
            self.is_set = True
            if self._on_stop is not None:
                self._on_stop(number)

    def _watch(self, reader: socket.socket) -> None:
        """Cuts the process off when it has not ended in time after a signal."""
        number = 0
        while number not in SIGNALS:
            received = reader.recv(1)
            if not received:
                reader.close()
                return
            number = received[0]
        told_s = time.monotonic()
        has_said = False
        while (now_s := time.monotonic()) < self._cut_s(told_s):
            is_late = bool(self._finishing) and now_s > told_s + LIMIT_S
            if is_late and self._finishing_what and not has_said:
                has_said = True
                self._say(
                    f"told to stop, and waits for {self._finishing_what}, now in "
                    f"{_where_main_is()}; it is cut off {FINISHING_LIMIT_S:.0f} s after the signal"
                )
            time.sleep(_LOOK_S)
        where = f" in {_where_main_is()}" if has_said else ""
        self._say(f"cut off{where}, as it did not stop by itself in time")
        os._exit(self.status_after(number))

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(_STDERR, f"{self._program}: {text}\n".encode())

    def _cut_s(self, told_s: float) -> float:
        with self._lock:
            if self._finishing:
                return told_s + FINISHING_LIMIT_S
            return max(told_s + LIMIT_S, self._finished_s + EXIT_S)


def _where_main_is() -> str:
    """What the main thread is doing, for whoever wrote it."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "no code of Python's"
    name = os.path.basename(frame.f_code.co_filename)
    return f"{frame.f_code.co_qualname} ({name}:{frame.f_lineno})"


@contextmanager
def stoppable(program: str, status: int | None = None) -> Iterator[None]:
    """Lets SIGTERM, SIGINT and SIGHUP end this process in time and without a traceback.

    A signal kills it, but see `StopFlag`. Outside the main thread, which alone receives signals,
    nothing changes.

    Args:
        program: named in the line that says that the process was cut off.
        status: the exit status if it ends in order after a signal; None is 128 and the signal's
            number, as in a shell.
    """
    if _Ending.current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    prepare_streams()
    ending = _Ending.current = _Ending(program, status)
    try:
        with printing(program):
            yield
    finally:
        ending.release()


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and leave the process with its exit status.

    A signal kills it at once and without a traceback, wherever it is; but what it is writing just
    then is put away first, see `StopFlag.putting_away`, and it says so. A reader of its output that
    goes away, as `head` does, ends it without a word. Where its output cannot be written, it says
    so.
    """
    with stoppable(PROGRAM):
        try:
            status = main()
        except Ended:
            complain(PROGRAM, "stopped; nothing is left half done: give the same command again")
            raise
        except OSError as error:
            complain(PROGRAM, error)
            status = 1
        sys.exit(status)


def hold_back_interrupts() -> None:
    """Have SIGINT wait until the program that replaces this one is `stoppable`.

    A Python that has not got so far would answer with a traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
