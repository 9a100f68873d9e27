"""A disk that loses its power: what is found below a folder after a cut at any point.

`Disk` watches real files while real code writes them. What was synced is kept; what was not may be
lost, half there, or zeros, each file and each name on its own, so that a rename can outlive what
was done before it. A cut lies before and after every sync, rename and removal, every commit of
SQLite, and every `promise` that the code makes to others.

SQLite is trusted to do what it says of itself: a commit is durable from `synchronous = FULL` on. A
connection begins with NORMAL, as in some builds, so that it must be asked for.
"""

from __future__ import annotations

import builtins
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from unittest import mock

_MOVES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir")
_SYNCS = ("fsync", "fdatasync")
_MEMORY = Path("/dev/shm")
_SQLITE_EXTRAS = ("-wal", "-shm", "-journal")
_DATABASE_START = b"SQLite format 3\0"
_FULL = 2  # PRAGMA synchronous


class File:
    """One file, whatever it is called: what is certain of it, and what was written."""

    def __init__(self, content: bytes = b"", synced: bytes = b"") -> None:
        self.content, self.synced = content, synced
        self.is_database = False
        self.commits: list[bytes] = []  # of a database, newer than what is synced


class Folder:
    """One folder: the names that are certain, and the changes that are not."""

    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.synced: dict[str, Node] = {}
        self.pending: list[Change] = []


Node = File | Folder


@dataclass(eq=False)
class Change:
    """Names set or removed (None) in one step. needs: what must have survived for this one."""

    names: dict[str, Node | None]
    needs: Change | None = None


@dataclass(frozen=True)
class Cut:
    """Everything at one moment. Files and folders are by their identity."""

    moment: str
    folders: dict[int, tuple[dict[str, Node], list[Change]]] = field(repr=False)
    files: dict[int, tuple[bytes, bytes, list[bytes]]] = field(repr=False)
    promises: tuple[Any, ...] = field(repr=False)


class Fate(Protocol):
    """What becomes of what was not synced."""

    def keeps(self, change: Change) -> bool:
        """Whether a change of a folder survives."""

    def content(self, synced: bytes, written: bytes) -> bytes:
        """What of a file is found."""

    def commit(self, images: list[bytes]) -> bytes:
        """Which of a database's states is found: `images` begins with the durable one."""


@dataclass(frozen=True)
class Extreme:
    """The same for all. zeros: the sizes survive and the bytes do not; share: of new bytes."""

    name: str
    names_survive: bool
    share: float
    zeros: bool = False

    def keeps(self, change: Change) -> bool:
        return self.names_survive

    def content(self, synced: bytes, written: bytes) -> bytes:
        return cut_content(synced, written, self.share, zeros=self.zeros)

    def commit(self, images: list[bytes]) -> bytes:
        return images[-1 if self.share else 0]


LOST = Extreme("all is lost", names_survive=False, share=0)
ZEROS = Extreme("names with zeros", names_survive=True, share=0, zeros=True)
EXTREMES = (
    LOST,
    ZEROS,
    Extreme("all is kept", names_survive=True, share=1),
    Extreme("names without bytes", names_survive=True, share=0),
    Extreme("names with half", names_survive=True, share=0.5),
)


class Drawn:
    """Each thing on its own, as hypothesis draws it: `draw(low, high)` is an integer."""

    def __init__(self, draw: Callable[[int, int], int]) -> None:
        self._draw = draw

    def keeps(self, change: Change) -> bool:
        return bool(self._draw(0, 1))

    def content(self, synced: bytes, written: bytes) -> bytes:
        if synced == written:
            return written
        return cut_content(synced, written, self._draw(0, 8) / 8, zeros=bool(self._draw(0, 1)))

    def commit(self, images: list[bytes]) -> bytes:
        return images[self._draw(0, len(images) - 1)]


def cut_content(synced: bytes, written: bytes, share: float, *, zeros: bool) -> bytes:
    """`share` of what is new; with `zeros` the rest has its size, too. What is synced stays."""
    if not written.startswith(synced):  # overwritten: nothing of it is certain
        synced = b""
    size = len(synced) + round(share * (len(written) - len(synced)))
    return written[:size] + bytes(len(written) - size) * zeros


