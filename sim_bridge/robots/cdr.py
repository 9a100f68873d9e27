"""The ROS 2 messages that the bridge speaks, and their bytes: OMG CDR as every ROS 2 sends it.

A message is a dict of its fields by their ROS names. Source: ROS 2's common_interfaces for the
fields; DDS-RTPS 2.5 section 10 and DDS-XTypes 1.3 section 7.4 for the bytes ("plain CDR", XCDR 1).
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np

from sim_bridge.robot import BridgeError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
FLOATS = "std_msgs/msg/Float64MultiArray"
POSE = "geometry_msgs/msg/PoseStamped"
TWIST = "geometry_msgs/msg/TwistStamped"

_HEADER = {"header": "std_msgs/msg/Header"}
_VECTOR = {"x": "float64", "y": "float64", "z": "float64"}
# message -> field -> type; "[]" marks a sequence. In the order of the definitions.
MESSAGES: dict[str, dict[str, str]] = {
    "builtin_interfaces/msg/Time": {"sec": "int32", "nanosec": "uint32"},
    "std_msgs/msg/Header": {"stamp": "builtin_interfaces/msg/Time", "frame_id": "string"},
    "std_msgs/msg/MultiArrayDimension": {"label": "string", "size": "uint32", "stride": "uint32"},
    "std_msgs/msg/MultiArrayLayout": {
        "dim": "std_msgs/msg/MultiArrayDimension[]",
        "data_offset": "uint32",
    },
    "geometry_msgs/msg/Vector3": _VECTOR,
    "geometry_msgs/msg/Point": _VECTOR,
    "geometry_msgs/msg/Quaternion": {**_VECTOR, "w": "float64"},
    "geometry_msgs/msg/Pose": {
        "position": "geometry_msgs/msg/Point",
        "orientation": "geometry_msgs/msg/Quaternion",
    },
    "geometry_msgs/msg/Twist": {
        "linear": "geometry_msgs/msg/Vector3",
        "angular": "geometry_msgs/msg/Vector3",
    },
    IMAGE: {
        **_HEADER,
        "height": "uint32",
        "width": "uint32",
        "encoding": "string",
        "is_bigendian": "uint8",
        "step": "uint32",  # bytes of a row
        "data": "uint8[]",
    },
    COMPRESSED_IMAGE: {**_HEADER, "format": "string", "data": "uint8[]"},
    JOINT_STATE: {
        **_HEADER,
        "name": "string[]",
        "position": "float64[]",
        "velocity": "float64[]",
        "effort": "float64[]",
    },
    FLOATS: {"layout": "std_msgs/msg/MultiArrayLayout", "data": "float64[]"},
    POSE: {**_HEADER, "pose": "geometry_msgs/msg/Pose"},
    TWIST: {**_HEADER, "twist": "geometry_msgs/msg/Twist"},
}
# Of these types a sequence is an array.
NUMBERS: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int32": np.dtype("i4"),
    "uint32": np.dtype("u4"),
    "float64": np.dtype("f8"),
}
_LITTLE_ENDIAN = b"\x00\x01\x00\x00"
_PREFIX_BYTES = 4  # says how the rest is written; positions are counted from its end


class BadMessage(BridgeError):
    """These bytes are no such message."""


def encode(kind: str, message: dict[str, Any]) -> bytes:
    """`message`, of the type `kind`, with the prefix. A field it lacks is empty or zero."""
    body = bytearray()
    _write(body, kind, message)
    return _LITTLE_ENDIAN + bytes(body)


def decode(kind: str, payload: bytes) -> dict[str, Any]:
    """The message; its sequences of numbers are read-only arrays. Raises BadMessage."""
    if len(payload) < _PREFIX_BYTES or payload[0] != 0 or payload[1] > 1:
        raise BadMessage(f"{kind}: expected plain CDR, got the prefix {payload[:4].hex()}")
    try:
        return _Reader(payload[_PREFIX_BYTES:], "<" if payload[1] else ">").message(kind)
    except (struct.error, ValueError, IndexError) as error:
        raise BadMessage(f"{kind}: {len(payload)} bytes that are no such message") from error


def _write(body: bytearray, kind: str, value: Any) -> None:
    if kind.endswith("[]"):
        _write_sequence(body, kind.removesuffix("[]"), [] if value is None else value)
    elif kind in NUMBERS:
        dtype = NUMBERS[kind]
        _pad(body, dtype.itemsize)
        body += np.array(value or 0, dtype.newbyteorder("<")).tobytes()
    elif kind == "string":
        text = (value or "").encode() + b"\0"
        _write(body, "uint32", len(text))
        body += text
    else:
        for field, field_kind in MESSAGES[kind].items():
            _write(body, field_kind, (value or {}).get(field))


def _write_sequence(body: bytearray, kind: str, values: Any) -> None:
    _write(body, "uint32", len(values))
    if kind in NUMBERS and len(values):
        dtype = NUMBERS[kind]
        _pad(body, dtype.itemsize)
        body += np.ascontiguousarray(values, dtype.newbyteorder("<")).tobytes()
    elif kind not in NUMBERS:
        for value in values:
            _write(body, kind, value)


def _pad(body: bytearray, size: int) -> None:
    body += bytes(-len(body) % size)


class _Reader:
    """Reads values one after the other, each at a multiple of its size."""

    def __init__(self, body: bytes, order: Literal["<", ">"]) -> None:
        self._body, self._order, self._at = body, order, 0

    def message(self, kind: str) -> dict[str, Any]:
        return {field: self._value(kind) for field, kind in MESSAGES[kind].items()}

    def _value(self, kind: str) -> Any:
        if kind.endswith("[]"):
            return self._sequence(kind.removesuffix("[]"), self._length())
        if kind in NUMBERS:
            return self._numbers(kind, 1)[0].item()
        if kind == "string":
            text = self._numbers("uint8", self._length()).tobytes()
            return text.removesuffix(b"\0").decode()
        return self.message(kind)

    def _length(self) -> int:
        return int(self._numbers("uint32", 1)[0])

    def _sequence(self, kind: str, length: int) -> Any:
        if kind in NUMBERS:
            return self._numbers(kind, length)
        if length > len(self._body):  # every element takes a byte at least
            raise ValueError(f"{length} elements in {len(self._body)} bytes")
        return [self._value(kind) for _ in range(length)]

    def _numbers(self, kind: str, count: int) -> np.ndarray:
        dtype = NUMBERS[kind].newbyteorder(self._order)
        if count:
            self._at += -self._at % dtype.itemsize
        values = np.frombuffer(self._body, dtype, count, self._at)
        self._at += values.nbytes
        return values
