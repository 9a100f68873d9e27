"""The adapter store: immutable, content-hashed versions in a folder that two processes share.

`v00007-3f1c...` is a folder of plain files plus `manifest.json`. It is written beside its place,
synced and renamed, so whatever carries a version name is complete; `verify` proves that it is also
unaltered. The learner publishes, the agent reads; neither needs torch for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.durable import (
    StorageError,
    locked,
    may_be_read_later,
    storage_errors,
    sync_folder,
    write_synced,
)
from agent.process.clock import unix_s
from agent.process.shown import shown
from agent.process.stand_ins import describe_stand_in
from agent.records import from_json
from agent.wire.errors import PerennialError, WireError

MANIFEST_NAME = "manifest.json"
_TEMPORARY_PREFIX = ".publish-"
_TEMPORARY = re.compile(r"\.publish-[0-9a-f]{8}")
_ASIDE_PREFIX = ".aside-"  # what was damaged or gave way, kept for a look at it
_VERSION = re.compile(r"v(\d{5})-([0-9a-f]{12})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_MANIFEST_BYTES = 1 << 20

log = logging.getLogger(__name__)


class AdapterError(PerennialError):
    """Base of the store's errors."""


class UnknownAdapter(AdapterError):
    """The store has no such version."""


class AdapterCorrupt(AdapterError):
    """A version's files are not those that were published; it must not be served."""


class AdapterConflict(AdapterError):
    """A version number that is already taken by other content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is and where it comes from; `files` maps each file name to its SHA-256.

    number: counts publishes from 1 (0 is the base model). parent: the version it was trained
    from. metrics: figures at publish. created_unix_s is in no hash.
    """

    version: str
    number: int
    parent: str
    task: str
    base_sha256: str
    method: str
    metrics: dict[str, float]
    files: dict[str, str]
    created_unix_s: float


