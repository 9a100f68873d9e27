"""Messages to frames and back. Bytes in, bytes out: sockets are elsewhere.

A message is one msgpack header frame `{v, t, id, dl, b}` (protocol version, type name, request id,
seconds left until the deadline or nil, body) followed by one raw frame per array. In the body an
array is `{"$": frame index, "d": dtype, "s": shape}`. `pack`/`unpack` hold the same values in one
buffer, arrays inline as `{"$a": [dtype, shape, bytes]}`, for use in files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from agent.process.shown import fitted, shown
from agent.wire import messages
from agent.wire.arrays import array_bytes, array_from, brief
from agent.wire.errors import WireError
from agent.wire.schema import defaults_of, fields_of, finite_number, reader_of, texts_of

_HEADER_FIELDS = 5
_PEEK_BYTES = 512
MAX_DEPTH = 16  # of nested maps and lists in `pack`/`unpack`

Frame = bytes | memoryview
_UNPACK_ERRORS = (ValueError, msgpack.UnpackException)  # msgpack raises nothing else


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts. The header bounds the number of Python objects a peer can cause."""

    max_message_bytes: int = 32 << 20
    max_parts: int = 64
    max_header_bytes: int = 1 << 20
    max_string_bytes: int = 8 << 10


DEFAULT_LIMITS = Limits()  # of every side that says nothing else
CLIENT_HEADER_BYTES = 64 << 10  # what the robots' socket takes of one header


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded message. `deadline_s`: seconds from its sending that the sender waits, or None."""

    request_id: int
    deadline_s: float | None
    message: Any


MESSAGE_TYPES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        # requests of clients
        messages.Hello,
        messages.Assign,
        messages.EpisodeStart,
        messages.Act,
        messages.EpisodeEnd,
        messages.Telemetry,
        # requests of the learner and of operators
        messages.LearnerHello,
        messages.PostOrders,
        messages.FetchEpisodes,
        messages.FetchPart,
        messages.AckEpisodes,
        messages.RejectEpisodes,
        messages.Activate,
        messages.Rollback,
        messages.Status,
        # replies
        messages.Welcome,
        messages.Assignments,
        messages.EpisodeStarted,
        messages.Chunk,
        messages.EpisodeSealed,
        messages.Ok,
        messages.Fault,
        messages.LearnerWelcome,
        messages.Episodes,
        messages.EpisodePart,
        messages.Activated,
        messages.ServerStatus,
    )
}


# ---- encoding --------------------------------------------------------------------------------


def encode(message: object, request_id: int, deadline_s: float | None = None) -> list[Frame]:
    """Frames of one message. Array frames alias the arrays' memory where it is contiguous.

    A field declared as `Text` is cut to what a receiver takes. Raises WireError("bad_array") for a
    dtype outside DTYPES; too_large or bad_message for another string that no receiver takes;
    TypeError for a type not in MESSAGE_TYPES.
    """
    name = type(message).__name__
    if MESSAGE_TYPES.get(name) is not type(message):
        raise TypeError(f"{name} is not a wire message, expected one of {sorted(MESSAGE_TYPES)}")
    frames: list[Frame] = [b""]
    body = _to_plain(message, frames, name)
    header = {
        "v": messages.PROTOCOL_VERSION,
        "t": name,
        "id": request_id,
        "dl": deadline_s,
        "b": body,
    }
    frames[0] = msgpack.packb(header)
    return frames


def check_fits(frames: Sequence[Frame], limits: Limits, message: object, endpoint: str) -> None:
    """Check that a receiver with these limits takes a message, before it is sent.

    libzmq cuts the connection without a word for a part that is too large.

    Raises:
        WireError: too_large, with the size, the limit and the way out.
    """
    try:
        _check_sizes(frames, limits)
    except WireError as error:
        raise WireError(
            error.code,
            f"{type(message).__name__} to {endpoint} was not sent: {error.message}; "
            f"{_WAYS_OUT.get(type(message), 'send less at once')}",
        ) from None


_WAYS_OUT: dict[type, str] = {
    messages.Act: "send smaller or fewer pictures, or raise max_message_bytes of the agent",
    messages.EpisodeEnd: "end episodes sooner, or raise max_message_bytes of the agent",
}


def _to_plain(value: Any, frames: list[Frame], path: str, is_text: bool = False) -> Any:
    """`path` names the value in errors; `is_text`: whether its strings may be cut."""
    if isinstance(value, str):
        limit = DEFAULT_LIMITS.max_string_bytes
        return fitted(value, limit) if is_text else _checked_name(value, path)
    if isinstance(value, np.ndarray):
        frames.append(array_bytes(value))
        return {"$": len(frames) - 1, "d": value.dtype.str, "s": value.shape}
    if isinstance(value, dict):
        return {
            _checked_name(key, path): _to_plain(item, frames, path, is_text)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_to_plain(item, frames, path, is_text) for item in value]
    if dataclasses.is_dataclass(value):
        kind = type(value)
        return {
            name: _to_plain(item, frames, f"{path}.{name}", name in texts_of(kind))
            for name, item in ((name, getattr(value, name)) for name in fields_of(kind))
            if not _is_left_out(kind, name, item)
        }
    return value


def _checked_name(value: str, path: str) -> str:
    """A string that is no text: cut, it would name something else."""
    limit = DEFAULT_LIMITS.max_string_bytes
    if value.isascii() and len(value) <= limit:
        return value
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise WireError("bad_message", f"{path}: {shown(value)} is not UTF-8") from None
    if size_bytes > limit:
        raise WireError(
            "too_large", f"{path}: {shown(value, 40)} has {size_bytes} bytes, at most {limit} fit"
        )
    return value


def _is_left_out(cls: type, name: str, item: Any) -> bool:
    """Whether a field came later and has its default, so that older receivers need not know it."""
    defaults = defaults_of(cls)
    return name in defaults and bool(item == defaults[name])


# ---- decoding --------------------------------------------------------------------------------


def decode(
    frames: Sequence[Frame],
    limits: Limits = DEFAULT_LIMITS,
    check: Callable[[type], None] = lambda kind: None,
) -> Envelope:
    """The message in `frames`. Arrays are read-only views of the frames.

    check: is given the message's type before the rest is read, and may refuse it with a WireError.

    Raises WireError (bad_message, too_large, unknown_type, version_mismatch, bad_array) for
    everything that is not exactly one well-formed message, and nothing else.
    """
    try:
        _check_sizes(frames, limits)
        header = _unpack_header(frames[0], limits)
    except WireError as error:
        error.request_id = peek_request_id(frames[0]) if frames else 0
        raise
    request_id = header["id"]
    if not _is_request_id(request_id):
        raise WireError(
            "bad_message", f"header id must be an integer in 0..2^63-1: {brief(request_id)}"
        )
    try:
        return _decode_body(header, frames, request_id, check)
    except WireError as error:
        error.request_id = request_id
        raise


def peek_request_id(frame: Frame) -> int:
    """The id in a header that is refused unread, so that its sender need not wait; 0: unknown.

    It stands at the header's beginning, and no more is looked at.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=_PEEK_BYTES, max_bin_len=0, max_ext_len=0)
    unpacker.feed(frame[:_PEEK_BYTES])
    try:
        for _ in range(min(unpacker.read_map_header(), _HEADER_FIELDS)):
            key, value = unpacker.unpack(), unpacker.unpack()
            if key == "id":
                return value if _is_request_id(value) else 0
    except (*_UNPACK_ERRORS, TypeError):
        pass  # whoever sent it cannot be told which request it was
    return 0


