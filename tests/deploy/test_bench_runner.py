"""Running a comparison's cells: what is kept, what fails, what goes on from what."""

import dataclasses
import io
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_run import FinishedRun
from patience import HANG_S
from rich.console import Console

from agent.process import terminal
from deploy.bench import runner
from deploy.bench.cells import Cell, Step, compose
from deploy.bench.estimate import Effort, Estimate
from deploy.bench.fork import BEGINNING_FILE, FORK_FILE, fork_run, inherited_sessions
from deploy.bench.results import (
    ResultError,
    chunk_size,
    collect_result,
    read_result,
    refuse_other_settings,
    write_result,
)
from deploy.bench.runner import Pace, Runner, hold, run_missing, steps_left
from deploy.local.checker import recount
from deploy.local.placement import BadSetting
from deploy.local.processes import ProcessFailed
from deploy.local.recorded import read_state, write_state
from deploy.local.records import read_records
from deploy.local.runfolder import recorded_settings
from deploy.local.summary import build_summary

OVERRIDES = ("suite=toy", "budget=smoke", "method=ewc")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    run = FinishedRun(tmp_path / "beginning")
    run.add_everything()
    run.write()
    state = read_state(run.run_dir) | {"settings": recorded_settings(compose(OVERRIDES))}
    write_state(run.run_dir, state)
    config = run.run_dir / "config" / "run.yaml"
    config.write_text(
        config.read_text() + "  model_dir: nowhere\n  architecture: {chunk_size: 4}\n"
    )
    return run.run_dir


