"""People are told once when episodes begin to be lost, and once when they are kept again."""

from __future__ import annotations

import numpy as np
import pytest

from agent.wire.messages import Chunk, EpisodeSealed, EpisodeStarted
from sim_bridge.unkept import Unkept


def chunk(episode: str, recorded: bool) -> Chunk:
    return Chunk(episode, 0, np.zeros((4, 7), np.float32), "base", recorded=recorded)


def test_one_line_when_it_begins_and_one_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    unkept = Unkept()
    unkept.note(EpisodeStarted("a", "base", True))
    assert not caplog.records
    for _ in range(3):
        unkept.note(chunk("a", False))
        unkept.note(chunk("b", False))
    unkept.note(EpisodeSealed("a", "aborted", False, False))
    unkept.note(EpisodeStarted("c", "base", False))
    unkept.note(EpisodeStarted("d", "base", True))
    unkept.note(chunk("b", False))  # of before
    unkept.note(EpisodeSealed("b", "aborted", False, False))
    assert unkept.count == 3
    begin, end = (record.getMessage() for record in caplog.records)
    assert "does not keep episode a" in begin
    assert "keeps episodes again, from d on" in end
    unkept.note(chunk("d", False))
    assert unkept.count == 4
    assert len(caplog.records) == 3
