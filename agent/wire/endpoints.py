"""What addresses may be bound or connected to."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from agent.process.paths import expand_home
from agent.process.shown import shown
from agent.wire.errors import ConfigError

IPC_PATH_MAX_BYTES = 107  # sockaddr_un.sun_path
PORT_MAX = 65_535
_TCP = re.compile(r"tcp://(\[[^\[\]]*\]|[^:\[\]]*):([^:]*)")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def check_endpoint(
    endpoint: str, *, bind: bool, insecure: bool = False, encrypted: bool = False
) -> None:
    """Raise ConfigError for an address that cannot work or must not be bound.

    Port 0 binds any free port. libzmq itself takes a port modulo 65536.
    """
    kind, _, place = endpoint.partition("://")
    if kind not in ("tcp", "ipc", "inproc") or not place:
        raise ConfigError(f"endpoint {shown(endpoint)}: expected tcp://HOST:PORT or ipc://PATH")
    if encrypted and kind == "inproc":
        raise ConfigError(f"endpoint {shown(endpoint)} cannot be encrypted; use tcp or ipc")
    is_local = True
    if kind == "tcp":
        is_local = is_loopback(_check_tcp(endpoint, bind))
    elif kind == "ipc":
        _check_ipc(endpoint, bind)
    if bind and not insecure and not encrypted and not is_local:
        raise ConfigError(
            f"endpoint {endpoint} is reachable from other machines without encryption; make keys "
            "with `perennial keys init` and set keys_dir, bind to 127.0.0.1, or set insecure=true "
            "if the network is trusted"
        )


def is_loopback(host: str) -> bool:
    """Whether a host, with or without the brackets of IPv6, is this machine alone."""
    name = host.strip("[]")
    if name.casefold() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False  # a name may be anybody's
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_ipv6(endpoint: str) -> bool:
    """Whether an endpoint names an address of IPv6."""
    return endpoint.startswith("tcp://[")


def address_of(endpoint: str) -> str:
    """The endpoint as processes in any folder understand it: the path of a socket is absolute.

    Raises ConfigError for a home that nobody has.
    """
    if not endpoint.startswith("ipc://") or endpoint[6:7] in ("", "@", "*"):
        return endpoint
    path = expand_home("endpoint", endpoint.removeprefix("ipc://"))
    absolute = os.path.abspath(path)
    is_short = len(os.fsencode(absolute)) <= IPC_PATH_MAX_BYTES
    return f"ipc://{absolute if is_short else path}"


def _check_tcp(endpoint: str, bind: bool) -> str:
    """The host. Raises ConfigError."""
    where = f"endpoint {shown(endpoint)}"
    match = _TCP.fullmatch(endpoint)
    if match is None:
        raise ConfigError(
            f"{where}: expected tcp://HOST:PORT, an address of IPv6 in brackets: tcp://[::1]:5555"
        )
    host, port = match.groups()
    lowest = 0 if bind else 1
    is_any = bind and port == "*"
    if not is_any and not (re.fullmatch("[0-9]{1,5}", port) and lowest <= int(port) <= PORT_MAX):
        raise ConfigError(f"{where}: expected a port of {lowest} to {PORT_MAX}, got {shown(port)}")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ConfigError(f"{where}: {shown(host)} is no address of IPv6") from None
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ConfigError(f"{where}: {shown(host)} is no address of IPv4") from None
    elif not (_HOST_NAME.fullmatch(host) or (bind and host == "*")):
        raise ConfigError(f"{where}: {shown(host)} is no host")
    return host


def _check_ipc(endpoint: str, bind: bool) -> None:
    address = address_of(endpoint)
    path = Path(address.removeprefix("ipc://"))
    if "\0" in address or len(os.fsencode(path)) > IPC_PATH_MAX_BYTES:
        raise ConfigError(
            f"endpoint {shown(endpoint)} is longer than the {IPC_PATH_MAX_BYTES} bytes the system "
            "allows; choose a shorter folder"
        )
    if bind and endpoint[6] not in "@*" and not path.parent.is_dir():
        raise ConfigError(f"endpoint {endpoint}: no folder {path.parent}; create it first")
