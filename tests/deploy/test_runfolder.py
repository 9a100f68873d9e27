"""The folder of a run's sockets comes and goes with the run."""

import pytest

from deploy.local.placement import BadSetting, socket_folder
from deploy.local.runfolder import RunFolder
from deploy.local.settings import RunConfig, RunSettings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
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
    (path / "operator.sock").touch()
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


def test_a_release_may_add_and_drop_settings_but_nobody_may_change_one(folder):
    folder.path.mkdir()
    begun = {"seed": 0, "agent": {"lease_s": 30.0, "dropped": 1}}
    assert not folder.prepare(config(folder, begun), {})
    upgraded = {"seed": 0, "agent": {"lease_s": 30.0, "added": 2}}
    assert folder.prepare(config(folder, upgraded), {})
    with pytest.raises(BadSetting, match=r"begun with agent.lease_s=30.0, not 5.0; "):
        folder.prepare(config(folder, {"seed": 0, "agent": {"lease_s": 5.0}}), {})


def config(folder, tree):
    settings = RunSettings(folder.path, 0, 1, 0.0, False, 0, 0.0, 0.0, 0.0)
    return RunConfig(settings, tree, {})
