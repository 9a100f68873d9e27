"""What is damaged on the learner's disk is made again, or is one line; the others do not notice."""

import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from fake_agent import FakeAgent
from learner_run import PLAYED, Crash, Run, make_config

from agent.durable import StorageError
from learner import patience
from learner.checkpoint import CheckpointError
from learner.continual.past import Past
from learner.publication import FORK_FILE
from learner.store import LearnerStore, StoreError


def alter(path, count=4):
    """Turns over a few bytes in the middle of a file."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + count] = bytes(byte ^ 0xFF for byte in data[middle : middle + count])
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"), make_config())
    run.go()
    return run


def crashed(folder, update_id, moment, **algorithm):
    """A run that has ended at a moment of an update."""
    run = Run(folder, make_config(**algorithm), crash_at=(update_id, moment))
    with pytest.raises(Crash):
        run.go()
    run.restore()
    run.store.close()
    return run


def usable_rows(run):
    """Unused episodes of groups whose outcomes differ, by order."""
    store = LearnerStore(run.folder / "state/learner.db")
    by_order = {}
    for row in store.counted_episodes(run.agent.orders).values():
        if row.disposition is None:
            by_order.setdefault(row.order_id, []).append(row)
    store.close()
    return [r for rows in by_order.values() if len({x.success for x in rows}) > 1 for r in rows]


@pytest.mark.parametrize("damage", ["altered", "gone", "cut", "every one"])
def test_unused_episodes_that_are_damaged_are_run_again(tmp_path, undisturbed, damage):
    first = crashed(tmp_path, 1, "before_commit")
    rows = usable_rows(first)
    assert rows
    for row in rows if damage == "every one" else rows[:1]:
        path = tmp_path / "state/episodes" / row.file
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:100])
        else:
            alter(path)
    count = len(rows) if damage == "every one" else 1
    second = Run(tmp_path, make_config(), agent=first.agent)
    second.go()
    assert second.adapters.versions() == undisturbed.adapters.versions()
    assert len(first.agent.rejected) == count
    assert second.store.rejected() == {}
    counts = second.store.counts()
    assert counts.pop("quarantined") == count
    expected = undisturbed.store.counts()
    expected.pop("quarantined")
    assert counts == expected
    aside = list((tmp_path / "state/episodes/quarantine").iterdir())
    assert len(aside) == (0 if damage == "gone" else count)
    lines = (tmp_path / "state/progress.jsonl").read_text().splitlines()
    told = [e for e in map(json.loads, lines) if e["event"] == "episode_quarantined"]
    assert {e["episode_id"] for e in told} == first.agent.rejected.keys()


def test_a_rejection_that_was_not_told_is_told_after_a_restart(tmp_path, undisturbed):
    first = crashed(tmp_path, 1, "before_commit")
    (row, *_) = usable_rows(first)
    second = Run(tmp_path, make_config(), agent=first.agent)
    second.inbox.set_aside(row, "killed before the agent was told")
    second.store.close()
    third = Run(tmp_path, make_config(), agent=first.agent)
    third.go()
    assert first.agent.rejected.keys() == {row.episode_id}
    assert third.adapters.versions() == undisturbed.adapters.versions()


@pytest.mark.parametrize("damage", ["altered", "cut", "manifest", "file gone", "gone"])
def test_a_damaged_adapter_is_restored_from_its_checkpoint(tmp_path, undisturbed, damage):
    first = crashed(tmp_path, 2, "before_activate")
    newest = tmp_path / "adapters" / first.adapters.versions()[-1]
    weights = newest / "adapter_model.safetensors"
    if damage == "altered":
        alter(weights)
    elif damage == "cut":
        weights.write_bytes(b"")
    elif damage == "manifest":
        (newest / "manifest.json").write_text('{"half": ')
    elif damage == "file gone":
        weights.unlink()
    else:
        newest.rename(tmp_path / "elsewhere")
    second = Run(tmp_path, make_config(), agent=first.agent)
    second.go()
    assert second.adapters.versions() == undisturbed.adapters.versions()
    for version in second.adapters.versions():
        second.adapters.verify(version)


@pytest.mark.parametrize("update_id", [1, 2])
@pytest.mark.parametrize("damage", ["altered", "file gone", "gone"])
def test_an_update_whose_checkpoint_is_damaged_is_made_again(
    tmp_path, undisturbed, caplog, update_id, damage
):
    first = crashed(tmp_path, update_id, "before_activate")
    folder = max((tmp_path / "state/checkpoints").iterdir())
    if damage == "altered":
        alter(folder / "adapter.safetensors")
    elif damage == "file gone":
        (folder / "state.json").unlink()
    else:
        folder.rename(tmp_path / "elsewhere")
    second = Run(tmp_path, make_config(), agent=first.agent)
    with caplog.at_level(logging.ERROR):
        second.go()
    assert f"update {update_id} is made again" in caplog.text
    assert second.adapters.versions() == undisturbed.adapters.versions()
    assert second.store.counts() == undisturbed.store.counts()
    assert not first.agent.rejected


def test_an_update_is_made_again_also_where_used_episodes_are_dropped(tmp_path, undisturbed):
    config = make_config()
    config.keep_used_episodes = False
    first = Run(tmp_path, config, crash_at=(2, "before_activate"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    alter(max((tmp_path / "state/checkpoints").iterdir()) / "optimizer.safetensors")
    second = Run(tmp_path, config, agent=first.agent)
    second.go()
    assert second.adapters.versions() == undisturbed.adapters.versions()
    assert not first.agent.rejected


class NoDescriptors:
    """Files of a folder that cannot be opened until `left` attempts were refused."""

    def __init__(self, monkeypatch, name, left):
        self.left, read_bytes = left, Path.read_bytes

        def refuse(path):
            if self.left and name in path.parts:
                self.left -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return read_bytes(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    first = crashed(tmp_path, 2, "before_publish")
    updates = [LearnerStore(tmp_path / "state/learner.db").last_update()]
    NoDescriptors(monkeypatch, "checkpoints", left=1)
    second = Run(tmp_path, make_config(), agent=first.agent)
    with pytest.raises(StorageError, match="raise the limit of open files"):
        second.go()
    assert second.store.last_update() == updates[0]


def test_episodes_that_cannot_be_read_just_now_are_waited_for(
    tmp_path, undisturbed, monkeypatch, caplog
):
    monkeypatch.setattr(patience, "RETRY_PAUSE_S", 0.0)
    files = NoDescriptors(monkeypatch, "episodes", left=3)
    run = Run(tmp_path, make_config())
    run.go()
    assert files.left == 0
    assert run.adapters.versions() == undisturbed.adapters.versions()
    assert run.store.counts() == undisturbed.store.counts()
    assert "waiting for the disk" in caplog.text


def test_two_damaged_checkpoints_are_one_line_with_the_way_out(tmp_path):
    first = crashed(tmp_path, 2, "before_activate")
    for folder in (tmp_path / "state/checkpoints").iterdir():
        alter(folder / "adapter.safetensors")
    second = Run(tmp_path, make_config(), agent=first.agent)
    with pytest.raises(CheckpointError, match="restore it from a backup") as caught:
        second.go()
    assert "\n" not in str(caught.value)
    assert second.store.last_update().update_id == 2  # nothing was changed


def test_a_fork_with_a_damaged_checkpoint_or_name_of_it_is_refused(tmp_path):
    first = crashed(tmp_path, 2, "before_activate")
    (tmp_path / "state" / FORK_FILE).write_text('{"checkpoint_sha256": ')
    with pytest.raises(CheckpointError, match="copy the run again"):
        Run(tmp_path, make_config(), agent=first.agent).go()
    last = LearnerStore(tmp_path / "state/learner.db").last_update()
    told = {"checkpoint_sha256": last.checkpoint_sha256}
    (tmp_path / "state" / FORK_FILE).write_text(json.dumps(told))
    alter(max((tmp_path / "state/checkpoints").iterdir()) / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="fork from the run it came from again"):
        Run(tmp_path, make_config(), agent=first.agent).go()


@pytest.mark.parametrize("moment", ["before_commit", "before_activate"])
def test_an_agent_without_its_ledger_is_asked_for_what_is_missing_alone(
    tmp_path, undisturbed, moment
):
    first = crashed(tmp_path, 2, moment)
    store = LearnerStore(tmp_path / "state/learner.db")
    held = {row.slot_id for row in store.counted_episodes(first.agent.orders).values()}
    store.close()
    (tmp_path / "agent-anew").mkdir()
    fresh = FakeAgent(tmp_path / "agent-anew", first.serve, PLAYED)
    second = Run(tmp_path, make_config(), agent=fresh)
    second.go()
    assert not held & fresh.runs.keys()
    assert second.store.counts() == undisturbed.store.counts()
    assert second.store.counts()["quarantined"] == 0
    assert second.adapters.versions() == undisturbed.adapters.versions()


def test_an_agent_that_loses_its_ledger_meanwhile_is_told_again(tmp_path):
    """The learner runs on; a new epoch is all that it hears of it."""
    run = Run(tmp_path, make_config())
    posted = []
    original = run.agent.post_orders

    def forgetful(orders, **held):
        posted.append([order.order_id for order in orders])
        if len(posted) == 1:  # lost: the agent has died with it
            run.inbox.restarts += 1
            return
        original(orders, **held)

    run.agent.post_orders = forgetful
    run.go()
    assert posted[0] == posted[1]


class Refusing(FakeAgent):
    """Nobody can carry out one of its orders, of whose slots the first was run before."""

    refused_id, inbox = "train/0/1/0/1", None

    def run_slot(self, order, k):
        return super().run_slot(order, k)

    def post_orders(self, orders, held=None):
        for order in orders:
            if order.order_id == self.refused_id:
                self.orders[order.order_id] = order
                episode = self.run_slot(order, 0)
                with self.lock:
                    self.unacked[episode.episode_id] = episode
                self.inbox.refuse({order.order_id: "slot 1 was aborted 8 times by 8 clients"})
            else:
                super().post_orders([order], held or {})


@pytest.mark.parametrize("method", [{}, pytest.param({"grouping": "task"}, marks=pytest.mark.slow)])
def test_a_refused_order_is_given_up_alone(tmp_path, method):
    algorithm = {"resample_degenerate": 0, "iterations_per_task": 2, **method}
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    usual = Run(tmp_path / "one", make_config(**algorithm))
    usual.go()
    agent_dir = tmp_path / "other" / "agent"
    agent_dir.mkdir()
    agent = Refusing(agent_dir, None, PLAYED)
    run = Run(tmp_path / "other", make_config(**algorithm), agent=agent)
    agent.inbox = run.inbox
    run.go()

    def training(agent):
        return {
            order_id: (order.task, order.init_state, order.noise_key, order.slots)
            for order_id, order in agent.orders.items()
            if order_id.startswith("train")
        }

    assert training(agent) == training(usual.agent)  # the others are what they would have been
    assert run.store.refused_orders([agent.refused_id]) == {agent.refused_id}
    assert run.store.last_update().update_id == usual.store.last_update().update_id == 4
    counts = run.store.counts()
    assert counts["pending"] == 0
    assert counts["quarantined"] == 0
    lines = (tmp_path / "other/state/progress.jsonl").read_text().splitlines()
    iterations = [e for e in map(json.loads, lines) if e["event"] == "iteration"]
    slots = 3 if not method else 1
    assert [e["missing_episodes"] for e in iterations] == [slots, 0, 0, 0]


def test_an_evaluation_without_one_init_state_has_fewer_trials(tmp_path):
    agent_dir = tmp_path / "agent"
    agent_dir.mkdir()
    agent = Refusing(agent_dir, None, PLAYED)
    agent.refused_id = "eval/0/rollout/a/1"
    run = Run(tmp_path, make_config(), agent=agent)
    agent.inbox = run.inbox
    matrices = run.go()
    trials = matrices["rollout"].trials
    usual = run.config.suite.eval_init_states * run.config.evaluation.slots_per_state
    assert trials[0, 0] < usual == trials[0, 1]
    assert np.isfinite(matrices["rollout"].base_average().value)


def test_what_is_remembered_of_a_task_does_without_its_damaged_episodes(tmp_path, caplog):
    run = Run(tmp_path, make_config())
    run.go()
    past = Past(run.store, run.inbox.folder, run.config.cameras)
    (bad, *others) = past.last_rows(0)
    assert others
    alter(run.inbox.folder / bad.file)
    with caplog.at_level(logging.ERROR):
        held = past.read_whole([bad, *others])
    assert [episode.meta.episode_id for episode in held] == [row.episode_id for row in others]
    assert f"episode {bad.episode_id} is damaged and left out" in caplog.text
    assert past.last_samples(0) is not None


def test_a_damaged_database_is_one_line(tmp_path):
    path = tmp_path / "learner.db"
    store = LearnerStore(path)
    for _ in range(300):
        store.next_epoch()
    store.close()
    whole = path.read_bytes()
    pages = len(whole) // 4096
    torn = whole[: 4096 * (pages - 2)] + b"\xff" * 8192
    for damaged in (b"no database at all" * 300, whole[:4096] + b"\xff" * 8192, torn):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"learner\.db: .*restore it from a backup") as caught:
            LearnerStore(path)
        assert "\n" not in str(caught.value)
