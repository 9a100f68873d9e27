"""What the kernel tells of connections that libzmq owns, and how one of them is ended.

Every function takes the descriptor of a connection and tells None where nothing is known: it may
have been closed meanwhile, and ipc has no counters.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

_INFO_BYTES = 192  # of Linux's struct tcp_info, as far as it is read here
_BYTES_RECEIVED = struct.Struct("Q"), 128
_DATA_SEGMENTS_RECEIVED = struct.Struct("I"), 152
_NOWHERE = struct.pack("H14x", socket.AF_UNSPEC)  # to connect to it is to disconnect
_libc = ctypes.CDLL(None)


class Counters(NamedTuple):
    """What a peer has sent since it connected, read by libzmq or not."""

    received_bytes: int
    segments: int


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield shared
    finally:
        shared.detach()


def addresses_of(descriptor: int) -> tuple[Any, Any] | None:
    """Our address of a connection and its peer's."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        shared = socket.socket(fileno=descriptor)  # of a family that is to be found out
        try:
            return shared.getsockname(), shared.getpeername()
        finally:
            shared.detach()
    except OSError:
        return None


def counters_of(descriptor: int) -> Counters | None:
    """How much has come."""
    try:
        with _borrowed(descriptor) as shared:
            told = shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        (received_bytes,), (segments,) = (
            layout.unpack_from(told, offset)
            for layout, offset in (_BYTES_RECEIVED, _DATA_SEGMENTS_RECEIVED)
        )
    except (OSError, struct.error):
        return None
    return Counters(received_bytes, segments)


def unread_bytes(descriptor: int) -> int:
    """What has come and was not read; 0 if nothing is known."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def peek(descriptor: int, size_bytes: int) -> bytes:
    """The first bytes of those that are not read yet; they stay unread."""
    try:
        with _borrowed(descriptor) as shared:
            return shared.recv(size_bytes, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


def end(descriptor: int) -> None:
    """End a connection; libzmq closes it then.

    Nothing that has come and was not read is read any more, and a peer that still sends is told at
    once. Reading it here instead would leave libzmq with the middle of a message.
    """
    if _libc.connect(descriptor, _NOWHERE, len(_NOWHERE)) == 0:
        return
    with suppress(OSError), _borrowed(descriptor) as shared:  # ipc, or the peer was faster
        shared.shutdown(socket.SHUT_RDWR)


def resident_bytes() -> int:
    """The memory that this process has; 0 if nothing is known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
