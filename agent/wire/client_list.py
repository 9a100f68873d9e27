"""clients.yaml: which keys a server lets in, under which name, and what each may do.

clients:
  arm-1:
    key: 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'
    may: [act, report]
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from agent.durable import replace_file
from agent.wire.errors import ConfigError

CLIENTS_FILE = "clients.yaml"
FILE_MAX_BYTES = 1 << 20
DEPTH_MAX = 8  # of nested YAML; the list needs 5
OWNER_ONLY = 0o600

# Not every 40 of these characters are a key, but every key is 40 of them (ZeroMQ RFC 32).
Z85_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

log = logging.getLogger(__name__)


class Permission(StrEnum):
    """What a client may do. A client that may nothing can connect, and is told so."""

    ACT = "act"  # ask for work and for actions
    REPORT = "report"  # say how an episode ended
    OPERATE = "operate"  # what learners and operators do


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a message. name "": a client without keys, or one that is not in the list."""

    name: str
    key: str  # public, Z85
    may: frozenset[Permission]


ANYBODY = Client("", "", frozenset(Permission))  # on a socket without keys


def brief_key(key: str) -> str:
    """Enough of a public key to recognise it."""
    return f"{key[:5]}..."


def check_client(name: str, key: str, may: Iterable[str]) -> Client:
    """A client whose every part is well-formed. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "client name: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a "
            f"letter or digit, got {name[:80]!r}"
        )
    if not Z85_KEY.fullmatch(key):
        raise ConfigError(f"client {name}: key: expected 40 characters of Z85, got {len(key)}")
    unknown = sorted(set(may) - set(Permission))
    if unknown:
        raise ConfigError(
            f"client {name}: may: expected some of {', '.join(Permission)}, got {unknown[0][:80]!r}"
        )
    return Client(name, key, frozenset(map(Permission, may)))


def parse_clients(text: bytes) -> dict[str, Client]:
    """The clients by name. Raises ConfigError for whatever is not exactly as described above."""
    if len(text) > FILE_MAX_BYTES:
        raise ConfigError(f"{len(text)} bytes, at most {FILE_MAX_BYTES} are read")
    try:
        tree = yaml.load(text, _Loader)  # plain strings, lists and dicts
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"no YAML: {type(error).__name__}") from error
    entries = _fields("the file", tree, ("clients",))["clients"]
    if not isinstance(entries, dict):
        raise ConfigError("clients: expected NAME: {key: ..., may: [...]}, one for each client")
    clients: dict[str, Client] = {}
    names_by_key: dict[str, str] = {}
    for name, entry in entries.items():
        client = _parse_client(name, entry)
        other = names_by_key.setdefault(client.key, client.name)
        if other != client.name:
            raise ConfigError(f"clients {other} and {client.name} have the same key")
        clients[client.name] = client
    return clients


def format_clients(clients: Iterable[Client]) -> bytes:
    """The file that `parse_clients` reads."""
    ordered = sorted(clients, key=lambda client: client.name)
    entries = {c.name: {"key": c.key, "may": sorted(map(str, c.may))} for c in ordered}
    text = yaml.safe_dump({"clients": entries}, default_flow_style=None, width=200)
    return b"# Written by `perennial keys`; the server reads it again when it changes.\n" + (
        text.encode()
    )


def read_clients(path: Path) -> dict[str, Client]:
    """The clients by name. Raises ConfigError that names the file."""
    try:
        if path.stat().st_mode & 0o022:
            raise ConfigError(f"others can write it and let themselves in; run: chmod 600 {path}")
        with path.open("rb") as file:
            return parse_clients(file.read(FILE_MAX_BYTES + 1))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"no {path}; make it with: perennial keys init {path.parent}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def write_clients(path: Path, clients: Iterable[Client]) -> None:
    """Replaces the file at once and durably. Raises StorageError, ConfigError."""
    text = format_clients(clients)
    parse_clients(text)  # what the server would refuse is not written
    replace_file(path, text, OWNER_ONLY, is_of_folder=True)


class ClientList:
    """The file as it is now: a change counts from the next look on. For any thread.

    A file that becomes unreadable while the server runs leaves the clients as they were, and every
    attempt to read it in the log: an operator's slip must not stop all robots.

    Raises ConfigError if it cannot be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._by_key = _by_key(read_clients(path))

    def find(self, key: str) -> Client | None:
        """Who has this public key, if anybody; never raises."""
        stamp = self._look()
        if stamp != self._stamp:
            with self._lock:
                self._read_again(stamp)
        return self._by_key.get(key)

    def _read_again(self, stamp: tuple[int, ...]) -> None:
        if stamp == self._stamp:
            return
        try:
            self._by_key = _by_key(read_clients(self._path))
            log.info("%s: %d clients", self._path, len(self._by_key))
        except ConfigError as error:
            log.error("the clients stay as they were: %s", error)
        # Last: another thread that finds this stamp looks a key up without waiting for the lock.
        self._stamp = stamp

    def _look(self) -> tuple[int, ...]:
        """What changes when the file does."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            return (error.errno or 0,)
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Loader(yaml.BaseLoader):
    """Strings, lists and dicts only; a key that is there twice is an error, not the last one.

    Deep nesting is refused at once: the time that it takes grows with its square.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth == DEPTH_MAX:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", None)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a name is there twice", node.start_mark
            )
        return mapping


def _by_key(clients: dict[str, Client]) -> dict[str, Client]:
    return {client.key: client for client in clients.values()}


def _parse_client(name: Any, entry: Any) -> Client:
    if not isinstance(name, str):
        raise ConfigError("a client's name must be a string")
    fields = _fields(f"client {name[:80]!r}", entry, ("key", "may"))
    key, may = fields["key"], fields["may"]
    if not isinstance(key, str):
        raise ConfigError(f"client {name[:80]!r}: key: expected 40 characters of Z85")
    if not isinstance(may, list) or not all(isinstance(each, str) for each in may):
        raise ConfigError(f"client {name[:80]!r}: may: expected a list like [act, report]")
    return check_client(name, key, may)


def _fields(what: str, entry: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != set(names):
        got = ", ".join(str(key)[:40] for key in entry)[:200] if isinstance(entry, dict) else "none"
        raise ConfigError(f"{what}: expected exactly {' and '.join(names)}, got {got}")
    return entry
