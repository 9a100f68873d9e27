"""CURVE keys in files: who a server is, who a client is, and making both.

A server's folder holds `server.key`, `server.key_secret` and `clients.yaml`; a client's holds
`client.key`, `client.key_secret` and the server's `server.key`. The files are certificates as czmq
and pyzmq write them. A secret file belongs to its owner alone from its first moment on, and its
contents appear in no error, no log and no repr.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import zmq
import zmq.auth
from zmq.utils import z85

from agent.durable import locked, replace_file, storage_errors
from agent.wire.client_list import (
    CLIENTS_FILE,
    FILE_MAX_BYTES,
    OWNER_ONLY,
    Z85_KEY,
    Client,
    brief_key,
    check_client,
    read_clients,
    write_clients,
)
from agent.wire.errors import ConfigError

SERVER, CLIENT = "server", "client"  # stems of the files' names
_PUBLIC_MODE, _FOLDER_MODE = 0o644, 0o700
_MAKE = {
    SERVER: "perennial keys init DIR",
    CLIENT: "perennial keys add, on the server's machine",
}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys in Z85, 40 characters each."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs: its own pair, and the key by which it knows its server."""

    pair: KeyPair
    server_public: str
    folder: Path


def load_server_keys(folder: Path) -> KeyPair:
    """Raises ConfigError with the way out."""
    return _load_pair(folder, SERVER)


def load_client_keys(folder: Path) -> ClientKeys:
    """Raises ConfigError with the way out."""
    return ClientKeys(_load_pair(folder, CLIENT), load_public_key(_path(folder, SERVER)), folder)


def find_client_keys(setting: str) -> ClientKeys | None:
    """The keys in the folder that a setting `keys_dir` names; None for "". Raises ConfigError."""
    return load_client_keys(Path(setting)) if setting else None


def load_public_key(path: Path) -> str:
    """The key in a public certificate. Raises ConfigError with the way out."""
    _mode(path, path.stem)
    public, secret = _load_certificate(path)
    if secret:
        raise ConfigError(f"{path} holds a secret key where the public one belongs; replace it")
    return public


def ensure_server_keys(folder: Path) -> KeyPair:
    """A server's pair and an empty list of clients, made where they are missing.

    Raises ConfigError, StorageError.
    """
    _refuse_half_pair(folder, SERVER)  # before anything is made or changed
    _make_private(folder)
    with locked(folder):
        pair = _ensure_pair(folder, SERVER)
        if not (folder / CLIENTS_FILE).exists():
            write_clients(folder / CLIENTS_FILE, [])
    return pair


def ensure_client(folder: Path, name: str, may: Iterable[str], out: Path) -> bool:
    """Lets the client `name` in, with a pair made in its folder `out` unless it has one.

    folder: the server's. A client that is there keeps its key and gets the permissions `may`.
    Returns whether the client's own folder is complete: False for one whose folder is elsewhere.
    Raises ConfigError, StorageError.
    """
    with _changing(folder) as clients:
        known = clients.get(name)
        check_client(name, "0" * 40, may)  # before anything is made
        if known is not None and not _path(out, CLIENT, secret=True).exists():
            clients[name] = check_client(name, known.key, may)
            return False
        _refuse_half_pair(out, CLIENT)
        if folder in out.parents:
            _make_private(out.parent)
        _make_private(out)
        pair = _ensure_pair(out, CLIENT)
        if known is not None and known.key != pair.public:
            raise ConfigError(
                f"client {name} has the key {brief_key(known.key)}, {out} holds another; choose "
                f"another folder, or first run: perennial keys remove {folder} {name}"
            )
        _write_public(out, SERVER, load_server_keys(folder).public)
        clients[name] = check_client(name, pair.public, may)
    return True


def allow_client(folder: Path, name: str, key: str, may: Iterable[str]) -> None:
    """Lets a client in by a public key that it made itself. Raises ConfigError, StorageError."""
    client = check_client(name, key, may)
    with _changing(folder) as clients:
        if name in clients and clients[name].key != key:
            raise ConfigError(
                f"client {name} has another key, {brief_key(clients[name].key)}; first run: "
                f"perennial keys remove {folder} {name}"
            )
        clients[name] = client