def _is_request_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_sizes(frames: Sequence[Frame], limits: Limits) -> None:
    if not frames:
        raise WireError("bad_message", "empty message: expected a header frame")
    if len(frames) > limits.max_parts:
        raise WireError(
            "too_large", f"{len(frames)} parts, at most {limits.max_parts} are accepted"
        )
    size_bytes = sum(len(frame) for frame in frames)
    if size_bytes > limits.max_message_bytes:
        raise WireError(
            "too_large", f"{size_bytes} bytes, at most {limits.max_message_bytes} are accepted"
        )
    if len(frames[0]) > limits.max_header_bytes:
        raise WireError(
            "too_large", f"header of {len(frames[0])} bytes, at most {limits.max_header_bytes}"
        )


def _unpack_header(frame: Frame, limits: Limits) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(
            frame,
            max_str_len=limits.max_string_bytes,
            max_bin_len=0,  # arrays travel as frames, so the header has no bytes values
            max_ext_len=0,
        )
    except _UNPACK_ERRORS as error:
        text = f"header frame is not msgpack with texts of at most {limits.max_string_bytes} bytes"
        raise WireError("bad_message", text) from error
    if type(header) is not dict or header.keys() != {"v", "t", "id", "dl", "b"}:
        raise WireError("bad_message", "header must be a map with the keys v, t, id, dl, b")
    return header


