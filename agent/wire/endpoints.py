"""What addresses may be bound or connected to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.wire.errors import ConfigError

IPC_PATH_MAX_BYTES = 107  # sockaddr_un.sun_path
_LOOPBACK = re.compile(r"^(ipc://.+|inproc://.+|tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):.+)$")


def check_endpoint(
    endpoint: str, *, bind: bool, insecure: bool = False, encrypted: bool = False
) -> None:
    """Raises ConfigError for an address that cannot work or must not be bound."""
    if not re.match(r"^(tcp|ipc|inproc)://.", endpoint):
        raise ConfigError(f"endpoint {endpoint!r}: expected tcp://HOST:PORT or ipc://PATH")
    if encrypted and endpoint.startswith("inproc://"):
        raise ConfigError(f"endpoint {endpoint} cannot be encrypted; use tcp or ipc")
    if bind and not insecure and not encrypted and not _LOOPBACK.match(endpoint):
        raise ConfigError(
            f"endpoint {endpoint} is reachable from other machines without encryption; make keys "
            "with `perennial keys init` and set keys_dir, bind to 127.0.0.1, or set insecure=true "
            "if the network is trusted"
        )
    if endpoint.startswith("ipc://"):
        path = Path(endpoint.removeprefix("ipc://"))
        if len(os.fsencode(path)) > IPC_PATH_MAX_BYTES:
            raise ConfigError(
                f"endpoint {endpoint} is longer than the {IPC_PATH_MAX_BYTES} bytes the system "
                "allows; choose a shorter folder"
            )
        if bind and not path.parent.is_dir():
            raise ConfigError(f"endpoint {endpoint}: no folder {path.parent}; create it first")