def test_a_fork_has_done_what_its_beginning_did_and_is_not_finished(
    finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "cell"
    run_dir.mkdir()
    (run_dir / "lock").touch()  # of a start that was killed before it had a state
    mine = tmp_path / ".cell.partial" / "notes"
    mine.parent.mkdir()
    mine.touch()  # not ours, whatever its name
    (finished / "lock").touch()
    config = compose(("suite=toy", "budget=smoke"))
    fork_run(finished, run_dir, config)
    state = read_state(run_dir)
    assert "finished" not in state
    assert state["settings"] == recorded_settings(config)
    assert state["sessions"] == read_state(finished)["sessions"]
    assert inherited_sessions(run_dir) == 1
    assert mine.exists()
    assert not any((run_dir / name).exists() for name in ("lock", "learner/results.json"))
    with sqlite3.connect(run_dir / "learner" / "learner.db") as db:
        last = db.execute("SELECT checkpoint_sha256 FROM updates ORDER BY update_id").fetchall()[-1]
    fork = json.loads((run_dir / "learner" / FORK_FILE).read_text())
    assert fork == {"checkpoint_sha256": last[0]}
    write_state(run_dir, state | {"mark": 1})
    fork_run(finished, run_dir, config)  # a run that has begun is left alone
    assert read_state(run_dir)["mark"] == 1


def test_a_folder_with_anything_else_in_it_is_not_replaced(finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / "cell" / "notes.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(BadSetting, match=r"is no run and holds notes\.txt; move it away"):
        fork_run(finished, tmp_path / "cell", compose(("suite=toy", "budget=smoke")))
    assert mine.exists()


def test_nothing_goes_on_from_a_run_that_is_not_finished(finished: Path, tmp_path: Path) -> None:
    write_state(finished, read_state(finished) | {"finished": False})
    with pytest.raises(ProcessFailed, match="is not finished"):
        fork_run(finished, tmp_path / "cell", compose(OVERRIDES))
    assert not (tmp_path / "cell").exists()


def test_a_fork_of_the_base_has_no_checkpoint_to_go_on_from(finished: Path, tmp_path: Path) -> None:
    with sqlite3.connect(finished / "learner" / "learner.db") as db:
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute("DELETE FROM updates")
    fork_run(finished, tmp_path / "cell", compose(OVERRIDES))
    assert not (tmp_path / "cell" / "learner" / FORK_FILE).exists()


def test_a_result_says_what_the_run_cost_and_comes_back_as_written(
    finished: Path, tmp_path: Path
) -> None:
    records = read_records(finished)
    summary = build_summary(records, recount(records))
    result = collect_result("ewc-seed0", OVERRIDES, records, summary)
    episodes = len(records.ends)
    assert result.cost["environment_steps"] == 9 * episodes
    assert result.cost["chunk_forwards"] == 3 * episodes  # 9 steps in chunks of 4
    assert result.cost["learned_chunks"] == 2 * 6
    assert result.time_s == {"wait": 2.0, "learn": 4.0, "publish": 1.0}
    assert result.cost["own_wall_s"] == result.cost["wall_s"] == 100.0
    assert result.curve == [[0, 1, 2, 4], [1, 2, 2, 4]]
    assert result.rollout.figures()["fwt_libero_train"] is not None
    assert result.adapters == ["v00001-aaaaaaaaaaaa", "v00002-bbbbbbbbbbbb"]
    path = write_result(tmp_path / "results", result)
    assert read_result(path) == result
    shutil.copytree(finished, tmp_path / "fork")
    (tmp_path / "fork" / BEGINNING_FILE).write_text('{"sessions": 1}')
    forked = read_records(tmp_path / "fork")
    assert collect_result("x", OVERRIDES, forked, summary).cost["own_wall_s"] == 0


def test_a_result_of_other_settings_is_refused_and_of_fewer_is_not(finished: Path) -> None:
    records = read_records(finished)
    summary = build_summary(records, recount(records))
    result = collect_result("ewc-seed0", OVERRIDES, records, summary)
    refuse_other_settings(result, compose(OVERRIDES), finished)
    older = json.loads(json.dumps(result.settings))
    del older["learner"]["continual"], older["agent"]["lease_s"]
    older["agent"]["dropped"] = 1
    later = dataclasses.replace(result, settings=older)
    refuse_other_settings(later, compose(("suite=toy", "budget=smoke")), finished)
    with pytest.raises(ResultError, match=r"was made with learner\.algorithm\.learning_rate="):
        refuse_other_settings(
            result, compose((*OVERRIDES, "learner.algorithm.learning_rate=1")), finished
        )


@pytest.mark.parametrize(
    ("architecture", "expected"), [({"chunk_size": 3}, 3), ({"variant": "openvla"}, 1), ({}, None)]
)
def test_a_chunk_is_as_long_as_the_model_says(
    architecture: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    model = {"architecture": architecture, "model_dir": str(tmp_path)}
    assert chunk_size(model) == expected
    (tmp_path / "config.json").write_text('{"chunk_size": 7}')
    assert chunk_size(model) == (expected or 7)


def cells(*names: str) -> dict[str, Cell]:
    return {name: Cell(name, "ewc", 0, OVERRIDES) for name in names}


def test_what_fails_is_named_and_the_rest_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run_program(module: str, words: list[str], log_path: Path, show: object) -> None:
        started.append(log_path.stem)
        run_dir = tmp_path / "runs" / log_path.relative_to(tmp_path / "runs").with_suffix("")
        if "bad" in log_path.stem:
            raise ProcessFailed("learner: no memory left")
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(finished, run_dir)

    monkeypatch.setattr(runner, "run_program", run_program)
    base, bad = Step("beginnings/base", OVERRIDES), Step("beginnings/bad", OVERRIDES)
    plans = [
        Step("one", OVERRIDES, bad),
        Step("two", OVERRIDES, bad),
        Step("three", OVERRIDES, base),
    ]
    found = Estimate(3, tuple(plans), 0.1, 0)
    made = Runner(tmp_path / "runs", tmp_path / "results", found, Console(quiet=True))
    reports: list[int] = []
    assert made.run(cells("one", "two", "three"), plans, lambda: reports.append(1)) == [
        "one",
        "two",
    ]
    assert started == ["bad", "base", "three"]  # what failed is not tried again for the second
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["three.json"]
    assert reports == [1]
    assert steps_left(tmp_path / "runs", plans) == [bad, plans[0], plans[1]]


def test_a_log_tells_how_far_a_long_run_is(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()

    def run_program(
        module: str, words: list[str], log_path: Path, show: Callable[[], None]
    ) -> None:
        show()
        deadline_s = time.monotonic() + HANG_S
        while "one  0%" not in stream.getvalue():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        shutil.copytree(finished, tmp_path / "runs" / "one")

    monkeypatch.setattr(runner, "run_program", run_program)
    monkeypatch.setattr(terminal, "PLAIN_PERIOD_S", 0.01)
    found = Estimate(1, (Step("one", OVERRIDES),), 0.1, 0)
    made = Runner(tmp_path / "runs", tmp_path / "results", found, terminal.new_console(stream))
    assert made.run(cells("one"), [Step("one", OVERRIDES)], lambda: None) == []
    assert all(line.isprintable() for line in stream.getvalue().splitlines())


def test_a_run_of_other_settings_fails_alone(finished: Path, tmp_path: Path) -> None:
    """Its folder was there before; the cells after it are still run."""
    runs = tmp_path / "runs"
    for name in ("stale", "good"):
        shutil.copytree(finished, runs / name)
    slower = (*OVERRIDES, "learner.algorithm.learning_rate=1")
    known = cells("good") | {"stale": Cell("stale", "ewc", 0, slower)}
    plans = [Step("stale", slower), Step("good", OVERRIDES)]
    console = Console(record=True, file=io.StringIO(), width=200)
    made = Runner(runs, tmp_path / "results", Estimate(2, tuple(plans), 0.1, 0), console)
    assert made.run(known, plans, lambda: None) == ["stale"]
    assert "was made with learner.algorithm.learning_rate=" in console.export_text()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["good.json"]


def test_a_model_must_be_there_to_run_and_need_not_be_to_report(tmp_path: Path) -> None:
    overrides = (*OVERRIDES, f"model.model_dir={tmp_path}/none")
    assert compose(overrides).tree["model"]["model_dir"] == f"{tmp_path}/none"
    cell = Cell("cell", "ewc", 0, overrides)
    console = Console(quiet=True)
    folders = (tmp_path / "runs", tmp_path / "results")
    assert run_missing([cell], *folders, console, lambda: None, is_estimate=True) == []
    with pytest.raises(BadSetting, match=r"no config\.json in"):
        run_missing([cell], *folders, console, lambda: None, is_estimate=False)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_has_begun_needs_its_beginning_no_more(finished: Path, tmp_path: Path) -> None:
    base = Step("beginnings/base", OVERRIDES)
    first = Step("beginnings/first", OVERRIDES, base)
    cell = Step("cell", OVERRIDES, first)
    assert steps_left(tmp_path, [cell]) == [base, first, cell]
    shutil.copytree(finished, tmp_path / first.folder)
    assert steps_left(tmp_path, [cell]) == [cell]
    shutil.copytree(finished, tmp_path / "cell")
    write_state(tmp_path / "cell", read_state(finished) | {"finished": False})
    shutil.rmtree(tmp_path / first.folder)
    assert steps_left(tmp_path, [cell]) == [cell]


def test_only_one_comparison_uses_a_folder(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(BadSetting, match="in use by another comparison"), \
            hold(tmp_path):  # fmt: skip
        pass
    with hold(tmp_path):
        pass


def test_the_time_left_follows_this_sessions_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(runner, "own_effort", lambda step: Effort(60, 40))
    first, second = Step("first", ()), Step("second", ())
    pace = Pace(Estimate(2, (first, second), episode_s=1.0, measured_in=0))
    assert pace.left_s(first, 0) == 200.0
    assert pace.left_s(first, 50) == 150.0
    now_s[0] = 300.0
    assert pace.left_s(first, 100) == 300.0  # three seconds an episode
    pace.finish(first)
    assert pace.left_s(second, 100) == 300.0  # its beginning had a hundred
