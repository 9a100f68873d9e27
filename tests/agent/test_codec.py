"""The codec: what is sent is what is read, and nothing but WireError comes out of garbage."""

import contextlib
import dataclasses
import math
import typing

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.wire import codec, messages
from agent.wire.arrays import DTYPES
from agent.wire.codec import Limits, decode, encode, pack, unpack
from agent.wire.errors import WireError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    return draw(hnp.arrays(dtype, shape, elements=elements))


def values_of(hint):
    leaves = {str: TEXT, int: INTS, float: FLOATS, bool: st.booleans(), np.ndarray: arrays()}
    if hint in leaves:
        return leaves[hint]
    if typing.get_origin(hint) is list:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=3)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(TEXT, values_of(typing.get_args(hint)[1]), max_size=3)
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(hint)})


ANY_MESSAGE = st.one_of([values_of(cls) for cls in codec.MESSAGE_TYPES.values()])


def assert_same(left, right):
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    else:
        assert left == right


def test_every_dataclass_of_the_protocol_is_a_message_or_part_of_one():
    declared = {n for n, c in vars(messages).items() if dataclasses.is_dataclass(c)}
    assert declared - codec.MESSAGE_TYPES.keys() == {"SlotLease", "Order", "SealedEpisode"}


@pytest.mark.parametrize("cls", codec.MESSAGE_TYPES.values(), ids=lambda cls: cls.__name__)
def test_round_trip(cls):
    @settings(max_examples=25, deadline=None)
    @given(values_of(cls), st.integers(0, (1 << 63) - 1), st.none() | FLOATS)
    def check(message, request_id, deadline_s):
        envelope = decode([bytes(f) for f in encode(message, request_id, deadline_s)])
        assert (envelope.request_id, envelope.deadline_s) == (request_id, deadline_s)
        assert_same(envelope.message, message)

    check()


