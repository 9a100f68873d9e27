"""Text from outside cannot move a cursor, forge a line or turn the reading direction."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.process.shown import printable, shown

NASTY = {
    "\x1b[2J\x1b[1;31mall is well": r"\x1b[2J\x1b[1;31mall is well",
    "one\ntwo\r\nthree": r"one\ntwo\r\nthree",
    "a\u202eb\u2066c\u200bd\ufeff": r"a\u202eb\u2066c\u200bd\ufeff",
    "line\u2028line\x85": r"line\u2028line\x85",
    "bell\x07 del\x7f csi\x9b": r"bell\x07 del\x7f csi\x9b",
    "half \ud800": r"half \ud800",
}


@pytest.mark.parametrize(("text", "wanted"), NASTY.items())
def test_what_acts_on_a_terminal_is_escaped(text: str, wanted: str) -> None:
    assert printable(text) == wanted


@pytest.mark.parametrize("text", ["put the café on the 机器人", "[red] {x} 100% 'quoted' \\ n", ""])
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@given(st.text(max_size=300) | st.binary(max_size=300), st.integers(10, 250))
def test_whatever_comes_it_is_one_short_line(text: str | bytes, limit: int) -> None:
    line = printable(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    harmful = ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert not any(unicodedata.category(letter) in harmful for letter in line)
    line.encode()


def test_huge_text_costs_nothing() -> None:
    assert printable("\x1b" * 10_000_000, 20).endswith("…")
    assert printable(b"\xff" * 10_000_000, 20).startswith("\\xff")


def test_quotes_tell_text_from_the_rest() -> None:
    assert shown("a b") == "'a b'"
    assert shown("it's") == '"it\'s"'
