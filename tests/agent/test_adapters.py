"""A version is immutable, content-hashed and never half there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_S

from agent.adapters import (
    MANIFEST_NAME,
    AdapterConflict,
    AdapterCorrupt,
    AdapterStore,
    Manifest,
    UnknownAdapter,
)
from agent.durable import StateLocked, StorageError, locked

FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": bytes(range(256)) * 8}


def publish(
    store: AdapterStore,
    number: int = 1,
    files: dict[str, bytes] | None = None,
    mend: bool = False,
) -> Manifest:
    return store.publish(
        number,
        files or FILES,
        parent="base",
        task="left",
        base_sha256="0" * 64,
        method="grpo",
        metrics={"success": 0.5},
        mend=mend,
    )


def test_published_is_found_and_verified(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    assert store.versions() == []
    first, second = publish(store), publish(store, 2, {**FILES, "extra.json": b"{}"})
    assert store.versions() == [first.version, second.version]
    assert store.manifest(first.version) == first
    folder = store.verify(first.version)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST_NAME} == FILES


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first = publish(store)
    stat = (tmp_path / first.version).stat()
    assert publish(store) == first
    assert (tmp_path / first.version).stat().st_mtime_ns == stat.st_mtime_ns


def test_a_number_is_never_reused_with_other_content(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first = publish(store)
    with pytest.raises(AdapterConflict, match="adapter number 1"):
        publish(store, 1, {**FILES, "adapter_config.json": b'{"r": 8}'})
    assert store.versions() == [first.version]
    assert store.verify(first.version)


def test_no_altered_byte_is_served(tmp_path: Path) -> None:
    """Every file of the version, its manifest included, at its first, middle and last byte."""
    store = AdapterStore(tmp_path)
    manifest = publish(store)
    covered = [MANIFEST_NAME, *FILES]
    for name in covered:
        path = tmp_path / manifest.version / name
        intact = path.read_bytes()
        for position in (0, len(intact) // 2, len(intact) - 2):
            altered = bytearray(intact)
            altered[position] ^= 1
            path.write_bytes(altered)
            if name == MANIFEST_NAME and b'"created_unix_s"' in intact[position - 60 : position]:
                continue  # not hashed: only says when
            with pytest.raises(AdapterCorrupt):
                store.verify(manifest.version)
        path.write_bytes(intact)
    assert store.verify(manifest.version)


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_a_missing_or_short_file_is_corrupt(tmp_path: Path, name: str) -> None:
    store = AdapterStore(tmp_path)
    path = tmp_path / publish(store).version / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(AdapterCorrupt):
        store.verify(path.parent.name)
    path.unlink()
    with pytest.raises(AdapterCorrupt):
        store.verify(path.parent.name)


def test_an_added_file_is_corrupt(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    manifest = publish(store)
    (tmp_path / manifest.version / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterCorrupt, match=r"adapter_model\.bin"):
        store.verify(manifest.version)


def test_a_renamed_version_is_corrupt(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    manifest = publish(store)
    os.rename(tmp_path / manifest.version, tmp_path / "v00007-000000000000")
    with pytest.raises(AdapterCorrupt, match="v00007"):
        store.verify("v00007-000000000000")


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    manifest = publish(store)
    path = tmp_path / manifest.version / MANIFEST_NAME
    content = json.loads(path.read_bytes())
    content["files"]["../../secret"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(AdapterCorrupt):
        store.verify(manifest.version)


@pytest.mark.parametrize("version", ["base", "", "../x", "v00001-000000000000", "v1-ff", "v" * 500])
def test_unknown_versions(tmp_path: Path, version: str) -> None:
    publish(AdapterStore(tmp_path))
    with pytest.raises(UnknownAdapter):
        AdapterStore(tmp_path).verify(version)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", MANIFEST_NAME, "a\n"])
def test_file_names_must_be_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        publish(AdapterStore(tmp_path), 1, {name: b"x"})


def test_publishers_take_turns(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StateLocked, match="in use"):
        publish(AdapterStore(tmp_path))
    assert publish(AdapterStore(tmp_path)).number == 1


KILLED_PUBLISHER = """
import os, signal, sys
from pathlib import Path
from agent import adapters
calls = 0
name, at = sys.argv[2], int(sys.argv[3])
owner = adapters if hasattr(adapters, name) else os
real = getattr(owner, name)
def fatal(*args):
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(owner, name, fatal)
adapters.AdapterStore(Path(sys.argv[1])).publish(
    1, {"a.bin": b"x" * 9000, "b.bin": b"y"}, parent="base", task="left",
    base_sha256="0" * 64, method="grpo", metrics={})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("write_synced", 2),
        ("write_synced", 3),
        ("sync_folder", 1),
        ("rename", 1),
        ("sync_folder", 2),
    ],
)
def test_a_kill_in_the_middle_of_publishing(tmp_path: Path, call: str, at: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED_PUBLISHER, str(tmp_path), call, str(at)],
        check=False,
        timeout=HANG_S,
    )
    assert process.returncode == -signal.SIGKILL
    store = AdapterStore(tmp_path)
    files = {"a.bin": b"x" * 9000, "b.bin": b"y"}
    published_before = store.versions()
    assert len(published_before) == (1 if (call, at) == ("sync_folder", 2) else 0)
    for version in published_before:
        assert store.verify(version)
    manifest = publish(store, 1, files)
    assert store.versions() == [manifest.version]
    assert store.verify(manifest.version)
    assert {p.name for p in tmp_path.iterdir()} == {manifest.version, "lock"}


def test_a_version_that_cannot_be_read_just_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(tmp_path)
    version = publish(store).version

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("agent.adapters.open", refuse, raising=False)
        for read in (store.manifest, store.verify):
            with pytest.raises(StorageError, match="raise the limit of open files"):
                read(version)
        with pytest.raises(StorageError, match="raise the limit of open files"):
            publish(store, mend=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == [version]
    assert publish(store, mend=True).version == version
