"""A file of settings says what the command line would say, or is refused in our own words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_settings_words import PARSER_WORDS, Settings, load_from, read

from agent.process import load_config
from agent.process.errors import ConfigError

THEIR_WORDS = (
    "mismatched input", "Unsupported interpolation", "Recursive interpolation", "Cannot merge",
    "Merge error", "subclass", "Incompatible key", "is incompatible", "not Optional", "of type",
    "Expecting", "While dereferencing", "positional argument",
)  # fmt: skip
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as told:
        load_from(text)
    said = str(told.value)
    assert not PARSER_WORDS.search(said), said
    assert not [words for words in THEIR_WORDS if words in said], said
    assert "settings.yaml" in said
    return said


@pytest.mark.parametrize("name", ["on", "off", "null", "123", "1e3", "0x10", "true", "2026-12-01"])
def test_a_name_is_a_text_whatever_it_looks_like(name: str) -> None:
    loaded = load_from(f"parts: {{{name}: {{note: a}}}}\nkeys: {{{name}: b}}\n")
    assert (list(loaded.parts), loaded.keys) == ([name], {name: "b"})
    assert read(f"parts.{name}.note=a").parts == loaded.parts


@pytest.mark.parametrize("number", ["010", "1_000", "7", "-3", "'12'"])
def test_a_number_is_what_it_is_on_the_command_line(number: str) -> None:
    loaded = load_from(f"limit: {number}\nshare: {number}\n")
    given = read(f"limit={number}", f"share={number}")
    assert (loaded.limit, loaded.share) == (given.limit, given.share)


@pytest.mark.parametrize("number", ["0x10", "1:30", "on", "1e3", ".inf", "2026-12-01", "0o17"])
def test_what_is_no_number_on_the_command_line_is_none_in_a_file(number: str) -> None:
    assert f"limit: expected a whole number, got '{number}'" in refusal(f"limit: {number}\n")
    with pytest.raises(ConfigError, match="limit: expected a whole number"):
        read(f"limit={number}")


def test_nothing_is_still_nothing() -> None:
    assert load_from("limit: null\n").limit is None
    assert load_from("limit:\n").limit is None
    assert load_from("") == load_from("# nothing\n") == load_from("---\n") == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("note: a\nnote: b\n", "line 2: 'note' is there a second time"),
        ("section:\n\tnote: a\n", "line 2: a tab"),
        ("note: a\n---\nnote: b\n", "a second document"),
        ("note: !x a\n", "quotes"),
        ("note: *x\n", "quotes"),
        ("note: a\x07\n", "control character"),
        ("? [a, b]\n: c\n", "line 1: the name of a setting is a text"),
        ("a: &a [*a]\n", "more than"),
        ("section: &a {note: *a}\n", "more than"),
        ("a: " + "[" * 5000, "more than"),
        ("a: " + "[" * 5000 + "]" * 5000, "more than"),
        (BOMB, "more than"),
        ("- a\n", "key: value"),
        ("hello\n", "key: value"),
        ("section: 3\n", "section: expected a table below it, got '3'"),
        ("section: [a]\n", "section: expected a table below it, got a list"),
        ("parts: {a: 3}\n", "parts.a: expected a table"),
        ("parts: {a: null}\n", "parts.a: expected a table"),
        ("names: {a: b}\n", "names: expected a list below it, got a table"),
        ("names: a\n", "names: expected a list below it, got 'a'"),
        ("note: [a]\n", "note: expected a single value, got a list"),
        ("limit: {a: 1}\n", "limit: expected a single value, got a table"),
        ("share: 2026-99-99\n", "share: expected a number, got '2026-99-99'"),
        (f"note: {'9' * 5000}\n", "too many digits"),
    ],
    ids=range(24),
)
def test_a_file_that_cannot_be_meant_is_explained(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize(
    "reference",
    [
        '${oc.decode:"["}', "${nope:1}", "${note}", "${oc.env:A,B,C}", "${oc.select:}",
        "${section}", "${oc.env:NO_SUCH_VARIABLE}", "${no.such}", "${", "${a b}", "${numbers.7}",
    ],
)  # fmt: skip
def test_a_reference_that_stands_for_nothing_is_explained(reference: str) -> None:
    with pytest.raises(ConfigError) as told:
        read(f"note='{reference}'")
    said = str(told.value)
    assert said.startswith("note: ")
    assert not [words for words in THEIR_WORDS if words in said], said


def test_what_is_no_plain_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "no plain file"),
        (tmp_path, "a folder"),
        (tmp_path / "nothing", "no such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(Settings, path, [])


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_editors_of_other_systems_may_write_it(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(mark + end.join((b"note: a b", b"limit: 3", b"")))
    loaded = load_config(Settings, path, [])
    assert (loaded.note, loaded.limit) == ("a b", 3)
