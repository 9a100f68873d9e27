"""The folder of a run's sockets comes and goes with the run; its settings stay what they were."""

import json
import os
import socket

import pytest
from wall_clock import WallClock

from deploy.local.placement import BadSetting, socket_folder
from deploy.local.processes import PACKAGE_ROOT
from deploy.local.recorded import STATE_NAME
from deploy.local.runfolder import OWN_MODELS, RunFolder, hold_lock
from deploy.local.settings import compose_run


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    short = tmp_path_factory.mktemp("run")  # a socket's path has 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    return RunFolder(tmp_path / "run")


def test_the_socket_folder_is_removed_at_the_end_and_after_a_failure(folder):
    path = socket_folder(folder.path)
    with folder.sockets():
        (path / "robots.sock").touch()
        assert path.stat().st_mode & 0o777 == 0o700
    assert not path.exists()
    with pytest.raises(FileExistsError), folder.sockets():
        path.mkdir()  # fails
    assert not path.exists()


def test_what_a_killed_run_left_is_removed_by_the_next_one(folder):
    path = socket_folder(folder.path)
    path.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path / "operator.sock"))
    with folder.sockets():
        assert list(path.iterdir()) == []
    assert not path.exists()


def test_a_folder_of_somebody_else_is_left_alone(folder):
    path = socket_folder(folder.path)
    path.mkdir(mode=0o755)
    (path / "operator.sock").touch()
    with pytest.raises(BadSetting, match="not a private folder"), folder.sockets():
        pass
    assert (path / "operator.sock").exists()


@pytest.fixture
def compose(folder, tmp_path):
    """Composes the run of `folder` with settings by hand."""
    (tmp_path / "config.json").write_text("{}")
    return lambda *given: compose_run([f"model.model_dir={tmp_path}", *given])


def begin(folder, config, edit):
    """The run as another release began it: `edit` changes the record."""
    folder.path.mkdir()
    assert not folder.prepare(config, {})
    path = folder.path / STATE_NAME
    state = json.loads(path.read_text())
    edit(state["settings"])
    path.write_text(json.dumps(state))


def forget(settings):
    """What an older release did not have, and something that it had."""
    del settings["agent"]["lease_s"], settings["learner"]["rounding"]
    del settings["suite"]["tasks"][1]["horizon_steps"]
    settings["agent"]["dropped"] = 1


