"""One rule for `key=value` in every command, and the same values from a file."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.process import load_config
from agent.process.errors import ConfigError
from agent.process.paths import user_path
from agent.process.settings import Reference, settings_text
from agent.process.words import list_setting_of, setting_of

PARSER_WORDS = re.compile(
    r"LexerNoViable|mismatched input|no viable|token recognition|extraneous|yaml\.|OmegaConf|Hydra|"
    r"Traceback|dataclass|DictConfig|ListConfig|full_key"
)


@dataclass
class Section:
    """Part of the settings below."""

    note: str = ""
    size: int = 3
    is_on: bool = False


@dataclass
class Settings:
    """A setting of every kind."""

    note: str = ""
    other: str = "other"
    state_dir: str = ""
    demonstrations: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    share: float = 0.5
    limit: int | None = None
    is_on: bool = False
    section: Section = field(default_factory=Section)
    parts: dict[str, Section] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    rows: list[Section] = field(default_factory=list)


def read(*words: str) -> Settings:
    return load_config(Settings, None, words)


TEXTS = [
    "epoch=9-step=8", "模型", "model (copy)", "run#3", "it's", "20261201", "0012", "1e5", "1_000",
    "null", "true", "no", "nan", "", "  blanks  ", "a\\b", "a\\", "\\", "${other}", "${", "a${b",
    "$HOME", "[x]", "{x: 1}", "a,b", "a: b", "- a", "&a", "*a", "!a", "%a", "@a", "`a", "'a'b'",
    '"', "'", "\t", "pick up the cup, then put it down", "don't drop it", "nimm die Tasse für mich",
    "x\ny", "C:\\dir\\", "~", "~/x", "a~b", "=", "==", "key=value", "...", "\u00a0x", "😀",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_setting_takes_all_that_follows_the_first_equals_sign(text: str) -> None:
    assert read(f"note={text}").note == text
    assert read(f"parts.a.note={text}").parts["a"].note == text
    assert read(f"keys.a={text}").keys == {"a": text}


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_arrives_by_hand_and_in_a_list(text: str) -> None:
    if text == "???":
        return
    assert read(setting_of("note", text)).note == text
    assert read(list_setting_of("names", [text, "b"])).names == [text, "b"]


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("\\'\"${}~#=,: []ab1\n\t")))
def test_a_supervisor_hands_any_text_to_its_children(text: str) -> None:
    values = {"note": text, "names": [text, "0012"], "table": {"port": text}, "is_on": True}
    values["keys"] = {"k": text}
    loaded = load_from(settings_text(values))
    assert (loaded.note, loaded.names, loaded.keys) == (text, [text, "0012"], {"k": text})
    assert loaded.table == {"port": text}


def load_from(text: str) -> Settings:
    """What a file with this text gives."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(Settings, file, [])


def test_only_a_reference_is_resolved_by_who_reads_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACE", "here")
    values = {"note": Reference("${oc.env:PLACE}-1"), "other": "${oc.env:PLACE}"}
    loaded = load_from(settings_text(values))
    assert (loaded.note, loaded.other) == ("here-1", "${oc.env:PLACE}")


@pytest.mark.parametrize("scalar", ["0012", "1e5", "off", "null", "~", "", "2026-12-01", "1_0"])
def test_a_file_means_by_a_scalar_what_the_command_line_means(scalar: str) -> None:
    text = f"note: {scalar}\nnames: [{scalar or 'x'}]\nparts: {{a: {{note: {scalar}}}}}\n"
    loaded = load_from(text)
    assert (loaded.note, loaded.names) == (scalar, [scalar or "x"])
    assert loaded.parts["a"].note == scalar


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'a b'", "a b"), ('"a"', "a"), ("'it\\'s'", "it's"), ("'a\\\\'", "a\\"), ("''", ""),
        ("'${other}-x'", "other-x"), ("'\\${other}'", "${other}"), (" 'a' ", "a"),
    ],
)  # fmt: skip
def test_a_value_that_is_quoted_as_a_whole_is_a_quoted_string(value: str, expected: str) -> None:
    assert read(f"note={value}").note == expected


def test_what_is_no_text_takes_numbers_lists_and_tables() -> None:
    words = ["share=1e-3", "is_on=true", "limit=7", "numbers=[1,2.5]", "section={size: 9}"]
    words += ["rows=[{note: a, size: 1}]", "table={a: 1, b: [x]}", "table.c=null"]
    loaded = read(*words)
    assert (loaded.share, loaded.is_on, loaded.limit) == (0.001, True, 7)
    assert loaded.numbers == [1.0, 2.5]
    assert loaded.section == Section("", 9)
    assert loaded.rows == [Section("a", 1)]
    assert loaded.table == {"a": 1, "b": ["x"], "c": None}


def test_an_entry_of_an_open_table_that_is_no_value_is_a_text() -> None:
    words = ["table.port=/dev/tty=A#1", "table.id=机器人", "table.n=3", "table.cal_dir=0012"]
    assert read(*words).table == {
        "port": "/dev/tty=A#1", "id": "机器人", "n": 3, "cal_dir": "0012"
    }  # fmt: skip
    assert read("table.a.b.c=1", "+table.d=2").table == {"a": {"b": {"c": 1}}, "d": 2}


def test_texts_in_a_list_reach_to_the_next_comma() -> None:
    words = "names=[ a=b ,it's,'c, d',\"e\", 7, ${x} ,[y],'f' g]"
    assert read(words).names == ["a=b", "it's", "c, d", "e", "7", "${x}", "[y]", "'f' g"]
    assert read("names=[]").names == []


