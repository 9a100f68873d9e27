"""A learner waits for its disk, and loses neither an episode nor an event."""

import errno
import json
import os
import sqlite3

import pytest

from learner import patience
from learner.patience import until_taken
from learner.progress import ProgressLog
from learner.stopping import Stopped
from learner.store import LearnerStore

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(patience, "RETRY_PAUSE_S", 0.0)


def test_what_may_pass_is_tried_again_and_told_once(caplog):
    errors = [FULL, FULL, OSError(errno.EMFILE, "x")]

    def action():
        if errors:
            raise errors.pop()
        return 7

    assert until_taken(action, lambda: False) == 7
    assert caplog.text.count("waiting for the disk") == 1


def test_a_stop_ends_the_waiting_and_a_bug_is_no_reason_to_wait():
    def fail(error):
        raise error

    with pytest.raises(Stopped):
        until_taken(lambda: fail(FULL), lambda: True)
    with pytest.raises(ValueError, match="x"):
        until_taken(lambda: fail(ValueError("x")), lambda: False)


def test_a_line_that_did_not_fit_leaves_nothing_of_itself(tmp_path):
    path = tmp_path / "progress.jsonl"
    log = ProgressLog(path)
    log.write("start")
    write, refusals = log._file.write, [True, False]

    class Half:
        def __getattr__(self, name):
            return getattr(log_file, name)

        def write(self, data):
            if refusals:
                if refusals.pop():
                    raise FULL
                return write(data[: len(data) // 2])
            return write(data)

    log_file, log._file = log._file, Half()
    log.write("iteration", update=1)
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["start", "iteration"]
    log.close()


def test_a_full_database_is_no_dead_end(tmp_path):
    store = LearnerStore(tmp_path / "learner.db")
    first = store.next_epoch()
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.quarantine("e" * 32, "0" * 64, "why" * 100_000)
    store._db.execute("PRAGMA max_page_count = 100000")
    store.quarantine("f" * 32, "0" * 64, "why")
    assert store.next_epoch() == first + 1
    store.close()
