"""When a child counts as hung: by what its work tells, in the time in which somebody listened."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.wire.systemd import MAIN, ServiceManager
from deploy.local.signs import LONGEST_LOOK_S, STOPPED_LIMIT_S, Signs

LIMIT_S, READY_LIMIT_S = 60.0, 600.0
WAIT_S = 60.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Listener:
    """Looks for signs four times a second of its clock."""

    def __init__(self, signs: Signs, clock: Clock) -> None:
        self.signs, self.clock = signs, clock

    def listen(self, seconds: float, pid: int = os.getpid()) -> str:
        """The first hang within so long, or ""."""
        for _ in range(round(seconds * 4)):
            self.clock.now_s += 0.25
            if hang := self.signs.find_hang(pid):
                return hang
        return ""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    clock = Clock()
    signs = Signs(tmp_path / "0.notify", LIMIT_S, READY_LIMIT_S, clock)
    yield Listener(signs, clock)
    signs.close()
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_falls_silent_is_found(listener: Listener) -> None:
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.ready("working")
    assert listener.listen(LIMIT_S - 1) == ""
    assert listener.signs.is_ready
    assert "no sign of life for 60 s" in listener.listen(2)


def test_a_child_of_long_steps_is_given_more_time_and_its_successor_is_not(
    listener: Listener,
) -> None:
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.allow(100.0)
    child.ready("working")
    assert listener.listen(LIMIT_S + 99) == ""
    assert "no sign of life for 160 s" in listener.listen(2)
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.allow(-30.0)  # never less than was asked for
    child.ready("working")
    assert listener.listen(LIMIT_S - 1) == ""
    assert "no sign of life for 60 s" in listener.listen(2)


def test_work_of_any_length_is_no_hang_while_it_gets_on(listener: Listener) -> None:
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.ready("working")
    for _ in range(200):
        child.beat()
        assert listener.listen(LIMIT_S / 3) == ""


def test_one_thread_of_a_child_cannot_vouch_for_another(listener: Listener) -> None:
    environment = listener.signs.expect()
    child = ServiceManager((MAIN, "receiver"), environment, listener.clock)
    child.ready("working")
    for _ in range(3):  # the receiver alone gets on
        thread = threading.Thread(target=child.beat, name="receiver")
        thread.start()
        thread.join(WAIT_S)
        hang = listener.listen(LIMIT_S / 2)
    assert "no sign of life" in hang


def test_loading_has_a_limit_of_its_own(listener: Listener) -> None:
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.show("loading the model")
    assert listener.listen(READY_LIMIT_S - 1) == ""
    assert "not ready after 600 s" in listener.listen(2)


def test_a_child_started_again_begins_anew(listener: Listener) -> None:
    former = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    former.ready("working")
    assert listener.listen(LIMIT_S + 1) != ""
    former.ready("its last words")
    listener.signs.expect()
    assert not listener.signs.is_ready
    assert listener.listen(LIMIT_S + 1) == ""


def test_a_supervisor_that_stood_still_blames_nobody(listener: Listener) -> None:
    child = ServiceManager(environment=listener.signs.expect(), clock=listener.clock)
    child.ready("working")
    assert listener.listen(1) == ""
    for _ in range(int(LIMIT_S / LONGEST_LOOK_S / 2)):
        listener.clock.now_s += 3600  # the whole machine was suspended
        assert listener.signs.find_hang(os.getpid()) == ""


def test_a_process_that_a_signal_stopped_is_found_before_it_could_be_silent_for_long(
    listener: Listener,
) -> None:
    listener.signs.expect()
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert listener.listen(STOPPED_LIMIT_S + 1, process.pid) == ""
            process.send_signal(signal.SIGSTOP)
            deadline_s = time.monotonic() + WAIT_S
            while b") T " not in Path(f"/proc/{process.pid}/stat").read_bytes():
                assert time.monotonic() < deadline_s
            assert listener.listen(STOPPED_LIMIT_S - 1, process.pid) == ""
            assert "a signal had stopped it" in listener.listen(2, process.pid)
        finally:
            process.kill()
