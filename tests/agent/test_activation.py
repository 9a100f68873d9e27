"""Which version is served: switches one after another, and versions that cannot be read."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import HANG_S
from server_fixtures import (
    CountingPolicy,
    RunningServer,
    make_order,
    observe,
    post,
    running,
    start_own,
    take_slot,
)

from agent.policy import Staged
from agent.server import app
from agent.wire.errors import WireError
from agent.wire.messages import Activate, Activated, Rollback, Status

BRIEF_S = 0.2  # nobody waits longer for that answer
OPERATOR = 0  # the epoch of whoever is not the learner


class SlowPolicy(CountingPolicy):
    """Reading a version waits for `stage_gate`."""

    def __init__(self) -> None:
        super().__init__(adapter_slots=3)
        self.stage_gate = threading.Event()
        self.stage_gate.set()
        self.staging: list[str] = []

    def stage(self, version: str, folder: Path) -> Staged:
        self.staging.append(version)
        assert self.stage_gate.wait(HANG_S)
        return super().stage(version, folder)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "RELOAD_S", 0.02)
    monkeypatch.setattr(app, "TICK_S", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    policy = SlowPolicy()
    with running(tmp_path, policy) as server:
        yield server
        policy.stage_gate.set()


def journaled(folder: Path) -> list[str]:
    """The activations that would survive a loss of power, oldest first."""
    with sqlite3.connect(folder / "agent" / "agent.db") as ledger:
        return [v for (v,) in ledger.execute("SELECT version FROM activations ORDER BY seq")]


def code_of(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(WireError) as refused:
        call(*args)
    return refused.value.code


def replies(client, count: int) -> dict[int, object]:
    """{request id: reply} of the next ones."""
    found: dict[int, object] = {}
    while len(found) < count:
        got = client.poll(HANG_S)
        assert got, f"{count} replies expected, got {found}"
        found |= dict(got)
    return found


# ---- one after another -----------------------------------------------------------------------


def test_a_rollback_while_an_activation_loads_is_not_undone_by_it(server, tmp_path) -> None:
    operator, v1, v2 = server.operator(), server.publish(1), server.publish(2)
    operator.request(Activate(OPERATOR, v1))
    server.policy.stage_gate.clear()
    loading = operator.send(Activate(1, v2))
    server.wait_until(lambda: v2 in server.policy.staging)
    back = operator.send(Rollback())
    server.policy.stage_gate.set()
    answers = replies(operator, 2)
    assert (answers[loading].version, answers[loading].previous) == (v2, v1)
    assert (answers[back].version, answers[back].previous) == (v1, "base")
    assert operator.request(Status()).active_version == v1
    assert start_own(server.client()).version == v1
    assert journaled(tmp_path) == [v1, v2, v1]


def test_a_rollback_that_is_given_twice_goes_back_once(tmp_path) -> None:
    with running(tmp_path) as server:
        operator, v1, v2 = server.operator(epoch=0), server.publish(1), server.publish(2)
        for version in (v1, v2):
            operator.request(Activate(OPERATOR, version))
        assert operator.request(Rollback(again=False)).version == v1
        assert code_of(operator.request, Rollback(again=False)) == "conflict"
    with running(tmp_path) as server:
        operator = server.operator(epoch=0)
        assert code_of(operator.request, Rollback(again=False)) == "conflict"
        assert operator.request(Activate(OPERATOR, v2)).previous == v1
        assert operator.request(Rollback(again=False)).version == v1
        assert operator.request(Rollback()).version == "base"


def test_of_several_switches_the_last_decided_wins_whichever_is_loaded_first(
    server, tmp_path
) -> None:
    operator, versions = server.operator(), [server.publish(number) for number in (1, 2, 3)]
    operator.request(Activate(1, versions[0]))
    server.policy.stage_gate.clear()
    wanted = [versions[1], versions[2], "base", versions[0]]  # the last two need no loading
    sent = [operator.send(Activate(1 - place % 2, v)) for place, v in enumerate(wanted)]
    server.policy.stage_gate.set()
    answers = replies(operator, len(sent))
    assert [answers[request].version for request in sent] == wanted
    assert operator.request(Status()).active_version == versions[0]
    assert journaled(tmp_path) == [versions[0], *wanted]
    assert server.sample("perennial_adapter_version") == 1


def test_a_switch_that_fails_lets_the_next_one_be_made(server, tmp_path) -> None:
    operator, v1, v2 = server.operator(), server.publish(1), server.publish(2)
    (tmp_path / "adapters" / v1 / "weights.bin").write_bytes(b"altered")
    sent = [operator.send(m) for m in (Activate(1, v1), Rollback(), Activate(1, v2))]
    answers = replies(operator, 3)
    assert [getattr(answers[request], "code", "ok") for request in sent] == [
        "unknown_version", "conflict", "ok",
    ]  # fmt: skip
    assert journaled(tmp_path) == [v2]


def test_who_gave_up_and_asks_again_decides_nothing_new(server, tmp_path) -> None:
    learner, operator = server.operator(), server.operator(epoch=0)
    v1, v2 = server.publish(1), server.publish(2)
    learner.request(Activate(1, v1))
    server.policy.stage_gate.clear()
    learner.send(Activate(1, v2), timeout_s=BRIEF_S)
    server.wait_until(lambda: v2 in server.policy.staging)
    back = operator.send(Rollback())
    operator.request(Status())  # answered in order: the rollback has come
    time.sleep(3 * BRIEF_S)
    again = learner.send(Activate(1, v2))
    learner.request(Status())
    server.policy.stage_gate.set()
    while again not in (answers := replies(learner, 1)):
        pass  # the one that was given up is answered, too
    assert answers[again] == Activated(v2, v1, pytest.approx(answers[again].hold_s))
    assert replies(operator, 1)[back].version == v1
    assert operator.request(Status()).active_version == v1
    assert journaled(tmp_path) == [v1, v2, v1]


def test_a_switch_whose_turn_comes_too_late_is_not_made(server, tmp_path) -> None:
    learner, operator = server.operator(), server.operator(epoch=0)
    v1, v2, v3 = (server.publish(number) for number in (1, 2, 3))
    server.policy.stage_gate.clear()
    first = operator.send(Activate(OPERATOR, v1))
    server.wait_until(lambda: v1 in server.policy.staging)
    late = operator.send(Activate(OPERATOR, v2), timeout_s=BRIEF_S)
    stale = learner.send(Activate(1, v3))
    learner.request(Status())
    newer = server.operator(epoch=2)
    time.sleep(3 * BRIEF_S)
    server.policy.stage_gate.set()
    answers = replies(operator, 2)
    assert (answers[first].version, answers[late].code) == (v1, "deadline")
    assert replies(learner, 1)[stale].code == "stale_epoch"
    assert newer.request(Status()).active_version == v1
    assert journaled(tmp_path) == [v1]


# ---- versions that cannot be read ------------------------------------------------------------


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def alter(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"altered")


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"")


def put_folder_for_file(folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").mkdir()


def put_file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


DAMAGES = [remove, alter, empty_manifest, put_folder_for_file, put_file_for_folder]


class Spoilt:
    """Versions that an earlier server activated, and what became of their folders."""

    def __init__(self, folder: Path, activated: int) -> None:
        self.adapters = folder / "adapters"
        with running(folder) as server:
            operator = server.operator()
            self.versions = [server.publish(number) for number in range(1, activated + 1)]
            for version in self.versions:
                operator.request(Activate(1, version))

    def damage(self, version: str, how: Callable[[Path], None]) -> None:
        shutil.copytree(self.adapters / version, self.adapters.parent / "good" / version)
        how(self.adapters / version)

    def mend(self, version: str) -> None:
        """As it was published; complete at once."""
        folder = self.adapters / version
        if folder.is_dir():
            folder.rename(self.adapters.parent / "bad")
        else:
            folder.unlink(missing_ok=True)
        (self.adapters.parent / "good" / version).rename(folder)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_last_good_version_stands_in_for_one_that_cannot_be_read(damage, tmp_path) -> None:
    spoilt = Spoilt(tmp_path, 2)
    v1, v2 = spoilt.versions
    spoilt.damage(v2, damage)
    with running(tmp_path) as server:
        client, operator = server.client(), server.operator(epoch=0)
        assert operator.request(Status()).active_version == v1
        assert start_own(client).version == v1
        assert server.server.health().ready
        assert server.sample("perennial_adapter_unreadable") == 1
        assert server.sample("perennial_adapter_version") == 1
        spoilt.mend(v2)
        server.wait_until(lambda: operator.request(Status()).active_version == v2)
        assert start_own(client, "another").version == v2
        assert server.sample("perennial_adapter_unreadable") == 0
    assert journaled(tmp_path) == [v1, v2]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_base_never_stands_in(damage, tmp_path, caplog) -> None:
    spoilt = Spoilt(tmp_path, 1)
    (v1,) = spoilt.versions
    spoilt.damage(v1, damage)
    with running(tmp_path) as server:
        client, operator = server.client(), server.operator()
        assert operator.request(Status()).active_version == v1
        assert code_of(start_own, client) == "overloaded"
        health = server.server.health()
        assert (health.alive, health.ready) == (True, False)
        assert v1 in health.reason
        assert server.sample("perennial_adapter_unreadable") == 1
        post(operator, make_order(slots=1))  # of the base: it asks for nothing that is missing
        _, started = take_slot(client, "sim")
        assert client.request(observe(started.episode_id, 0)).version == "base"
        tries = len([r for r in caplog.records if v1 in r.getMessage()])
        server.wait_until(lambda: server.server.health().reason == health.reason)
        assert len([r for r in caplog.records if v1 in r.getMessage()]) == tries
        spoilt.mend(v1)
        server.wait_until(lambda: server.server.health().ready)
        assert start_own(client).version == v1
        assert server.sample("perennial_adapter_unreadable") == 0


def test_an_operator_decides_what_is_served_instead(tmp_path) -> None:
    spoilt = Spoilt(tmp_path, 2)
    v1, v2 = spoilt.versions
    spoilt.damage(v2, alter)
    with running(tmp_path) as server:
        back = server.operator(epoch=0).request(Rollback())
        assert (back.version, back.previous) == (v1, "base")
        assert server.sample("perennial_adapter_unreadable") == 0
    assert journaled(tmp_path) == [v1, v2, v1]
    spoilt.mend(v2)
    with running(tmp_path) as server:
        assert start_own(server.client()).version == v1


def test_the_base_is_served_where_it_was_chosen(tmp_path) -> None:
    spoilt = Spoilt(tmp_path, 1)
    spoilt.damage(spoilt.versions[0], remove)
    with running(tmp_path) as server:
        operator = server.operator(epoch=0)
        assert operator.request(Rollback()).version == "base"
        assert server.server.health().ready
        assert start_own(server.client()).version == "base"
    with running(tmp_path) as server:
        assert start_own(server.client()).version == "base"
        assert server.sample("perennial_adapter_unreadable") == 0


def test_a_version_that_is_missing_for_long_is_told_once(tmp_path, caplog) -> None:
    spoilt = Spoilt(tmp_path, 2)
    spoilt.damage(spoilt.versions[1], remove)
    caplog.clear()
    with running(tmp_path) as server:
        asked = []
        ensure = server.server._residency.ensure

        def count(version, done, **how) -> None:
            asked.append(version)
            ensure(version, done, **how)

        server.server._residency.ensure = count
        server.wait_until(lambda: asked.count(spoilt.versions[1]) >= 3)
        assert server.sample("perennial_adapter_swaps_total", result="verify_failed") == 1
    told = [r.getMessage() for r in caplog.records if "stands in" in r.getMessage()]
    assert len(told) == 1
