"""Stamps and durations while the machine's wall clock is set back or forward."""

import ast
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from episode_fixtures import make_chunk, make_end, make_meta
from mcap.reader import make_reader
from patience import HANG_S
from wall_clock import WallClock

from agent.episode import mint_episode_id
from agent.episode_writer import EpisodeWriter
from agent.ledger import Ledger
from agent.metrics import LearnerMetrics
from agent.process import clock
from agent.process.clock import SteadyClock, unix_s
from learner.metrics import Exports
from learner.progress import ProgressLog, last_stamp_s
from sim_bridge.heartbeat import Heartbeat, check

ROOT = Path(__file__).parents[2]
HOUR_S = 3600.0
SOON_S = 60.0  # the most that a test waits for a busy machine


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


steps = pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])


@steps
def test_time_runs_evenly_while_the_clock_is_set(wall: WallClock, step_s: float) -> None:
    steady = SteadyClock()
    before_s = steady.unix_s()
    assert abs(before_s - time.time()) < SOON_S
    wall.set_by_s = step_s
    assert 0 <= steady.unix_s() - before_s < SOON_S


@steps
def test_children_share_their_parents_reading(wall: WallClock, step_s: float) -> None:
    parent = SteadyClock()
    wall.set_by_s = step_s
    child = SteadyClock(parent.described)
    before_s = parent.unix_s()
    assert before_s <= child.unix_s() <= parent.unix_s()


@pytest.mark.parametrize(
    "inherited", ["", "0", "0:another-boot", "x:{boot}", "{long}:{boot}", ":{boot}", "٣:{boot}"]
)
def test_a_reading_that_is_not_of_this_boot_is_not_used(inherited: str) -> None:
    _, _, boot = SteadyClock().described.partition(":")
    steady = SteadyClock(inherited.format(boot=boot, long="9" * 5000))
    assert abs(steady.unix_s() - time.time()) < SOON_S


def test_time_goes_on_from_an_earlier_stamp_and_never_back(wall: WallClock) -> None:
    steady = SteadyClock()
    late_s = time.time() + HOUR_S
    steady.go_on_from(late_s)
    assert late_s - 1e-3 <= steady.unix_s() < late_s + SOON_S
    steady.go_on_from(late_s - 2 * HOUR_S)
    assert steady.unix_s() >= late_s - 1e-3


@steps
def test_a_stamp_has_the_age_that_a_monitor_computes(wall: WallClock, step_s: float) -> None:
    exports = Exports(LearnerMetrics())
    name = "perennial_learner_last_progress_timestamp_seconds"
    before = exports.metrics.registry.get_sample_value(name)
    assert before == exports.metrics.registry.get_sample_value(name), "it does not flicker"
    wall.set_by_s = step_s
    after = exports.metrics.registry.get_sample_value(name)
    assert before is not None
    assert after is not None
    assert 0 <= time.time() - after + 0.1 < SOON_S
    assert after - before == pytest.approx(step_s, abs=1.0)


@steps
def test_an_episodes_log_times_never_go_back(
    wall: WallClock, tmp_path: Path, step_s: float
) -> None:
    meta = make_meta()
    path = tmp_path / f"{meta.episode_id}.mcap"
    writer = EpisodeWriter(path, meta)
    for step in range(6):
        wall.set_by_s = step_s * (step > 2)
        writer.append(make_chunk(step))
    writer.seal(make_end(6))
    with path.open("rb") as file:
        messages = [message for _, _, message in make_reader(file).iter_messages()]
    assert [m.sequence for m in messages] == [0, *range(6), 0]
    times_ns = [m.log_time for m in messages]
    assert times_ns == sorted(times_ns)
    assert times_ns[-1] - times_ns[0] < SOON_S * 1e9


def test_episode_ids_sort_by_the_order_of_minting(wall: WallClock) -> None:
    ids = []
    for step_s in (0, -HOUR_S, HOUR_S):
        wall.set_by_s = step_s
        ids.append(mint_episode_id())
        time.sleep(0.002)  # an id has milliseconds
    assert ids == sorted(ids)


def test_a_ledgers_stamps_never_go_back(wall: WallClock, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    ledger = Ledger(path)
    with ledger.transaction():
        ledger.add_activation("v1")
    ledger.close()
    wall.set_by_s = -HOUR_S
    wall.start_process()
    again = Ledger(path)
    with again.transaction():
        again.add_activation("v2")
    stamps_s = [row.unix_s for row in again.activations()]
    again.close()
    assert stamps_s == sorted(stamps_s)


def test_a_progress_log_goes_on_where_it_ended(wall: WallClock, tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    assert last_stamp_s(path) == 0
    log = ProgressLog(path)
    log.write("start")
    wall.set_by_s = -HOUR_S
    log.write("iteration")
    log.close()
    with path.open("a") as file:
        file.write('{"event": "torn')
    steady = SteadyClock()
    steady.go_on_from(last_stamp_s(path))
    assert abs(steady.unix_s() - unix_s()) < SOON_S


@steps
def test_a_heartbeat_is_as_old_as_it_is(wall: WallClock, tmp_path: Path, step_s: float) -> None:
    path = tmp_path / "heartbeat"
    Heartbeat(path).observe(1)
    wall.set_by_s = step_s
    is_alive, line = check(path, SOON_S, clock.since_boot_s())
    assert is_alive, line


def reads_the_wall_clock(path: Path) -> bool:
    """Whether a module names one of Python's functions that do."""
    text = path.read_text()
    if not re.search(r"time\.time|datetime|date\.today|from time import", text):
        return False
    nodes = list(ast.walk(ast.parse(text)))
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    taken = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return bool(names & {"time.time", "time.time_ns", "datetime.datetime"}) or bool(
        taken & {"time", "datetime"}
    )


def test_nothing_else_reads_the_wall_clock() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in ("agent", "learner", "sim_bridge", "deploy", "benchmarks", "docs")
        for path in (ROOT / package).rglob("*.py")
        if reads_the_wall_clock(path)
    }
    # ROS stamps are the machine's time, with which other nodes compare them.
    assert found == {"agent/process/clock.py", "sim_bridge/robots/ros2_messages.py"}


@pytest.mark.slow
def test_a_child_process_has_its_parents_time(wall: WallClock) -> None:
    wall.set_by_s = -HOUR_S  # of the parent alone: the child's own clock is right
    inherited = SteadyClock()
    code = "from agent.process.clock import unix_s; print(unix_s())"
    told = {clock.VARIABLE: inherited.described}
    before_s = inherited.unix_s()
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | told, cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANG_S,
    )  # fmt: skip
    moments_s = [before_s, float(run.stdout), inherited.unix_s()]
    assert all(a <= b + 1e-3 for a, b in itertools.pairwise(moments_s))