class Disk:
    """Watches `root`, which must exist; `cuts` are the moments so far."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.cuts: list[Cut] = []
        self._lock = threading.RLock()
        self._top = Folder()
        self._nodes: dict[int, Node] = {root.stat().st_ino: self._top}
        self._promises: list[Any] = []
        self._look()
        for folder in self._folders():
            self._sync_folder(folder)

    # ---- recording -----------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Records what happens inside the block, on every thread."""
        patches = [mock.patch.object(os, n, partial(self._on_move, getattr(os, n))) for n in _MOVES]
        patches += [
            mock.patch.object(os, n, partial(self._on_sync, getattr(os, n))) for n in _SYNCS
        ]
        connect = sqlite3.connect

        def recorded(*args: Any, **options: Any) -> sqlite3.Connection:
            return connect(*args, **options, factory=partial(_Connection, self))

        patches.append(mock.patch.object(sqlite3, "connect", recorded))
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in patches:
                patch.stop()

    def promise(self, what: Any) -> None:
        """Something was told to others: it must hold after every later cut."""
        with self._lock:
            self._promises.append(what)
            self.mark(f"promised {what!r:.60}")

    def mark(self, moment: str) -> None:
        """A cut here."""
        with self._lock:
            self._look()
            folders = {id(f): (dict(f.synced), list(f.pending)) for f in self._folders()}
            files = {id(f): (f.synced, f.content, list(f.commits)) for f in self._files()}
            self.cuts.append(Cut(moment, folders, files, tuple(self._promises)))

    def _on_move(self, move: Callable[..., None], *args: Any, **options: Any) -> None:
        with self._lock:
            self._look()
            move(*args, **options)
            self._look()
            self.mark(f"{move.__name__} {' '.join(str(a)[-40:] for a in args)}")

    def _on_sync(self, sync: Callable[[int], None], descriptor: int) -> None:
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        with self._lock:
            self.mark(f"before {sync.__name__}")
            node = self._nodes.get(os.fstat(descriptor).st_ino)
            sync(descriptor)
            if isinstance(node, Folder):
                self._sync_folder(node)
            elif node is not None:
                node.synced = node.content
            self.mark(f"after {sync.__name__}")

    def committed(self, path: Path, image: bytes, *, is_durable: bool) -> None:
        """A transaction of the database at `path` has ended."""
        with self._lock:
            self._look()
            folder, file = self._find(path.parent), self._find(path)
            if not isinstance(folder, Folder) or not isinstance(file, File):
                return  # elsewhere
            file.is_database = True
            file.content = image
            file.commits.append(image)
            if is_durable:
                file.synced, file.commits = image, []
                folder.synced[path.name] = file  # SQLite syncs the folder of a new journal
                for change in folder.pending:
                    change.names.pop(path.name, None)
            self.mark(f"commit in {path.name}")

    # ---- the model -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Takes in what has changed below the root since the last look."""
        moved = {id(n): (f, name) for f in self._folders() for name, n in f.entries.items()}
        self._look_into(self.root, self._top, moved)
        present = {id(node) for f in self._folders() for node in f.entries.values()}
        for inode, node in list(self._nodes.items()):
            if id(node) not in present and node is not self._top:
                del self._nodes[inode]  # the number may come back as another file's

    def _look_into(self, path: Path, folder: Folder, moved: dict[int, tuple[Folder, str]]) -> None:
        found: dict[str, Node] = {}
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not entry.name.endswith(_SQLITE_EXTRAS):
                    found[entry.name] = self._node_of(entry)
        self._note_changes(folder, found, moved)
        for name, node in found.items():
            if isinstance(node, Folder):
                self._look_into(path / name, node, moved)
            elif not node.is_database:
                node.content = _read(path / name)
                node.is_database = node.content.startswith(_DATABASE_START)

    def _node_of(self, entry: os.DirEntry[str]) -> Node:
        inode = entry.stat(follow_symlinks=False).st_ino
        node = self._nodes.get(inode)
        if node is None or isinstance(node, Folder) != entry.is_dir(follow_symlinks=False):
            node = self._nodes[inode] = Folder() if entry.is_dir() else File()
        return node

    def _note_changes(
        self, folder: Folder, found: dict[str, Node], moved: dict[int, tuple[Folder, str]]
    ) -> None:
        before = folder.entries
        removed = {name for name in before if name not in found}
        for name in [n for n in found if found[n] is not before.get(n)]:
            change = Change({name: found[name]})
            origin, old_name = moved.get(id(found[name]), (None, ""))
            if origin is folder and old_name in removed:
                change.names[old_name] = None
                removed.discard(old_name)
            elif origin is not None and origin is not folder:
                _leave(origin, old_name, change)
            folder.pending.append(change)
        folder.pending += [Change({name: None}) for name in sorted(removed)]
        folder.entries = found

    def _sync_folder(self, folder: Folder) -> None:
        folder.synced, folder.pending = dict(folder.entries), []
        for node in folder.entries.values():
            if isinstance(node, File) and not self.cuts and not self._promises:
                node.synced = node.content  # there before the watch began

    def _folders(self) -> list[Folder]:
        """Every folder that may be found after a cut."""
        return [node for node in self._reachable() if isinstance(node, Folder)]

    def _files(self) -> list[File]:
        return [node for node in self._reachable() if isinstance(node, File)]

    def _reachable(self) -> list[Node]:
        found: dict[int, Node] = {}
        todo: list[Node] = [self._top]
        while todo:
            node = todo.pop()
            if id(node) in found:
                continue
            found[id(node)] = node
            if isinstance(node, Folder):
                todo += [*node.entries.values(), *node.synced.values()]
                todo += [n for change in node.pending for n in change.names.values() if n]
        return list(found.values())

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self._top
        if not path.is_relative_to(self.root):
            return None
        for part in path.relative_to(self.root).parts:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    # ---- after the cut -------------------------------------------------------------------------

    def remains(self, cut: Cut, fate: Fate) -> dict[str, bytes | None]:
        """What is found: relative path -> content, None for a folder."""
        found: dict[str, bytes | None] = {}
        kept: dict[int, bool] = {}

        def survives(change: Change) -> bool:
            if id(change) not in kept:
                needed = change.needs
                is_pending = needed is not None and any(
                    needed in pending for _, pending in cut.folders.values()
                )
                is_possible = not is_pending or (needed is not None and survives(needed))
                kept[id(change)] = is_possible and fate.keeps(change)
            return kept[id(change)]

        def visit(prefix: str, folder: Folder) -> None:
            synced, pending = cut.folders[id(folder)]
            entries: dict[str, Node | None] = dict(synced)
            for change in pending:
                if survives(change):
                    entries |= change.names
            for name, node in sorted(entries.items()):
                if isinstance(node, Folder):
                    found[f"{prefix}{name}"] = None
                    visit(f"{prefix}{name}/", node)
                elif node is not None:
                    found[f"{prefix}{name}"] = _content(cut.files[id(node)], node, fate)

        visit("", self._top)
        return found