def version_name(number: int, files: Mapping[str, str]) -> str:
    """Name of the content {file name: SHA-256}: `v<number>-<12 hex of the hash of it all>`."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(files.items()))
    return f"v{number:05d}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


class AdapterStore:
    """Versions under `root`. Any number of readers; publishers take turns through a lock."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        *,
        parent: str,
        task: str,
        base_sha256: str,
        method: str,
        metrics: Mapping[str, float],
        mend: bool = False,
        replaces: Collection[str] = (),
    ) -> Manifest:
        """Make `files` the immutable version `number`; durable when this returns.

        The same number with the same files again is a no-op that returns the stored manifest.
        Raises AdapterConflict if the number has other content, AdapterCorrupt if the same content
        is there but damaged, StorageError, StateLocked if another process publishes right now.

        Args:
            mend: the same content that is damaged is set aside and written again instead.
            replaces: versions of that number that give way to other content; they are set aside.
        """
        _check_publish(number, files)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = Manifest(
            version=version_name(number, hashes),
            number=number,
            parent=parent,
            task=task,
            base_sha256=base_sha256,
            method=method,
            metrics={name: float(value) for name, value in metrics.items()},
            files=dict(sorted(hashes.items())),
            created_unix_s=unix_s(),
        )
        with locked(self._root):
            taken = [name for name in self.versions() if version_number(name) == number]
            given_way = [v for v in taken if v in replaces and v != manifest.version]
            if mend and manifest.version in taken and not self._is_intact(manifest.version):
                given_way.append(manifest.version)
            for version in given_way:
                self._set_aside(version)
                taken.remove(version)
            if taken and taken != [manifest.version]:
                raise AdapterConflict(
                    f"adapter number {number} is {taken[0]}, other content would be "
                    f"{manifest.version}: publish it under the next number"
                )
            if taken:
                self.verify(manifest.version)
            else:
                self._write(manifest, files)
        return self.manifest(manifest.version)

    def versions(self) -> list[str]:
        """All published versions, lowest number first."""
        with storage_errors(self._root):
            if not self._root.is_dir():
                return []
            return sorted(name for name in os.listdir(self._root) if _VERSION.fullmatch(name))

    def manifest(self, version: str) -> Manifest:
        """The manifest, checked field by field; the files behind it are not read.

        Raises UnknownAdapter, AdapterCorrupt.
        """
        return _read_manifest(self._folder(version), version)

    def verify(self, version: str) -> Path:
        """The folder of a version whose every byte is as published.

        Raises UnknownAdapter, AdapterCorrupt.
        """
        folder = self._folder(version)
        _check_files(folder, _read_manifest(folder, version))
        return folder

    def _is_intact(self, version: str) -> bool:
        try:
            self.verify(version)
        except (AdapterError, StorageError) as error:
            if may_be_read_later(error):
                raise
            log.error("adapter %s is damaged and written again: %s", version, error)
            return False
        return True

    def _set_aside(self, version: str) -> None:
        with storage_errors(self._root):
            aside = self._root / f"{_ASIDE_PREFIX}{version}.{secrets.token_hex(4)}"
            os.rename(self._root / version, aside)
            sync_folder(self._root)

    def _folder(self, version: str) -> Path:
        # The pattern also keeps "../" and the like away from the file system.
        with storage_errors(self._root):
            is_there = bool(_VERSION.fullmatch(version)) and (self._root / version).is_dir()
        if not is_there:
            raise UnknownAdapter(
                f"{version!r:.80} is not in {self._root}; `perennial adapters list` shows what is"
            )
        return self._root / version

    def _write(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        with storage_errors(self._root):
            for leftover in self._root.iterdir():
                if _TEMPORARY.fullmatch(leftover.name) and not leftover.is_symlink():
                    shutil.rmtree(leftover)  # a dead publisher's: the lock says nobody is at it
            folder = self._root / f"{_TEMPORARY_PREFIX}{secrets.token_hex(4)}"
            folder.mkdir()
            for name, data in files.items():
                write_synced(folder / name, data)
            text = json.dumps(asdict(manifest), indent=2, allow_nan=False) + "\n"
            write_synced(folder / MANIFEST_NAME, text.encode())
            sync_folder(folder)
            os.rename(folder, self._root / manifest.version)
            sync_folder(self._root)


def verify_copy(folder: Path) -> Manifest:
    """The manifest of a folder whose every byte is as some version was published.

    Its name does not count: a version may have been copied to a plainer one.

    Raises:
        AdapterCorrupt: the folder holds anything else.
    """
    manifest = _read_manifest(folder, None)
    _check_files(folder, manifest)
    return manifest


def _read_manifest(folder: Path, version: str | None) -> Manifest:
    """version: which one `folder` has to hold; None for any."""
    path, name = folder / MANIFEST_NAME, version or str(folder)
    try:
        with storage_errors(path), open(path, "rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        manifest = from_json(Manifest, data, MANIFEST_NAME)
    except (StorageError, WireError) as error:
        if may_be_read_later(error):
            raise
        what = describe_stand_in(path) or f"is unreadable: {error}"
        raise AdapterCorrupt(f"{name}: {MANIFEST_NAME} {what}") from error
    expected = version_name(manifest.number, manifest.files)
    if manifest.version != expected or version not in (None, expected):
        raise AdapterCorrupt(
            f"{name}: {MANIFEST_NAME} describes {shown(manifest.version)}, its files {expected}"
        )
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raises AdapterCorrupt unless the folder holds exactly the files that were published."""
    version = manifest.version
    with storage_errors(folder):
        found = {path.name for path in folder.iterdir()} - {MANIFEST_NAME}
    if found != manifest.files.keys():
        raise AdapterCorrupt(
            f"{version}: has files {sorted(found)}, expected {sorted(manifest.files)}"
        )
    for name, expected in manifest.files.items():
        sha256 = _file_sha256(folder / name)
        if sha256 != expected:
            what = describe_stand_in(folder / name) or (
                f"has SHA-256 {sha256[:12]}, published was {expected[:12]}"
            )
            raise AdapterCorrupt(f"{version}/{name} {what}")


def version_number(version: str) -> int:
    """The number in a version's name."""
    return int(version[1:6])


def _file_sha256(path: Path) -> str:
    with storage_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_publish(number: int, files: Mapping[str, bytes]) -> None:
    if not 1 <= number <= 99999:
        raise ValueError(f"adapter number must be in 1..99999, got {number}")
    if not files:
        raise ValueError("an adapter needs at least one file")
    for name in files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
            raise ValueError(f"{name!r} cannot be an adapter file; use a plain name")
