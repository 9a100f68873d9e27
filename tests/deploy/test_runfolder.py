"""The folder of a run's sockets comes and goes with the run."""

import pytest

from deploy.local.runfolder import RunFolder
from deploy.local.settings import BadSetting, socket_folder


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