@settings(max_examples=150, deadline=None)
@given(ANY_MESSAGE, st.data())
def test_mutated_bytes_raise_nothing_but_wire_errors(message, data):
    frames = [bytearray(frame) for frame in encode(message, 7, 1.0)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        position = data.draw(st.integers(0, max(0, len(frame) - 1)))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if action == "flip" and frame:
            frame[position] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del frame[position:]
        elif action == "insert":
            frame[position:position] = data.draw(st.binary(max_size=4))
        elif action == "drop" and len(frames) > 1:
            frames.pop()
    try:
        envelope = decode([bytes(frame) for frame in frames])
    except WireError:
        return
    encode(envelope.message, envelope.request_id)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_buffers_raise_nothing_but_wire_errors(buffer):
    for read in (lambda: decode([buffer]), lambda: unpack(buffer)):
        with contextlib.suppress(WireError):
            read()


KEYS = TEXT.filter(lambda key: key != "$a")  # `pack` refuses the reserved one
PLAIN = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXT | arrays(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_pack_round_trip(value):
    assert_same(unpack(pack(value)), value)


def header(**changes):
    body = {"episode_id": "e", "step_index": 0, "actions": {"$": 1, "d": "<f4", "s": [2]}}
    version = messages.PROTOCOL_VERSION
    fields = {"v": version, "t": "Chunk", "id": 5, "dl": None, "b": {**body, "version": "base"}}
    return {**fields, **changes}


def chunk_with(array_spec):
    return header(b={**header()["b"], "actions": array_spec})


NESTED: list = []
for _ in range(600):
    NESTED = [NESTED]

BAD_HEADERS = {
    "other version": (header(v=messages.PROTOCOL_VERSION + 1), "version_mismatch"),
    "unknown type": (header(t="Exec"), "unknown_type"),
    "type not a string": (header(t=[1]), "unknown_type"),
    "record that is no message": (header(t="Order"), "unknown_type"),
    "no body": (header(b=None), "bad_message"),
    "missing field": (header(b={"episode_id": "e"}), "bad_message"),
    "extra field": (header(b={**header()["b"], "x": 1}), "bad_message"),
    "extra header key": (header(x=1), "bad_message"),
    "wrong field type": (header(b={**header()["b"], "step_index": "0"}), "bad_message"),
    "bool for an integer": (header(b={**header()["b"], "step_index": True}), "bad_message"),
    "huge integer": (header(b={**header()["b"], "step_index": (1 << 64) - 1}), "bad_message"),
    "negative id": (header(id=-1), "bad_message"),
    "deep nesting": (header(b=NESTED), "bad_message"),
    "long string": (header(b={**header()["b"], "version": "v" * 9000}), "bad_message"),
    "object dtype": (chunk_with({"$": 1, "d": "|O", "s": [1]}), "bad_array"),
    "big endian": (chunk_with({"$": 1, "d": ">f4", "s": [2]}), "bad_array"),
    "shape beyond the frame": (chunk_with({"$": 1, "d": "<f4", "s": [1 << 40]}), "bad_array"),
    "negative size": (chunk_with({"$": 1, "d": "<f4", "s": [-2]}), "bad_array"),
    "sizes that overflow": (chunk_with({"$": 1, "d": "<f4", "s": [1 << 62, 0]}), "bad_array"),
    "too many dimensions": (chunk_with({"$": 1, "d": "<f4", "s": [1] * 9}), "bad_array"),
    "no such frame": (chunk_with({"$": 2, "d": "<f4", "s": [2]}), "bad_array"),
    "the header as array": (chunk_with({"$": 0, "d": "<f4", "s": [2]}), "bad_array"),
}


@pytest.mark.parametrize(("fields", "code"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_bad_header_is_refused_with_its_code(fields, code):
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb(fields), b"\0" * 8])
    assert caught.value.code == code
    if fields.get("id") == 5 and len(fields) == 5:
        assert caught.value.request_id == 5 or "not msgpack" in caught.value.message


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused(bad):
    chunk = messages.Chunk("e", 0, np.array([[0.0, bad]], np.float32), "base")
    with pytest.raises(WireError, match="NaN or infinite"):
        decode(encode(chunk, 1))
    with pytest.raises(WireError, match="finite number"):
        decode(encode(messages.Telemetry("c", {"gauge": bad}), 1))


def test_frames_must_match_arrays_one_to_one():
    chunk = messages.Chunk("e", 0, np.zeros((1, 2), np.float32), "base")
    frames = encode(chunk, 1)
    with pytest.raises(WireError, match="belong to no array"):
        decode([*frames, b"extra"])
    with pytest.raises(WireError, match="no frame 1"):
        decode(frames[:1])


def test_limits_are_enforced():
    frames = encode(messages.Ok(), 1)
    with pytest.raises(WireError, match="too_large"):
        decode([frames[0]] * 65)
    with pytest.raises(WireError, match="too_large"):
        decode([frames[0], b"\0" * 100], Limits(max_message_bytes=100))
    with pytest.raises(WireError, match="too_large"):
        decode(frames, Limits(max_header_bytes=4))
    with pytest.raises(WireError, match="bad_message"):
        decode([])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"suite": "s" * 9000}, "bad_message"),
        ({"suite": "s" * 70_000}, "too_large"),
        ({"client_id": "c" * (2 << 20)}, "too_large"),
    ],
)
def test_who_sends_what_is_refused_unread_is_told_which_request_it_was(change, code):
    fields = msgpack.unpackb(encode(messages.Assign("robot", "toy"), 77)[0])
    sent = msgpack.packb({**fields, "b": {**fields["b"], **change}})  # ours would not send it
    with pytest.raises(WireError, match=code) as caught:
        decode([sent], Limits(max_header_bytes=64 << 10))
    assert caught.value.request_id == 77


@given(st.binary(max_size=64))
def test_any_bytes_have_a_request_id_or_none(buffer):
    assert 0 <= codec.peek_request_id(buffer) < 1 << 63
    assert codec.peek_request_id(b"\x81" * 600 + buffer) == 0


def test_decoded_arrays_are_views_and_cannot_be_written():
    payload = np.arange(1 << 16, dtype=np.uint8)
    frames = encode(messages.Chunk("e", 0, payload, "base"), 1)
    decoded = decode(frames).message.actions
    assert np.shares_memory(decoded, payload)
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 1


def test_objects_cannot_be_sent():
    with pytest.raises(WireError, match="bad_array"):
        encode(messages.Chunk("e", 0, np.array([object()]), "base"), 1)
    with pytest.raises(TypeError, match="not a wire message"):
        encode(messages.Order, 1)
    with pytest.raises(ValueError, match="reserved"):
        pack({"$a": 1})
    deep: list = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(WireError, match="nested deeper"):
        unpack(msgpack.packb(deep))
