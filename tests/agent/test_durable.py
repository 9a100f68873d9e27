"""File systems that cannot do everything, and folders that are made whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from agent import durable
from agent.durable import NoLocks, StorageError, locked, new_folder, replace_file, replacing
from agent.process.shown import complain
from deploy.local.runfolder import RunFolder


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_in_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for hold in (locked(tmp_path / "state"), RunFolder(tmp_path / "run").lock()):
        with pytest.raises(NoLocks, match="choose a folder on a local disk") as refused, hold:
            pass
        assert "\n" not in str(refused.value)
    with new_folder(tmp_path / "out") as folder:  # one process alone needs no lock
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_another_error_of_a_lock_keeps_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match="Input/output error; check the disk"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    replace_file(tmp_path / "a", b"1")
    with new_folder(tmp_path / "out") as folder:
        (folder / "b").write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() + (tmp_path / "out" / "b").read_bytes() == b"12"


def test_a_folder_that_fails_to_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        replace_file(tmp_path / "a", b"1")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, held, mine = (tmp_path / f".out.{letter * 16}" for letter in "abc")
    for folder in (left, held, mine, tmp_path / ".hidden", tmp_path / "out.partial"):
        folder.mkdir()
        (folder / "data").write_text("x")
    for folder in (left, held):
        (folder / durable._UNFINISHED).touch()
    (tmp_path / ".link").symlink_to(left, target_is_directory=True)
    with (held / durable._UNFINISHED).open("rb") as lock:  # of a process that is still at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with new_folder(tmp_path / "out") as folder:
            (folder / "data").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [held.name, mine.name, ".hidden", "out.partial", ".link", "out"]
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]


def test_nothing_that_is_there_becomes_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "link"):
        with pytest.raises(StorageError, match="something of that name is there"):  # noqa: SIM117
            with new_folder(tmp_path / name):
                pass
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_file_with_the_longest_name_is_replaced(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        replace_file(tmp_path / name, b"1")
        replace_file(tmp_path / name, b"2")
        assert (tmp_path / name).read_bytes() == b"2"
    with pytest.raises(StorageError, match="choose a shorter path"):
        replace_file(tmp_path / ("x" * 256), b"1")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path, mine = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.partial"
    path.write_bytes(b"old")
    mine.write_bytes(b"mine")

    class Broken(Exception):
        pass

    with pytest.raises(Broken), replacing(path) as file:  # noqa: PT012
        file.write(b"ne")
        raise Broken
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert mine.read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_made_leaves_none_above_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a/b/out", "mine/out"):
        with pytest.raises(ZeroDivisionError), new_folder(tmp_path / name):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with new_folder(tmp_path / "a" / "b" / "out"):
        pass
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_what_cannot_be_read_is_blamed_not_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source" / "x.mcap"
    with pytest.raises(StorageError) as found, new_folder(tmp_path / "out"):
        source.read_bytes()
    assert str(found.value) == f"{source}: No such file or directory; check the disk"
    with (
        pytest.raises(StorageError, match="out: No such file"),
        new_folder(tmp_path / "out") as new,
    ):
        (new / "none" / "x").write_bytes(b"")
    with pytest.raises(OSError, match="Is a directory") as refused:
        tmp_path.read_bytes()
    complain("perennial bench", refused.value)
    assert capsys.readouterr().err == (
        f"perennial bench: {tmp_path}: Is a directory; a folder is where a file is needed: choose "
        "another path\n"
    )
