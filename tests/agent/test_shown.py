"""Text from outside cannot move a cursor, forge a line or turn the reading direction."""

from __future__ import annotations

import logging
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_fixtures import finish, make_order, observe, post, running, start_own, take_slot

from agent import cli_adapters, cli_keys, cli_model
from agent.cli_episodes import main as episodes
from agent.process.shown import complain, printable, shown, start_logging
from agent.wire.errors import WireError
from agent.wire.messages import Hello, Outcome

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


ESCAPES = "\x1b[2Jall is well\nFATAL\u202e\x07"


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("perennial x", f"{ESCAPES} {'y' * 9000}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"perennial x: \x1b[2Jall is well FATAL\u202e\x07 yyy")
    assert len(line) < 5000


def test_a_log_cannot_be_forged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    start_logging()
    try:
        raise ValueError(ESCAPES)
    except ValueError as error:
        logging.getLogger("a").error("met %s", ESCAPES, exc_info=error)
    said = capsys.readouterr().err
    assert "met \\x1b[2Jall is well\\nFATAL" in said
    assert "ValueError: \\x1b[2J" in said
    assert all(line.isprintable() for line in said.split("\n"))


def test_a_reason_is_harmless_wherever_it_comes_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as server, server.client() as robot, server.operator() as operator:
        robot.request(Hello("robot", ESCAPES))
        started = start_own(robot)
        robot.request(observe(started.episode_id, 0))
        robot.request(finish(started.episode_id, Outcome.FAILURE, reason=ESCAPES))
        with pytest.raises(WireError) as told:
            robot.request(observe(started.episode_id, 1))
        assert told.value.message.isprintable()
        post(operator, make_order("o"))
        _, slot = take_slot(robot)
        robot.request(finish(slot.episode_id, Outcome.ABORTED, chunks=0, reason=ESCAPES))
    with closing(sqlite3.connect(tmp_path / "agent" / "agent.db")) as ledger:
        reasons = [reason for (reason,) in ledger.execute("SELECT reason FROM episodes")]
    assert len(reasons) == 2
    assert all(reason.isprintable() and "all is well" in reason for reason in reasons)
    assert episodes(["list", str(tmp_path)]) == 0
    assert episodes(["show", str(tmp_path), started.episode_id]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_reasons_that_an_earlier_server_kept_are_shown_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as server, server.client() as robot:
        started = start_own(robot)
        robot.request(observe(started.episode_id, 0))
        robot.request(finish(started.episode_id, Outcome.FAILURE))
    with closing(sqlite3.connect(tmp_path / "agent" / "agent.db")) as ledger, ledger:
        ledger.execute("UPDATE episodes SET reason = ?", [ESCAPES])
    assert episodes(["list", str(tmp_path)]) == 0
    assert episodes(["show", str(tmp_path), started.episode_id]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_names_of_folders_are_harmless_in_what_a_command_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, run = tmp_path / "k\x1b[2J\nforged: may operate", tmp_path / "r\x1b]0;x\x07\n"
    (run / "adapters").mkdir(parents=True)
    for command, words in (
        (cli_keys, ["init", str(keys)]),
        (cli_keys, ["add", str(keys), "arm-1", "--may=act"]),
        (cli_keys, ["list", str(keys)]),
        (cli_adapters, ["list", str(run)]),
        (cli_model, ["verify", str(run)]),
    ):
        command.main(words)
        streams = capsys.readouterr()
        lines = (streams.out + streams.err).splitlines()
        assert lines
        assert [line for line in lines if not line.isprintable()] == []
        assert not any(line.startswith("forged") for line in lines)