def rebuild(remains: dict[str, bytes | None], folder: Path) -> Path:
    """Writes what was found into `folder`, which must be new."""
    folder.mkdir()
    for name, content in remains.items():
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return folder


@dataclass
class Aftermath:
    """Checks what is found after cuts; what was checked before is not checked again.

    check: gets a folder as it is found and the promises that were made before the cut; it raises
    where something is amiss.
    """

    disk: Disk
    check: Callable[[Path, tuple[Any, ...]], None]
    seen: set[int] = field(default_factory=set)

    def of(self, cut: Cut, fate: Fate) -> None:
        """Rebuilds and checks one, in memory where there is a file system for it."""
        remains = self.disk.remains(cut, fate)
        key = hash((tuple(remains.items()), len(cut.promises)))
        if key in self.seen:
            return
        try:
            with TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
                self.check(rebuild(remains, Path(folder) / "found"), cut.promises)
        except BaseException as error:
            error.add_note(f"after a cut at: {cut.moment}; {fate}; found {sorted(remains)}")
            raise
        self.seen.add(key)

    def of_all(self, fates: Sequence[Fate] = EXTREMES) -> None:
        """Every cut with every one of `fates`."""
        for cut in self.disk.cuts:
            for fate in fates:
                self.of(cut, fate)


class _Connection(sqlite3.Connection):
    """Tells the disk of every commit."""

    def __init__(self, disk: Disk, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._disk = disk
        super().execute("PRAGMA synchronous = NORMAL")

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *args)
        if sql.split(maxsplit=1)[0].upper() not in ("SELECT", "PRAGMA", "BEGIN", "ROLLBACK"):
            self._tell()
        return cursor

    def executescript(self, script: str) -> sqlite3.Cursor:
        cursor = super().executescript(script)
        self._tell()
        return cursor

    def _tell(self) -> None:
        if self.in_transaction:
            return
        (level,) = super().execute("PRAGMA synchronous").fetchone()
        ((_, _, path),) = super().execute("PRAGMA database_list").fetchall()
        self._disk.committed(Path(path), self.serialize(), is_durable=level >= _FULL)


def _leave(origin: Folder, name: str, arrival: Change) -> None:
    """A file has moved to another folder: it is gone from `origin` only if it has arrived."""
    for change in origin.pending:
        if change.names == {name: None} and change.needs is None:
            change.needs = arrival
            return
    origin.entries = {n: node for n, node in origin.entries.items() if n != name}
    origin.pending.append(Change({name: None}, needs=arrival))


def _content(state: tuple[bytes, bytes, list[bytes]], file: File, fate: Fate) -> bytes:
    synced, written, commits = state
    return fate.commit([synced, *commits]) if file.is_database else fate.content(synced, written)


def _read(path: Path) -> bytes:
    try:
        with builtins.open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