def test_a_release_may_add_and_drop_settings(folder, compose, caplog):
    begin(folder, compose("seed=3", "agent.max_batch=7"), forget)
    assert folder.prepare(compose("seed=3", "agent.max_batch=7", "probe_rate_hz=0"), {})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "agent.dropped=1" in warning
    caplog.clear()
    assert folder.prepare(compose("seed=3", "agent.max_batch=7"), {})  # now it is recorded
    assert caplog.records == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["seed=4"], "begun with seed=0, not 4 (also: learner.seed); "),
        (["agent.max_batch=7"], "begun with agent.max_batch=32, not 7; "),
        (["agent.lease_s=5.0"], "without agent.lease_s, which is as agent.lease_s=30.0, not 5.0; "),
        (
            ["learner.rounding.weight_cap=3.0"],
            "without learner.rounding.weight_cap, which is as learner.rounding.weight_cap=2.0, not",
        ),
        (["agent={lease_s: 5.0}"], "which is as agent.lease_s=30.0, not 5.0; "),
        (["agent.lease_s=5.0", "seed=4"], "seed=0, not 4 (also: agent.lease_s, learner.seed); "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nobody_may_change_a_setting_that_was_there_or_is_new(folder, compose, given, words):
    begin(folder, compose(), forget)
    with pytest.raises(BadSetting) as refusal:
        folder.prepare(compose(*given), {})
    assert words in str(refusal.value)
    assert "run_dir=FOLDER" in str(refusal.value)
    assert folder.prepare(compose(), {})  # the refusal changed nothing


def forget_how_success_counts(settings):
    """As runs were recorded when an episode always ended at success."""
    for section in (settings["suite"], settings["learner"]["suite"], settings["sim"]):
        del section["stop_at_success"]
    del settings["suite"]["env_mb"]


def test_a_run_goes_on_counting_success_as_it_began(folder, compose):
    begin(folder, compose(), forget_how_success_counts)
    with pytest.raises(BadSetting, match=r"begun without sim\.stop_at_success, which is as"):
        folder.prepare(compose("suite.stop_at_success=false"), {})
    assert folder.prepare(compose(), {})


def test_a_run_may_go_on_with_another_number_of_workers(folder, compose, monkeypatch):
    monkeypatch.setattr("deploy.local.settings.count_workers", lambda *_: 3)
    begin(folder, compose("suite.workers=auto"), lambda settings: None)
    for name in ("sim-0", "sim-2"):
        (folder.path / name).mkdir()
        (folder.path / name / "client.jsonl").touch()
    monkeypatch.setattr("deploy.local.settings.count_workers", lambda *_: 1)
    config = compose("suite.workers=auto")
    assert folder.prepare(config, {})
    logs = [path.parent.name for path in folder.client_logs(config.settings.workers)]
    assert logs == ["sim-0", "sim-2"]  # what sim-2 did is not forgotten


def test_the_number_of_workers_is_free_and_older_records_of_it_count_for_nothing(
    folder, compose, caplog
):
    begin(folder, compose("workers=2"), lambda settings: settings.update(workers=2))
    assert folder.prepare(compose("workers=1"), {})
    assert folder.prepare(compose("workers=3"), {})
    assert "set no more" not in caplog.text


def test_robots_own_tasks_may_come_at_any_time(folder, compose):
    begin(folder, compose(), lambda settings: None)
    assert folder.prepare(compose("+agent.tasks.pour.suite=arm"), {})
    with pytest.raises(BadSetting, match=r'begun with agent\.tasks\.pour\.suite="arm", not "leg"'):
        folder.prepare(compose("+agent.tasks.pour.suite=leg"), {})


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_run_with_a_bundled_model_goes_on_where_the_package_lies_elsewhere(folder, name):
    config = compose_run([f"model.model_dir={name}"], find=lambda name: PACKAGE_ROOT / name)

    def move(settings):
        assert settings["model"]["model_dir"] == name, "recorded by its place in the package"
        settings["model"]["model_dir"] = f"/elsewhere/{name}"  # as former releases did

    begin(folder, config, move)
    assert folder.prepare(config, {})


def test_a_run_with_another_model_is_not_resumed(folder, compose):
    begin(folder, compose(), lambda settings: None)
    with pytest.raises(BadSetting, match=r"model\.model_dir"):
        folder.prepare(compose_run(["model.model_dir=agent/assets/nano"]), {})


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0], ids=["back", "forward"])
def test_sessions_last_as_long_as_they_do_while_the_clock_is_set(
    folder, compose, monkeypatch, step_s
):
    wall = WallClock(monkeypatch)
    begin(folder, compose(), lambda settings: None)
    wall.set_by_s = step_s
    folder.keep({}, finished=True)
    (session,) = json.loads((folder.path / STATE_NAME).read_text())["sessions"]
    assert 0 <= session["ended_unix_s"] - session["began_unix_s"] < 60


def test_a_session_begins_after_the_one_before_though_the_clock_was_set_back(
    folder, compose, monkeypatch
):
    wall = WallClock(monkeypatch)
    begin(folder, compose(), lambda settings: None)
    wall.set_by_s = -3600.0
    wall.start_process()
    assert folder.prepare(compose(), {})
    first, second = json.loads((folder.path / STATE_NAME).read_text())["sessions"]
    assert first["ended_unix_s"] - 1e-3 <= second["began_unix_s"] < first["ended_unix_s"] + 60


def test_another_programs_folder_is_not_begun_in(folder, compose):
    mine = folder.path / "config" / "agent.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with folder.lock(), pytest.raises(BadSetting, match="the folder is another program's"):
        folder.prepare(compose(), {})
    assert mine.read_text() == "mine"
    assert os.listdir(folder.path) == ["config"]


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, compose):
    deep = RunFolder(tmp_path / "a" / "b")
    with deep.lock():
        deep.prepare(compose(), {})
        deep.withdraw(compose())
    assert not (tmp_path / "a").exists()
    with deep.lock():
        deep.prepare(compose(), {})
    assert (deep.path / "lock").is_file()  # it stays: two could hold it


def test_a_lock_that_was_removed_is_held_by_nobody(folder):
    folder.path.mkdir()
    path = folder.path / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()  # by who held it, and could not begin
    with pytest.raises(BadSetting, match="in use"), hold_lock(descriptor, path, "in use"):
        pass
