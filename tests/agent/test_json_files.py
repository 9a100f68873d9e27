"""JSON that is read back: what does not fit is one sentence that says where and what."""

import json
import re
from pathlib import Path

import pytest
from damages import byte_damages, json_damages, remove

from agent.process.json_files import COUNT, DamagedFile, Misfit, parse_json, read_json

SHAPE = {
    "name": str,
    "at_s": float,
    "done": bool,
    "rows": [[COUNT]],
    "restarts": {str: COUNT},
    "slot": re.compile(r"eval/\d+"),
    "hold_s?": (float, None),
    "more?": object,
}
VALUE = {
    "name": "a", "at_s": 3, "done": True, "rows": [[1, 2], []], "restarts": {"x": 0},
    "slot": "eval/3", "hold_s": None, "more": [None],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 7}, "name: expected text, got 7"),
        ({"at_s": True}, "at_s: expected a number, got true or false"),
        ({"at_s": "x\n"}, r"at_s: expected a number, got 'x\n'"),
        ({"at_s": 10**400}, "at_s: expected a number, got a number of too many digits"),
        ({"done": None}, "done: expected true or false, got null"),
        ({"rows": [[1], [2, -1]]}, "rows[1][1]: expected a whole number from 0 to"),
        ({"rows": {}}, "rows: expected a list, got an object"),
        ({"restarts": {"x": 1.5}}, "restarts.x: expected a whole number"),
        ({"slot": "eval/x"}, r"slot: expected text like eval/\d+, got 'eval/x'"),
        ({"hold_s": "x"}, "hold_s: expected a number or null, got 'x'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, said: str) -> None:
    assert parse_json(json.dumps(VALUE).encode(), SHAPE) == VALUE
    with pytest.raises(Misfit) as caught:
        parse_json(json.dumps(VALUE | change).encode(), SHAPE)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is empty"),
        (b"\0\0", "nothing but blanks"),
        (b'{"name": "a', "column"),
        (b'{"name": ', "it ends at line 1, column"),
        (b"{}x", "no JSON at line 1, column 3"),
        (b"\xff{}", "byte 0 is no UTF-8"),
        (b'{"at_s": NaN}', "a number that is none"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "expected an object, got a list"),
        (b"{}", "name is missing"),
    ],
)
def test_what_is_no_json_is_said_in_words_of_ours(text: bytes, said: str) -> None:
    with pytest.raises(Misfit, match=re.escape(said)):
        parse_json(text, SHAPE)


def test_any_damage_is_one_line_with_the_file_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(VALUE))
    assert read_json(path, SHAPE, "restore it") == VALUE
    damages = dict(byte_damages())
    for name, text in json_damages(VALUE):
        damages[name] = lambda path, text=text: path.write_bytes(text)
    refused = 0
    for damage in damages.values():
        remove(path)
        path.write_text(json.dumps(VALUE))
        damage(path)
        said = complaint(path)
        refused += bool(said)
        assert re.fullmatch(rf"{path} .*; restore it|", said), said
    assert refused > len(damages) // 2


def complaint(path: Path) -> str:
    """What is said of the file, "" for a whole one."""
    try:
        read_json(path, SHAPE, "restore it")
    except DamagedFile as error:
        return str(error)
    return ""
