"""`kill -9` of every process in the middle of a run: no episode is lost, none counts twice."""

from collections import Counter

import pytest
from toy_run import ToyRun

from deploy.local.checker import DISPOSITIONS, recount

SHOTS = 4  # evaluation episodes of a cell, by the smoke budget

pytestmark = pytest.mark.slow


def test_every_process_was_killed_once_and_started_again(killed: ToyRun) -> None:
    assert killed.restarts == {"agent": 1, "learner": 1, "sim-0": 1}


def test_clients_and_ledgers_agree_on_every_episode(killed: ToyRun) -> None:
    found = recount(killed.records)
    assert found.problems == []
    assert found.lost == []
    assert found.duplicated == []
    trials = [[rate.trials for rate in row] for row in found.matrices["rollout"].cells]
    assert trials == [[SHOTS, SHOTS, SHOTS], [SHOTS, 0, 0], [SHOTS, SHOTS, SHOTS]]


def test_every_logged_end_has_exactly_one_disposition(killed: ToyRun) -> None:
    logged = Counter(end["episode_id"] for end in killed.records.ends)
    assert set(logged.values()) == {1}
    rows = killed.records.learner_rows
    assert {rows[episode_id].disposition for episode_id in logged} <= set(DISPOSITIONS)


def test_only_counted_training_episodes_were_trained_on(killed: ToyRun) -> None:
    trained = [r for r in killed.records.learner_rows.values() if r.disposition == "trained"]
    assert trained
    assert {(row.phase, row.counted) for row in trained} == {("train", True)}
    assert "aborted" not in {row.outcome for row in trained}
