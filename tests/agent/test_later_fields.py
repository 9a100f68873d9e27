"""Fields that came after a protocol version's first release: older sides never meet them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from agent.wire import codec
from agent.wire.codec import decode, encode
from agent.wire.errors import WireError
from agent.wire.schema import later


@dataclass(frozen=True, slots=True)
class Note:
    """As the first release knew it."""

    text: str


@dataclass(frozen=True, slots=True)
class LaterNote:
    """As a later release knows it."""

    text: str
    size: int = later(0)
    tags: dict[str, str] = later(factory=dict)


def sent_as(monkeypatch: pytest.MonkeyPatch, message: object, read_as: type) -> object:
    """What a side that knows `read_as` under the same name gets."""
    monkeypatch.setitem(codec.MESSAGE_TYPES, type(message).__name__, type(message))
    frames = encode(message, 1)
    monkeypatch.setitem(codec.MESSAGE_TYPES, type(message).__name__, read_as)
    return decode(frames).message


def test_a_default_does_not_travel_and_is_there_when_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sent_as(monkeypatch, LaterNote("a"), Note) == Note("a")
    assert sent_as(monkeypatch, Note("a"), LaterNote) == LaterNote("a")


def test_another_value_travels_and_an_older_side_refuses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = LaterNote("a", 3, {"k": "v"})
    assert sent_as(monkeypatch, note, LaterNote) == note
    with pytest.raises(WireError, match="expected the fields"):
        sent_as(monkeypatch, note, Note)


def test_a_field_of_the_first_release_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.make_dataclass("Note", [("text", str), ("more", int)])
    with pytest.raises(WireError, match="expected the fields"):
        sent_as(monkeypatch, Note("a"), strict)