def remove_client(folder: Path, name: str) -> bool:
    """Refuses the client from its next message on; False if there is none of that name.

    A folder that `ensure_client` made for it inside the server's goes too: the key is not wanted
    any more. Raises ConfigError, StorageError.
    """
    with _changing(folder) as clients:
        known = clients.pop(name, None)
    if known is None:
        return False
    own = default_client_folder(folder, name)
    if own.is_symlink():
        return True  # somebody else's folder, whatever it holds
    with storage_errors(own):
        for path in (_path(own, CLIENT, secret=True), _path(own, CLIENT), _path(own, SERVER)):
            path.unlink(missing_ok=True)
        if own.is_dir() and not any(own.iterdir()):
            own.rmdir()
    return True


def default_client_folder(folder: Path, name: str) -> Path:
    """Where a client's own folder is made unless another place is named."""
    return folder / "clients" / name


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, Client]]:
    """The clients by name, held alone; written if the block ends well and has changed them."""
    load_server_keys(folder)
    path = folder / CLIENTS_FILE
    with locked(folder):
        before = read_clients(path)
        clients = dict(before)
        yield clients
        if clients != before:
            write_clients(path, clients.values())


def _make_private(folder: Path) -> None:
    with storage_errors(folder):
        folder.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(_FOLDER_MODE)


def _ensure_pair(folder: Path, who: str) -> KeyPair:
    if not _path(folder, who, secret=True).exists():
        _refuse_half_pair(folder, who)
        public, secret = (key.decode() for key in zmq.curve_keypair())
        text = _certificate("SECRET: for its owner's eyes only", public, secret)
        replace_file(_path(folder, who, secret=True), text, OWNER_ONLY, is_of_folder=True)
    pair = _load_pair(folder, who)
    _write_public(folder, who, pair.public)
    return pair


def _refuse_half_pair(folder: Path, who: str) -> None:
    if _path(folder, who).exists() and not _path(folder, who, secret=True).exists():
        raise ConfigError(
            f"{_path(folder, who)} is there without its {who}.key_secret; bring that back, or "
            f"delete {who}.key for a new pair"
        )


def _write_public(folder: Path, who: str, key: str) -> None:
    path, text = _path(folder, who), _certificate("public: may be shown to anybody", key)
    if not path.exists() or load_public_key(path) != key:
        replace_file(path, text, _PUBLIC_MODE, is_of_folder=True)


def _certificate(what: str, public: str, secret: str = "") -> bytes:
    lines = [f"#   ZeroMQ CURVE certificate, {what}", "", "metadata", "curve"]
    lines.append(f'    public-key = "{public}"')
    if secret:
        lines.append(f'    secret-key = "{secret}"')
    return ("\n".join(lines) + "\n").encode()


def _load_pair(folder: Path, who: str) -> KeyPair:
    path = _path(folder, who, secret=True)
    mode = _mode(path, who)
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this secret key; run: chmod 600 {path}")
    public, secret = _load_certificate(path)
    if not secret:
        raise ConfigError(f"{path} holds only a public key; the secret one is needed here")
    if zmq.curve_public(secret.encode()).decode() != public:
        raise ConfigError(f"{path}: its public key does not belong to its secret one")
    return KeyPair(public, secret)


def _load_certificate(path: Path) -> tuple[str, str]:
    """Public and secret key, "" where the file has none. No error shows what the file holds."""
    try:
        public, secret = zmq.auth.load_certificate(path)
    except ValueError:
        raise ConfigError(f"{path} is no CURVE certificate: it has no public-key") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    keys = [key.decode("ascii", "replace") for key in (public, secret or b"")]
    for name, key in zip(("public-key", "secret-key"), keys, strict=True):
        if key and not _is_z85(key):
            raise ConfigError(f"{path}: its {name} is not 40 characters of Z85; it is damaged")
    return keys[0], keys[1]


def _is_z85(key: str) -> bool:
    """Whether libzmq takes it; five of the characters can say more than four bytes hold."""
    if not Z85_KEY.fullmatch(key):
        return False
    try:
        z85.decode(key)
    except struct.error:
        return False
    return True


def _mode(path: Path, who: str) -> int:
    """Raises ConfigError for a file that is not there, or that cannot be a certificate."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ConfigError(f"no {path}; keys are made by: {_MAKE.get(who, _MAKE[CLIENT])}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not S_ISREG(status.st_mode) or status.st_size > FILE_MAX_BYTES:
        raise ConfigError(f"{path} is no CURVE certificate")
    return status.st_mode


def _path(folder: Path, who: str, *, secret: bool = False) -> Path:
    return folder / (f"{who}.key_secret" if secret else f"{who}.key")
