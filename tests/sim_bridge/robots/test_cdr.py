"""The bytes of ROS 2 messages: as another implementation writes them, and refused when damaged."""

from __future__ import annotations

import numpy as np
import pytest

from sim_bridge.robots import cdr
from sim_bridge.robots.cdr import BadMessage, decode, encode

HEADER = {"stamp": {"sec": -3, "nanosec": 7}, "frame_id": "hand"}
# One of each kind; strings of lengths that leave every later number at an odd place.
MESSAGES = {
    cdr.IMAGE: {
        "header": HEADER, "height": 2, "width": 1, "encoding": "rgb8", "is_bigendian": 0,
        "step": 3, "data": np.arange(6, dtype=np.uint8),
    },
    cdr.COMPRESSED_IMAGE: {
        "header": HEADER, "format": "jpeg", "data": np.arange(5, dtype=np.uint8),
    },
    cdr.JOINT_STATE: {
        "header": HEADER, "name": ["a", "elbow", ""], "position": np.array([1.5, -2.0, 1e9]),
        "velocity": np.zeros(0), "effort": np.array([0.25]),
    },
    cdr.FLOATS: {
        "layout": {"dim": [{"label": "joints", "size": 2, "stride": 2}], "data_offset": 0},
        "data": np.array([0.5, 4.0]),
    },
    cdr.POSE: {
        "header": HEADER,
        "pose": {
            "position": {"x": 1.0, "y": 2.0, "z": 3.0},
            "orientation": {"x": 0.0, "y": 0.6, "z": 0.0, "w": 0.8},
        },
    },
    cdr.TWIST: {
        "header": HEADER,
        "twist": {
            "linear": {"x": 1.0, "y": 2.0, "z": 3.0}, "angular": {"x": 0.1, "y": 0.2, "z": 0.3},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_comes_back_as_it_was(kind: str) -> None:
    np.testing.assert_equal(decode(kind, encode(kind, MESSAGES[kind])), MESSAGES[kind])


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_bytes_are_those_of_another_implementation(kind: str) -> None:
    from cyclonedds.idl import make_idl_struct, types

    made: dict = {}

    def type_of(kind: str):
        if kind.endswith("[]"):
            return types.sequence[type_of(kind.removesuffix("[]"))]
        if kind in cdr.NUMBERS:
            return getattr(types, kind)
        if kind == "string":
            return str
        if kind not in made:
            fields = {name: type_of(each) for name, each in cdr.MESSAGES[kind].items()}
            made[kind] = make_idl_struct(f"T{len(made)}", f"T{len(made)}", fields)
        return made[kind]

    def value_of(kind: str, value):
        if kind.endswith("[]"):
            return [value_of(kind.removesuffix("[]"), each) for each in value]
        if kind in cdr.MESSAGES:
            fields = cdr.MESSAGES[kind]
            return type_of(kind)(**{name: value_of(fields[name], value[name]) for name in fields})
        return value.item() if isinstance(value, np.generic) else value

    theirs = value_of(kind, MESSAGES[kind]).serialize(use_version_2=False)
    assert encode(kind, MESSAGES[kind]) == bytes(theirs)


def test_what_is_left_out_is_empty_or_zero() -> None:
    message = decode(cdr.JOINT_STATE, encode(cdr.JOINT_STATE, {"name": ["a"]}))
    assert message["header"] == {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}
    assert (message["name"], len(message["position"])) == (["a"], 0)


def test_a_big_endian_sender_is_understood() -> None:
    payload = bytes.fromhex("00000000000000000000000000000001000000003ff8000000000000")
    np.testing.assert_equal(decode(cdr.FLOATS, payload)["data"], [1.5])


@pytest.mark.parametrize("kind", MESSAGES)
def test_cut_off_anywhere_it_is_refused(kind: str) -> None:
    payload = encode(kind, MESSAGES[kind])
    for length in range(len(payload)):
        with pytest.raises(BadMessage):
            decode(kind, payload[:length])


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00\x07\x00\x00" + bytes(64),  # another encoding, XCDR 2
        b"\x00\x01\x00\x00" + bytes(8) + b"\xff\xff\xff\xff" + bytes(64),  # a string of 4 GB
        b"\x00\x01\x00\x00" + bytes(8) + b"\x02\x00\x00\x00\xff\x00" + bytes(64),  # no UTF-8
        b"\x00\x01\x00\x00" + bytes(8) + b"\x01\x00\x00\x00" + bytes(4) + b"\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_message_are_refused(payload: bytes) -> None:
    with pytest.raises(BadMessage, match="JointState"):
        decode(cdr.JOINT_STATE, payload)
