"""Children that crash, refuse, finish or will not stop, as real processes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_S

from deploy.local import processes
from deploy.local.processes import Child, ProcessFailed, ProcessRefused, ProcessSpec
from deploy.local.signs import Signs

pytestmark = pytest.mark.slow

MakeChild = Callable[..., Child]


@pytest.fixture
def make_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeChild]:
    """Makes a child that runs the given code; whatever still runs at the end is stopped."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    children: list[Child] = []

    def make(code: str, restart_limit: int = 2, **more: Any) -> Child:
        (tmp_path / "a_child.py").write_text(code)
        spec = ProcessSpec("child", "a_child", tmp_path / "c.yaml", tmp_path / "child.log", 1)
        child = Child(spec, restart_limit, 0.01, **more)
        children.append(child)
        return child

    yield make
    for child in children:
        child.stop(limit_s=0.1)


def watch_until_end(child: Child) -> int | None:
    """The child's verdict; raises what it raises."""
    deadline_s = time.monotonic() + HANG_S
    while time.monotonic() < deadline_s:
        if (status := child.watch()) is not None:
            return status
        time.sleep(0.01)
    raise AssertionError(f"still running after {HANG_S} s")


def wait_for_text(path: Path, text: str) -> None:
    deadline_s = time.monotonic() + HANG_S
    while text not in path.read_text():
        assert time.monotonic() < deadline_s, f"no {text!r} in {path}"
        time.sleep(0.01)


def test_a_crashed_child_is_started_again_and_counted(
    make_child: MakeChild, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    child = make_child(
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\n"
    )
    child.start()
    assert watch_until_end(child) == 0
    assert child.restarts == 1


def test_a_child_that_keeps_crashing_is_given_up_with_its_reason(make_child: MakeChild) -> None:
    child = make_child("raise SystemExit('the disk is full')", restart_limit=2)
    child.start()
    with pytest.raises(ProcessFailed, match=r"3 times in a row .*the disk is full.*log:"):
        watch_until_end(child)
    assert child.restarts == 2
    assert "the disk is full" in child.trouble


@pytest.mark.parametrize("life_s", [0.0, 3600.0])
def test_however_long_each_life_lasts_ends_without_progress_are_counted(
    make_child: MakeChild, life_s: float
) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += life_s + 1.0
        return now_s

    child = make_child("raise SystemExit('NaN in the loss')", clock=clock, measure=lambda: 7)
    child.start()
    with pytest.raises(ProcessFailed, match=r"3 times in a row without progress .*NaN"):
        watch_until_end(child)


def test_a_child_that_achieves_something_in_each_life_is_never_given_up(
    make_child: MakeChild, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    child = make_child(
        f"import pathlib\ndone = pathlib.Path({str(done)!r})\n"
        "count = len(done.read_text()) if done.exists() else 0\n"
        "done.write_text('x' * (count + 1))\n"
        "if count < 8:\n    raise SystemExit('again')\n",
        measure=lambda: len(done.read_text()) if done.exists() else None,
    )
    child.start()
    assert watch_until_end(child) == 0
    assert child.restarts == 8


def test_a_trouble_is_over_once_something_is_achieved(
    make_child: MakeChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MEASURE_PERIOD_S", 0.0)
    mark, achieved = tmp_path / "mark", 0
    child = make_child(
        f"import pathlib, time\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    raise SystemExit('no memory')\n"
        "print('up')\ntime.sleep(60)\n",
        measure=lambda: achieved,
    )
    child.start()
    deadline_s = time.monotonic() + HANG_S
    while child.restarts == 0:
        assert time.monotonic() < deadline_s
        child.watch()
    assert "no memory" in child.trouble
    child.watch()
    assert "no memory" in child.trouble
    achieved = 1
    child.watch()
    assert child.trouble == ""


def test_a_child_that_falls_silent_is_killed_and_its_log_says_why(
    make_child: MakeChild, tmp_path: Path
) -> None:
    signs = Signs(tmp_path / "0.notify", limit_s=1.0, ready_limit_s=HANG_S)
    child = make_child(
        "import time\nfrom agent.wire.systemd import ServiceManager\n"
        "ServiceManager().ready('working')\ntime.sleep(600)\n",
        restart_limit=0,
        signs=signs,
    )
    child.start()
    with pytest.raises(ProcessFailed, match="killed, because it gave no sign of life for 1 s"):
        watch_until_end(child)
    assert "no sign of life" in child.spec.log_path.read_text()


def test_a_stopped_child_is_stopped_for_good(make_child: MakeChild) -> None:
    child = make_child("import time\nprint('up')\ntime.sleep(60)\n")
    child.start()
    wait_for_text(child.spec.log_path, "up")
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    assert child.stop(limit_s=HANG_S), "it need not be killed"


def test_refused_settings_are_not_tried_again(make_child: MakeChild) -> None:
    child = make_child("import sys; print('port 1 is in use'); sys.exit(2)")
    child.start()
    with pytest.raises(ProcessRefused, match="child: port 1 is in use"):
        watch_until_end(child)
    assert child.restarts == 0


def test_a_deaf_child_is_killed(make_child: MakeChild) -> None:
    child = make_child(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf')\ntime.sleep(60)\n"
    )
    child.start()
    wait_for_text(child.spec.log_path, "deaf")
    assert not child.stop(limit_s=0.2)
    assert not child.is_running


def test_a_child_stops_on_sigterm(make_child: MakeChild) -> None:
    child = make_child("import time\nprint('up')\ntime.sleep(60)\n")
    child.start()
    wait_for_text(child.spec.log_path, "up")
    assert child.stop(limit_s=HANG_S)


def test_a_child_gets_its_share_of_threads_and_a_group_of_its_own(make_child: MakeChild) -> None:
    child = make_child(
        "import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'],"
        " os.getpgid(0) == os.getpid(), os.getsid(0))\n"
    )
    child.start()
    assert watch_until_end(child) == 0
    assert child.last_line() == f"1 PASSIVE True {os.getsid(0)}"
