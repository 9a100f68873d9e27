"""What SIGTERM, SIGINT and SIGHUP do to a process, in this one: nothing here lets it die."""

import faulthandler
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from agent.process import Ended, StopFlag, stopping
from agent.process.stopping import SIGNALS, _Ending, stoppable


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The exit statuses with which the process would have been cut off."""
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise Cut  # ends the watching thread instead

    monkeypatch.setattr(stopping.os, "_exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(stopping, "LIMIT_S", 0.2)
    monkeypatch.setattr(stopping, "EXIT_S", 0.1)
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:  # whoever started the tests may ignore some, as nohup does
        signal.signal(number, signal.SIG_DFL)
    yield statuses
    for thread in threading.enumerate():
        if thread.name == "stopping":
            thread.join(60)
    signal.set_wakeup_fd(-1)
    for number, handler in former.items():
        faulthandler.unregister(number)
        signal.signal(number, handler)
    _Ending.current = None


def wait_for(statuses: list[int]) -> None:
    ends_s = time.monotonic() + 60
    while not statuses and time.monotonic() < ends_s:
        time.sleep(0.01)


def catches(number: int) -> bool:
    with open("/proc/self/status") as status:
        caught = int(status.read().partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_it_works_a_signal_sets_the_flag_once(cut: list[int], number: int) -> None:
    stop, told = StopFlag(), []
    with stoppable("test", 7), stop.working(lambda: told.append(1)):
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        for second in SIGNALS:
            signal.raise_signal(second)
    signal.raise_signal(number)  # while it leaves
    assert told == [1]
    assert stop()


def test_what_does_not_stop_by_itself_is_cut_off_with_the_right_status(cut: list[int]) -> None:
    with stoppable("test", 7), StopFlag().working():
        signal.raise_signal(signal.SIGTERM)
        wait_for(cut)
    assert cut == [7]


def test_a_call_that_no_python_handler_can_interrupt_is_cut_off_too(cut: list[int]) -> None:
    with stoppable("test"), StopFlag().working():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        rounds = 500_000
        while not cut and rounds < 1 << 32:  # one call of a library, as long as it takes
            hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
            rounds *= 2
    assert cut == [128 + signal.SIGTERM]


def test_what_finishes_an_answer_is_not_cut_off_but_afterwards_it_is(cut: list[int]) -> None:
    stop = StopFlag()
    with stoppable("test", 0), stop.working():
        with stop.finishing():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert cut == []
        wait_for(cut)
    assert cut == [0]


def test_finishing_has_an_end(cut: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "FINISHING_LIMIT_S", 0.3)
    stop = StopFlag()
    with stoppable("test", 0), stop.working(), stop.finishing():
        signal.raise_signal(signal.SIGTERM)
        wait_for(cut)
    assert cut == [0]


def test_a_signal_unwinds_what_has_to_put_something_away(cut: list[int]) -> None:
    put_away = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not interrupt this
            put_away.append(1)

    with pytest.raises(Ended) as ended, stoppable("test"), StopFlag().unwinding():
        work()
    assert put_away == [1]
    assert ended.value.code == 128 + signal.SIGINT


def test_a_signal_that_came_in_time_is_the_last_word(cut: list[int]) -> None:
    """Nobody goes on to work after having been told to stop."""
    stop = StopFlag()
    with stoppable("test"):
        with stop.working():
            signal.raise_signal(signal.SIGTERM)
        with stop.working():
            assert stop()


def test_signals_are_given_back(cut: list[int]) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    threads = threading.active_count()
    with stoppable("test"):
        assert catches(signal.SIGTERM)  # from the start
        with StopFlag().working():
            pass
        assert catches(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert not catches(signal.SIGTERM)
    ends_s = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_a_process_that_outlives_its_terminal_goes_on_doing_so(cut: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable("test"), StopFlag().working():
        signal.raise_signal(signal.SIGHUP)
        assert not StopFlag()()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_the_first_process_of_a_container_ends_though_the_kernel_spares_it(
    cut: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping.os, "getpid", lambda: 1)
    with pytest.raises(Ended), stoppable("test"):
        signal.raise_signal(signal.SIGTERM)