def test_paths_are_expanded_wherever_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ümit ${x}")
    words = ["state_dir=~/a=b", "demonstrations=[~/d,e]", "table.cal_dir=~/c", "note=~/n"]
    for loaded in (read(*words), load_from(
        "state_dir: ~/a=b\ndemonstrations: [~/d, e]\ntable: {cal_dir: ~/c}\nnote: ~/n"
    )):  # fmt: skip
        assert loaded.state_dir == "/home/ümit ${x}/a=b"
        assert loaded.demonstrations == ["/home/ümit ${x}/d", "e"]
        assert loaded.table == {"cal_dir": "/home/ümit ${x}/c"}
        assert loaded.note == "~/n"
    assert user_path("~/x") == Path("/home/ümit ${x}/x")
    assert read("state_dir=./~x").state_dir == "./~x"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("shar=1", "unknown setting 'shar'; did you mean 'share'?"),
        ("section.sise=1", "did you mean 'section.size'"),
        ("section={sise: 1}", "unknown setting 'section.sise'; did you mean 'section.size'"),
        ("parts.a.sise=1", "unknown setting 'parts.a.sise'; did you mean 'parts.a.size'"),
        ("zzzz=1", "there are: note, other"),
        ("note.x=1", "unknown setting 'note.x'"),
        ("share=abc", "share: expected a number, got 'abc'"),
        ("section.size=", "section.size: expected a whole number, got ''"),
        ("is_on=maybe", "is_on: expected true or false, got 'maybe'"),
        ("names=a", "names: expected a list in brackets, e.g. names=[a,b], got 'a'"),
        ("numbers=[a]", "numbers: expected a list of numbers"),
        ("parts=[a]", "parts: expected a table in braces"),
        ("section=3", "section: expected a table in braces"),
        ("share=1,2", "share: expected one value, got several"),
        ("share=[1", "share: cannot read '[1'"),
        ("parts={a: {note: don't}}", "put quotes around texts in a table"),
        ("table={a: b=c#}", "or set each by itself, whatever it holds: table.NAME=TEXT"),
        ("note='${nope}'", "'nope' does not exist; a '${' that stands for itself"),
        ("note='${'", "a '${' that stands for itself is written \\${"),
        ("note=???", "'???' stands for no value"),
        ("state_dir=~nobody-at-all/x", "names no user's home; write ./~nobody-at-all/x"),
        ("~section", "cannot be removed"),
        ("a@b=c", "only a choice of settings has an '@'"),
        ("=3", "settings look like key=value"),
        ("share", "settings look like key=value"),
        ("note=\udcff", "is not written in UTF-8"),
    ],
)
def test_a_refusal_is_one_line_of_ours_with_the_way_out(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(word)
    text = str(refused.value)
    assert expected in text
    assert "\n" not in text
    assert not PARSER_WORDS.search(text)
    suggestion = re.search(r"did you mean '([^']*)'", text)
    assert suggestion is None or suggestion[1] != word.partition("=")[0]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["share", "limit", "names", "parts", "table", "table.x", "rows", "is_on"]),
    st.text(st.sampled_from("ab1,'\"[]{}:=#~\\$ \n()+-.eé"), max_size=12),
)
def test_whatever_is_typed_is_taken_or_refused_in_words_of_ours(key: str, value: str) -> None:
    said = ""
    try:
        read(f"{key}={value}")
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert not PARSER_WORDS.search(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("note: [", "line 1: this is no YAML"),
        ("a: b: c", "line 1: this is no YAML"),
        ("- a", "expected settings, one `key: value` a line"),
        ("shar: 1", "did you mean 'share'"),
        ("section: {sise: 1}", "did you mean 'section.size'"),
        ("share: abc", "share: expected a number"),
        ("note: ${nope}", "'nope' does not exist"),
        ("note: ${oc.env:NOT_THERE_AT_ALL}", "the environment has no variable 'NOT_THERE_AT_ALL'"),
    ],
)
def test_a_file_that_cannot_work_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(Settings, path, [])
    assert str(refused.value).startswith(str(path))
    assert expected in str(refused.value)
    assert not PARSER_WORDS.search(str(refused.value))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"note: \xff")
    with pytest.raises(ConfigError, match="is not written in UTF-8"):
        load_config(Settings, path, [])
    path.write_text("")
    assert load_config(Settings, path, []) == Settings()


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "false", "'true'", "${oc.env:IS_ON}"])
def test_a_truth_value_is_one_of_two_words(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IS_ON", "true")
    expected = word != "false"
    assert read(f"is_on={word}").is_on is expected
    assert load_from(f"is_on: {word}\n").is_on is expected
    rows = read(f"rows=[{{is_on: {word}}}]", f"parts.a.is_on={word}")
    assert rows.rows[0].is_on is rows.parts["a"].is_on is expected


@pytest.mark.parametrize(
    "word", ["0", "1", "2", "-1", "yes", "no", "on", "off", "y", "n", "1.0", "'1'", "'yes'", "null",
             "${oc.env:IS_ON}", "${size}"],
)  # fmt: skip
def test_nothing_else_is_true_or_false(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IS_ON", "2")
    word = word.replace("${size}", "${section.size}")
    said = r"is_on: expected true or false, got '\S+'"
    for words in ([f"is_on={word}"], [f"rows=[{{is_on: {word}}}]"], [f"parts.a.is_on={word}"]):
        with pytest.raises(ConfigError, match=said):
            read(*words)
    for above in ("", "rows:\n- ", "parts:\n  a:\n    "):
        with pytest.raises(ConfigError, match=said):
            load_from(f"{above}is_on: {word}\n")
