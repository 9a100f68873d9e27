"""Runs of the toy suite that are damaged while they are stopped, and then go on to their end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import alter
from toy_run import SETTINGS, TICK_S, Deadline, ToyRun, finish_run

from deploy.local import supervisor
from deploy.local.ledgers import query
from deploy.local.records import Records, read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Interrupted, Supervisor
from deploy.local.tail import JsonTail

pytestmark = pytest.mark.slow

UPDATES = 2  # before the stop: two generations of checkpoints
UNUSED = "SELECT file FROM episodes WHERE disposition IS NULL AND counted = 1"


class Stop(Deadline):
    """Asks the run to stop once it has two updates, and episodes that wait for the next one."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._learner = run_dir / "learner"
        self._events = JsonTail(self._learner / "progress.jsonl")
        self._updates = 0

    def check(self) -> None:
        super().check()
        self._updates += sum(event["event"] == "iteration" for event in self._events.read())
        if self._updates >= UPDATES and query(self._learner / "learner.db", UNUSED):
            raise Interrupted


@pytest.fixture(scope="module")
def stopped(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the middle; it is copied, never changed."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    config = compose_run([*SETTINGS, f"model.model_dir={model_dir}", f"run_dir={run_dir}"])
    folder = RunFolder(run_dir)
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Stop(run_dir)) as running, pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervisor, "POLL_S", TICK_S)
            running.start()
            with pytest.raises(Interrupted):
                running.run(lambda: folder.keep({}))
    return run_dir


@pytest.fixture
def go_on(
    stopped: Path, model_dir: Path, tmp_path: Path
) -> Callable[[Callable[[Path], None]], ToyRun]:
    """Copies the stopped run, damages the copy and runs it to its end."""

    def resume(damage: Callable[[Path], None]) -> ToyRun:
        run_dir = shutil.copytree(stopped, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
        damage(run_dir)
        run = finish_run(run_dir, model_dir)
        assert not any(run.restarts.values()), run.restarts  # nobody died of it
        return run

    return resume


@pytest.fixture(scope="module")
def whole(stopped: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """What the same run comes to when nothing is damaged."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(stopped, run_dir, ignore=shutil.ignore_patterns("lock"))
    return finish_run(run_dir, model_dir).records


def versions(records: Records) -> list[str]:
    return [update.version for update in records.updates]


def quarantined(run_dir: Path) -> int:
    return len(query(run_dir / "learner" / "learner.db", "SELECT episode_id FROM quarantined"))


def test_an_episode_an_adapter_and_the_state_are_damaged(
    go_on: Callable[[Callable[[Path], None]], ToyRun], whole: Records, model_dir: Path
) -> None:
    def damage(run_dir: Path) -> None:
        ((file, *_), *_) = query(run_dir / "learner" / "learner.db", UNUSED)
        alter(run_dir / "learner" / "episodes" / file)
        newest = max((run_dir / "adapters").glob("v*"))
        alter(newest / "adapter_model.safetensors")
        state = run_dir / "state.json"
        state.write_bytes(state.read_bytes()[:200])

    run = go_on(damage).records
    assert versions(run) == versions(whole)
    assert run.results["matrix"] == whole.results["matrix"]
    assert quarantined(run.run_dir) <= 1  # one whose group teaches nothing is not read
    assert list(run.run_dir.glob("state.json.damaged-*"))

    results = run.run_dir / "learner" / "results.json"
    before = json.loads(results.read_text())
    results.write_bytes(results.read_bytes()[:100])
    assert not RunFolder(run.run_dir).is_finished()
    episodes = len(run.agent_rows)
    again = finish_run(run.run_dir, model_dir).records
    assert json.loads(results.read_text()) == before
    assert len(again.agent_rows) == episodes  # nothing was played again


def test_the_newest_checkpoint_is_damaged(
    go_on: Callable[[Callable[[Path], None]], ToyRun], whole: Records
) -> None:
    def damage(run_dir: Path) -> None:
        alter(max((run_dir / "learner" / "checkpoints").iterdir()) / "optimizer.safetensors")

    run = go_on(damage).records
    assert versions(run) == versions(whole)
    assert run.results["matrix"] == whole.results["matrix"]
    log = (run.run_dir / "logs" / "learner.log").read_text()
    assert f"update {UPDATES} is made again" in log


def test_the_agents_folder_is_lost(
    go_on: Callable[[Callable[[Path], None]], ToyRun], stopped: Path, whole: Records
) -> None:
    run = go_on(lambda run_dir: shutil.rmtree(run_dir / "agent")).records
    assert versions(run) == versions(whole)
    assert run.results["matrix"] == whole.results["matrix"]
    assert quarantined(run.run_dir) == 0
    finished = {
        slot
        for (slot,) in query(
            stopped / "learner" / "learner.db", "SELECT slot_id FROM episodes WHERE counted = 1"
        )
    }
    played = {row.slot_id for row in run.agent_rows.values() if row.counted}
    assert finished
    assert not finished & played
    assert read_records(run.run_dir).damaged == []