def _decode_body(
    header: dict[str, Any],
    frames: Sequence[Frame],
    request_id: int,
    check: Callable[[type], None],
) -> Envelope:
    version, name, deadline_s = header["v"], header["t"], header["dl"]
    if type(version) is not int or version != messages.PROTOCOL_VERSION:
        raise WireError(
            "version_mismatch",
            f"protocol version {brief(version)}, this side speaks {messages.PROTOCOL_VERSION}",
        )
    cls = MESSAGE_TYPES.get(name) if type(name) is str else None
    if cls is None:
        raise WireError("unknown_type", f"message type {brief(name)} is not known")
    check(cls)
    if deadline_s is not None:
        deadline_s = finite_number(deadline_s, "header.dl")
    arrays = _ArrayFrames(frames)
    message = reader_of(cls)(header["b"], name, arrays)
    arrays.check_all_used()
    return Envelope(request_id, deadline_s, message)


class _ArrayFrames:
    """The frames behind the header; each must be named by exactly one array in the body."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._used: set[int] = set()

    def take(self, spec: Any, path: str) -> np.ndarray:
        if type(spec) is not dict or spec.keys() != {"$", "d", "s"}:
            raise WireError("bad_message", f"{path}: expected an array")
        index = spec["$"]
        if type(index) is not int or not 1 <= index < len(self._frames):
            raise WireError("bad_array", f"{path}: no frame {brief(index)} in this message")
        if index in self._used:
            raise WireError("bad_array", f"{path}: frame {index} is used twice")
        self._used.add(index)
        return array_from(spec["d"], spec["s"], self._frames[index], path)

    def check_all_used(self) -> None:
        unused = len(self._frames) - 1 - len(self._used)
        if unused:
            raise WireError("bad_message", f"{unused} frames belong to no array")


# ---- one buffer, for files --------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """One buffer of nested dicts (string keys), lists, scalars and arrays.

    Raises WireError("bad_array") for an array that cannot travel, ValueError for a map that uses
    the reserved key "$a", TypeError for any other type.
    """
    return msgpack.packb(_inline_arrays(value))


def _inline_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"$a": [value.dtype.str, list(value.shape), array_bytes(value)]}
    if isinstance(value, dict):
        if "$a" in value:
            raise ValueError('the key "$a" is reserved for arrays')
        return {key: _inline_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inline_arrays(item) for item in value]
    return value


def unpack(buffer: Frame) -> Any:
    """The inverse of `pack`; tuples come back as lists, arrays are read-only.

    Raises WireError (bad_message, bad_array, too_large) for anything `pack` cannot have written.
    """
    try:
        value = msgpack.unpackb(buffer, max_ext_len=0)
    except _UNPACK_ERRORS as error:
        raise WireError("bad_message", f"not a packed value: {error}") from error
    return _restore_arrays(value, "value", depth=0)


def _restore_arrays(value: Any, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError("too_large", f"{path:.80}: nested deeper than {MAX_DEPTH}")
    if type(value) is dict:
        if "$a" in value:
            return _inline_array(value, path)
        return {k: _restore_arrays(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    if type(value) is list:
        return [_restore_arrays(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if type(value) is bytes:
        raise WireError("bad_message", f"{path:.80}: bytes outside an array")
    return value


def _inline_array(value: dict[str, Any], path: str) -> np.ndarray:
    spec = value["$a"]
    if len(value) != 1 or type(spec) is not list or len(spec) != 3 or type(spec[2]) is not bytes:
        raise WireError("bad_array", f"{path:.80}: expected [dtype, shape, bytes]")
    return array_from(spec[0], spec[1], spec[2], path)
