"""The server's promises, against the real thing: sockets, journal, threads and all."""

import hashlib
import sqlite3
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from patience import HANG_S
from server_fixtures import (
    A,
    CountingPolicy,
    K,
    finish,
    make_order,
    observe,
    post,
    running,
    start_own,
    take_slot,
)

from agent.config import AgentConfig
from agent.durable import StateLocked
from agent.episode import read_episode
from agent.metrics import AgentMetrics
from agent.orders import SLOT_ABORTS_MAX
from agent.policy import slot_hash
from agent.server import app, loop
from agent.server.app import Server
from agent.wire.errors import ConfigError, WireError
from agent.wire.messages import (
    AckEpisodes,
    Activate,
    Assign,
    EpisodeStart,
    FetchEpisodes,
    Hello,
    LearnerHello,
    Outcome,
    PostOrders,
    Rollback,
    Status,
)


@pytest.fixture
def server(tmp_path):
    with running(tmp_path) as running_server:
        yield running_server


def code_of(call, *args) -> str:
    with pytest.raises(WireError) as caught:
        call(*args)
    return caught.value.code


def test_messages_that_take_long_are_taken_over_several_turns(server, monkeypatch):
    """Or a crowd of them keeps everything else waiting, and looks like a loop that stands still."""
    monkeypatch.setattr(loop, "BURST_S", 0.0)
    state, taken = server.server._state, []
    turn = server.server._loop._turn
    monkeypatch.setattr(
        server.server._loop, "_turn", lambda now_s: (taken.append(state.requests), turn(now_s))[1]
    )
    client = server.client()
    for _ in range(50):
        client.send(Status())
    server.wait_until(lambda: len(taken) > 1 and taken[-1] >= 50)
    assert max(np.diff(taken)) <= 1


def test_an_ordered_episode_reaches_the_learner_as_it_was_served(server):
    operator, client = server.operator(), server.client()
    order = make_order()
    post(operator, order)
    lease, started = take_slot(client)
    assert (lease.slot_id, lease.version, started.version) == (
        f"{order.order_id}#0",
        "base",
        "base",
    )
    chunks = [client.request(observe(started.episode_id, step)) for step in range(3)]
    sealed = client.request(finish(started.episode_id, chunks=3))
    assert (sealed.outcome, sealed.counted) == ("success", True)

    (item,) = operator.request(FetchEpisodes(1, 10, 10.0)).items
    assert (item.slot_id, item.outcome, item.counted) == (lease.slot_id, "success", True)
    assert hashlib.sha256(item.payload).hexdigest() == item.sha256
    episode = read_episode(item.payload.tobytes())
    assert (episode.meta.noise_key, episode.meta.slot_index) == (order.noise_key, 0)
    assert [record.step_index for record in episode.chunks] == [0, 1, 2]
    for record, chunk in zip(episode.chunks, chunks, strict=True):
        np.testing.assert_array_equal(record.actions_KA, chunk.actions)
        assert (record.images["wrist"] == record.step_index).all()
    assert episode.end.executed_TK.shape == (3, K)
    assert (episode.end.executed_TK == 1).all()

    operator.request(AckEpisodes(1, {item.episode_id: item.sha256}))
    assert operator.request(Status()).episodes_unacked == 0
    operator.request(LearnerHello("learner", 2))
    assert operator.request(FetchEpisodes(2, 10, 0.0)).items == []


def test_sampling_noise_is_keyed_by_run_seed_slot_and_step(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(run_seed=11, noise_key="the key", temperature=1.6))
    _, started = take_slot(client)
    for step in range(2):
        client.request(observe(started.episode_id, step))
    requests = [request for batch in server.policy.batches for request in batch]
    expected = slot_hash("the key", 0)
    assert [request.noise_key for request in requests] == [(11, expected, 0), (11, expected, 1)]
    assert {request.temperature for request in requests} == {1.6}


def test_a_taken_folder_or_port_is_refused_before_the_model_is_loaded(server, tmp_path):
    def load_policy():
        raise AssertionError("loaded in vain")

    taken = AgentConfig(state_dir=str(tmp_path / "agent"))
    with pytest.raises(StateLocked):
        Server(taken, load_policy, AgentMetrics())
    endpoint = server.server.robots_endpoint
    taken = AgentConfig(state_dir=str(tmp_path / "other"), robots_endpoint=endpoint)
    with pytest.raises(ConfigError, match="choose another"):
        Server(taken, load_policy, AgentMetrics())


def test_a_repeated_observation_gets_the_stored_reply(server):
    client = server.client()
    started = start_own(client)
    first = client.request(observe(started.episode_id, 0))
    again = client.request(observe(started.episode_id, 0))
    second = client.request(observe(started.episode_id, 1))
    late = client.request(observe(started.episode_id, 0))
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.actions, late.actions)
    assert (first.actions != second.actions).all()
    assert sum(map(len, server.policy.batches)) == 2


def test_a_repeat_while_the_policy_thinks_joins_the_first(server):
    client = server.client()
    started = start_own(client)
    server.policy.gate.clear()
    with server.receiving(3):
        ids = {client.send(observe(started.episode_id, 0)) for _ in range(3)}
    server.policy.gate.set()
    replies = {}
    while replies.keys() != ids:
        replies.update(client.poll(HANG_S))
    assert len({reply.actions.tobytes() for reply in replies.values()}) == 1
    assert sum(map(len, server.policy.batches)) == 1


def test_wrong_steps_are_refused_and_change_nothing(server):
    client = server.client()
    started = start_own(client)
    for step in (1, 5, -1):
        assert code_of(client.request, observe(started.episode_id, step)) == "wrong_step"
    for step in range(4):
        client.request(observe(started.episode_id, step))
    assert code_of(client.request, observe(started.episode_id, 1)) == "wrong_step"
    assert client.request(observe(started.episode_id, 4)).step_index == 4


def test_a_repeated_start_and_end_are_answered_alike(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1))
    lease, started = take_slot(client, start_key="key-1")
    again = client.request(EpisodeStart("robot", "key-1", slot_id=lease.slot_id))
    assert again == started
    other = EpisodeStart("robot", "key-2", slot_id=lease.slot_id)
    assert code_of(client.request, other) == "episode_open_elsewhere"
    client.request(observe(started.episode_id, 0))
    ends = [client.request(finish(started.episode_id)) for _ in range(3)]
    ends.append(client.request(finish(started.episode_id, Outcome.FAILURE)))
    assert len(set(map(repr, ends))) == 1
    assert code_of(client.request, observe(started.episode_id, 1)) == "unknown_episode"
    assert (
        server.sample("perennial_episodes_total", task="reach", outcome="success", phase="train")
        == 1
    )


def test_a_late_copy_of_a_start_takes_no_slot_that_its_client_has_leased_again(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1))
    lease, started = take_slot(client, start_key="over")
    client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0))
    refused = EpisodeStart("robot", "refused", slot_id=lease.slot_id)
    assert code_of(client.request, refused) == "lease_lost"
    (again,) = client.request(Assign("robot", "toy", 1)).leases
    assert again.slot_id == lease.slot_id
    for key in ("over", "refused"):
        copy = EpisodeStart("robot", key, slot_id=lease.slot_id)
        assert code_of(client.request, copy) == "lease_lost"
    fresh = client.request(EpisodeStart("robot", "fresh", slot_id=lease.slot_id))
    client.request(observe(fresh.episode_id, 0))
    assert client.request(finish(fresh.episode_id)).counted


def test_a_late_copy_of_a_start_opens_no_other_episode_of_a_robots_own_task(server):
    client = server.client()
    client.request(Hello("robot", "test"))
    start = EpisodeStart("robot", "over", task="own")
    started = client.request(start)
    assert client.request(start) == started
    client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0))
    assert code_of(client.request, start) == "lease_lost"


def test_an_aborted_slot_is_leased_again_and_a_filled_one_is_not(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1))
    lease, started = take_slot(client)
    sealed = client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0))
    assert not sealed.counted
    again, started = take_slot(client)
    assert again.slot_id == lease.slot_id
    client.request(observe(started.episode_id, 0))
    assert client.request(finish(started.episode_id, Outcome.TIMEOUT)).counted
    assert client.request(Assign("robot", "toy", 1)).leases == []


def give_up(client, client_id, reason="reset: init_state:\nexpected 0 to 49, got 99"):
    _, started = take_slot(client, client_id)
    client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0, reason=reason))


def test_an_order_that_eight_clients_abort_is_refused_alone(server):
    operator, client = server.operator(revision=1), server.client()
    post(operator, make_order("bad", slots=1), make_order("good", slots=1))
    waiting = operator.send(FetchEpisodes(1, 10, 30.0))
    for n in range(SLOT_ABORTS_MAX):
        give_up(server.client(), f"robot-{n}")
    refused = {}
    while not refused:
        for _, reply in operator.poll(1.0):
            assert waiting
            refused |= reply.refused
            waiting = operator.send(FetchEpisodes(1, 10, 30.0))
    assert refused.keys() == {"bad"}
    assert "aborted 8 times by 8 clients" in refused["bad"]
    assert "expected 0 to 49, got 99; mend the cause" in refused["bad"]
    assert "\n" not in refused["bad"]
    client.request(Hello("other", ""))
    leases = client.request(Assign("other", "toy", 9)).leases
    assert [lease.slot_id for lease in leases] == ["good#0"]
    server.wait_until(lambda: server.sample("perennial_orders_refused_total") == 1.0)
    # An older learner cannot go on without the order and is told why it waits in vain.
    old = server.operator(epoch=2)
    with pytest.raises(WireError, match="by 8 clients") as caught:
        old.request(FetchEpisodes(2, 10, 30.0))
    assert caught.value.code == "order_refused"


def test_a_client_that_aborts_again_and_again_cools_off_and_ends_nothing(server):
    operator, vandal, honest = server.operator(revision=1), server.client(), server.client()
    post(operator, make_order(slots=1))
    honest.request(Hello("honest", ""))
    assert honest.request(Assign("honest", "tabletop", 1)).leases == []
    vandal.request(Hello("vandal", ""))
    aborted, refusals, until_s = 0, 0, time.monotonic() + 1.5
    while time.monotonic() < until_s:
        answer = vandal.request(Assign("vandal", "toy", 1))
        for lease in answer.leases:
            started = vandal.request(EpisodeStart("vandal", f"k{aborted}", slot_id=lease.slot_id))
            vandal.request(finish(started.episode_id, Outcome.ABORTED, chunks=0, reason="no"))
            aborted += 1
        refusals += not answer.leases
        if not answer.leases:
            assert answer.retry_after_s > 0
            time.sleep(0.02)
    assert 3 <= aborted <= 6  # two are free, then pauses of 0.25, 0.5, 1 s
    assert refusals
    server.wait_for_sample("perennial_clients_cooling_off")
    lease, started = take_slot(honest, "honest")
    honest.request(observe(started.episode_id, 0))
    assert honest.request(finish(started.episode_id)).counted
    (episode,) = [e for e in fetch_all(operator) if e.counted]
    assert episode.slot_id == lease.slot_id


def test_a_client_that_changes_its_name_is_still_one(server):
    operator, vandal, honest = server.operator(revision=1), server.client(), server.client()
    post(operator, make_order(slots=1), make_order("long", slots=40))
    honest.request(Hello("honest", ""))
    honest.request(Assign("honest", "toy", 1))
    aborted = 0
    for n in range(4 * SLOT_ABORTS_MAX):
        name = f"vandal-{n}"
        vandal.request(Hello(name, ""))
        for lease in vandal.request(Assign(name, "toy", 1)).leases:
            started = vandal.request(EpisodeStart(name, "k", slot_id=lease.slot_id))
            vandal.request(finish(started.episode_id, Outcome.ABORTED, chunks=0, reason="no"))
            aborted += 1
    assert 3 <= aborted < SLOT_ABORTS_MAX
    assert operator.request(FetchEpisodes(1, 1, 0.0)).refused == {}


def test_one_client_leaves_leases_for_the_others(server):
    operator, greedy, modest = server.operator(), server.client(), server.client()
    post(operator, make_order(slots=64))
    modest.request(Hello("modest", ""))
    modest.request(Assign("modest", "toy", 1))
    taken = 0
    for n in range(8):
        greedy.request(Hello(f"greedy-{n}", ""))
        taken += len(greedy.request(Assign(f"greedy-{n}", "toy", 64)).leases)
    assert taken <= 32
    assert len(modest.request(Assign("modest", "toy", 8)).leases) == 8


@pytest.mark.parametrize("suite", ["", "Toy", "s" * 129, "toy\n"])
def test_a_suite_that_is_no_slug_is_refused(server, suite):
    client = server.client()
    client.request(Hello("robot", ""))
    with pytest.raises(WireError, match="suite: expected 1 to 128"):
        client.request(Assign("robot", suite, 1))


def test_a_seal_that_nobody_waits_for_does_not_keep_a_server_from_stopping(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(app, "SEAL_LIMIT_S", HANG_S)
    caplog.set_level("INFO")
    with running(tmp_path) as server:
        start_own(server.client())
        with closing(sqlite3.connect(tmp_path / "agent" / "agent.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            server._stop.set()
            server.server.wake()
            server.wait_until(lambda: "stopped with 1 episodes open" in caplog.text)


def fetch_all(operator, epoch=1):
    """What there is to fetch now."""
    found = []
    while items := operator.request(FetchEpisodes(epoch, 10, 0.5)).items:
        found += items
    return found


def test_leases_that_run_out_unstarted_cool_off_their_holder(tmp_path):
    with running(tmp_path, lease_s=0.1) as server:
        operator, hoarder = server.operator(), server.client()
        post(operator, make_order(slots=3))
        hoarder.request(Hello("hoarder", ""))

        def cools_off():
            hoarder.request(Assign("hoarder", "toy", 3))
            time.sleep(0.3)  # silent for longer than its leases last
            return bool(server.sample("perennial_clients_cooling_off"))

        server.wait_until(cools_off)
        assert hoarder.request(Assign("hoarder", "toy", 3)).leases == []
        other = server.client()
        other.request(Hello("other", ""))
        assert len(other.request(Assign("other", "toy", 3)).leases) == 3


def test_an_ordered_episode_that_does_not_end_is_ended(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1, horizon_steps=1))
    _, started = take_slot(client)
    for step in range(4 + 64):
        client.request(observe(started.episode_id, step))
    with pytest.raises(WireError, match="observations for 1 steps"):
        client.request(observe(started.episode_id, step + 1))
    other = server.client()
    take_slot(other, "other")


def test_silence_frees_the_slot_for_another_client(tmp_path, monkeypatch):
    with running(tmp_path, lease_s=10 * HANG_S) as server:
        operator, silent, other = server.operator(), server.client(), server.client()
        post(operator, make_order(slots=1))
        lease, started = take_slot(silent, "silent")
        silent.request(observe(started.episode_id, 0))
        other.request(Hello("other", ""))
        assert other.request(Assign("other", "toy", 1)).leases == []
        real_s, passed_s = time.monotonic, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: real_s() + passed_s)
        deadline_s = real_s() + HANG_S
        leases = []
        while not leases and real_s() < deadline_s:
            passed_s += 2 * HANG_S  # a longer leap would be the server's own standstill
            other.request(Hello("other", ""))  # it lives
            leases = other.request(Assign("other", "toy", 1)).leases
        assert [found.slot_id for found in leases] == [lease.slot_id]
        assert code_of(silent.request, observe(started.episode_id, 1)) == "unknown_episode"
        end = silent.request(finish(started.episode_id))
        assert (end.outcome, end.counted) == ("aborted", False)


def test_a_restarted_client_gives_back_what_its_former_process_held(server):
    operator, old, new = server.operator(), server.client(), server.client()
    post(operator, make_order(slots=3))
    old.request(Hello("sim-0", "", instance_id="first"))
    ask = Assign("sim-0", "toy", 3, "first")
    done, opened, leased = (lease.slot_id for lease in old.request(ask).leases)
    ended = old.request(EpisodeStart("sim-0", "a", slot_id=done, instance_id="first"))
    old.request(observe(ended.episode_id, 0))
    assert old.request(finish(ended.episode_id)).counted
    started = old.request(EpisodeStart("sim-0", "b", slot_id=opened, instance_id="first"))
    old.request(observe(started.episode_id, 0))

    for _ in range(2):  # a repeated hello gives back nothing more
        new.request(Hello("sim-0", "", instance_id="second"))
    leases = new.request(Assign("sim-0", "toy", 3, "second")).leases
    assert [lease.slot_id for lease in leases] == [opened, leased]
    new.request(Hello("sim-0", "", instance_id="second"))
    assert new.request(Assign("sim-0", "toy", 3, "second")).leases == []

    assert code_of(old.request, observe(started.episode_id, 1)) == "unknown_episode"
    late = old.request(finish(started.episode_id))
    assert (late.outcome, late.counted) == ("aborted", False)
    for message in (
        EpisodeStart("sim-0", "c", slot_id=leased, instance_id="first"),
        ask,
        Hello("sim-0", "", instance_id="first"),
    ):
        assert code_of(old.request, message) == "stale_epoch"
    for lease in leases:
        again = new.request(
            EpisodeStart("sim-0", lease.slot_id[-1], slot_id=lease.slot_id, instance_id="second")
        )
        new.request(observe(again.episode_id, 0))
        assert new.request(finish(again.episode_id)).counted

    items = []
    while len(items) < 4:
        items += operator.request(FetchEpisodes(1, 10, 10.0)).items
    assert sorted(item.slot_id for item in items if item.counted) == [done, opened, leased]
    assert [i.episode_id for i in items if not i.counted] == [started.episode_id]


def test_a_restart_aborts_open_episodes_and_keeps_orders_and_ends(tmp_path):
    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_order(slots=2))
        _, done = take_slot(client)
        client.request(observe(done.episode_id, 0))
        client.request(finish(done.episode_id))
        open_lease, opened = take_slot(client)
        client.request(observe(opened.episode_id, 0))
    with running(tmp_path) as server:
        client = server.client()
        assert code_of(client.request, Assign("robot", "toy", 1)) == "server_restarted"
        assert client.request(finish(done.episode_id)).counted
        assert client.request(finish(opened.episode_id)).outcome == "aborted"
        lease, _ = take_slot(client)
        assert lease.slot_id == open_lease.slot_id
        items = server.operator(epoch=2).request(FetchEpisodes(2, 10, 1.0)).items
        assert {item.episode_id: item.outcome for item in items} == {
            done.episode_id: "success",
            opened.episode_id: "aborted",
        }


def test_a_failing_policy_is_a_fault_and_the_step_can_be_asked_again(server):
    client, other = server.client(), server.client()
    started, others = start_own(client), start_own(other, "other")
    server.policy.fail_next = True
    assert code_of(client.request, observe(started.episode_id, 0)) == "internal"
    assert client.request(observe(started.episode_id, 0)).step_index == 0
    assert other.request(observe(others.episode_id, 0)).step_index == 0


def test_requests_whose_client_gave_up_are_dropped(server):
    client, busy = server.client(), server.client()
    started, blocker = start_own(client), start_own(busy, "busy")
    server.policy.gate.clear()
    busy.send(observe(blocker.episode_id, 0))
    server.wait_until(lambda: server.policy.is_held)
    with server.receiving(1):
        client.send(observe(started.episode_id, 0), timeout_s=0.01)
    time.sleep(0.05)  # it gives up meanwhile
    server.policy.gate.set()
    ((_, fault),) = client.poll(HANG_S)
    assert fault.code == "deadline"
    assert client.request(observe(started.episode_id, 0)).step_index == 0


# ---- versions --------------------------------------------------------------------------------


def test_a_swap_drops_no_request_and_changes_no_running_episode(server):
    versions = ["base", *(server.publish(number) for number in (1, 2, 3, 4, 5))]
    stop, failures, seen = threading.Event(), [], []

    def ask_throughout(client, client_id):
        try:
            while not stop.is_set():
                started = start_own(client, client_id)
                for step in range(5):
                    chunk = client.request(observe(started.episode_id, step))
                    seen.append((started.episode_id, started.version, chunk.version))
                client.request(finish(started.episode_id, Outcome.ABORTED))
        except WireError as error:
            failures.append(error)

    threads = [
        threading.Thread(target=ask_throughout, args=(server.client(), f"robot-{i}"))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    operator = server.operator()
    for version in versions[1:]:
        activated = operator.request(Activate(1, version))
        assert activated.version == version
        mark = len(seen)
        while len({episode for episode, _, _ in seen[mark:]}) < 6 and not failures:
            time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join(HANG_S)
    assert not failures
    assert {pinned for _, pinned, _ in seen} == set(versions)
    assert all(pinned == served for _, pinned, served in seen)
    assert server.sample("perennial_adapter_swaps_total", result="ok") == 5
    assert server.sample("perennial_adapter_version") == 5
    assert server.sample("perennial_adapter_swap_pause_seconds_count") == 5


def test_versions_mix_in_one_batch(server):
    operator = server.operator()
    clients = [server.client() for _ in range(3)]
    episodes = [start_own(clients[0], "a")]
    for number, client in enumerate(clients[1:], start=1):
        operator.request(Activate(1, server.publish(number)))
        episodes.append(start_own(client, f"c{number}"))
    blocker, blocked = server.client(), None
    blocked = start_own(blocker, "blocker")
    server.policy.gate.clear()
    blocker.send(observe(blocked.episode_id, 0))
    server.wait_until(lambda: server.policy.is_held)
    with server.receiving(len(clients)):
        for client, episode in zip(clients, episodes, strict=True):
            client.send(observe(episode.episode_id, 0))
    server.policy.gate.set()
    for client, episode in zip(clients, episodes, strict=True):
        ((_, chunk),) = client.poll(HANG_S)
        assert chunk.version == episode.version
    assert len({request.version for request in server.policy.batches[-1]}) == 3


def test_activation_is_idempotent_and_rolls_back_across_a_restart(tmp_path):
    with running(tmp_path) as server:
        operator = server.operator()
        v1, v2 = server.publish(1), server.publish(2)
        assert operator.request(Activate(1, v1)).previous == "base"
        assert operator.request(Activate(1, v2)).previous == v1
        again = operator.request(Activate(1, v2))
        assert (again.version, again.previous, again.hold_s) == (v2, v1, 0.0)
    with running(tmp_path) as server:
        operator, client = server.operator(epoch=5), server.client()
        assert start_own(client).version == v2
        assert operator.request(Rollback()).version == v1
        assert start_own(client).version == v1
        assert operator.request(Rollback()).version == "base"
        assert code_of(operator.request, Rollback()) == "conflict"


def test_a_damaged_or_unknown_adapter_is_never_served(server, tmp_path):
    operator, client = server.operator(), server.client()
    version = server.publish(1)
    weights = tmp_path / "adapters" / version / "weights.bin"
    weights.write_bytes(b"altered")
    for name in (version, "v00009-0123456789ab", "../../etc", "v1", ""):
        assert code_of(operator.request, Activate(1, name)) == "unknown_version"
        order = make_order(version=name)
        assert code_of(operator.request, PostOrders(1, [order])) == "unknown_version"
    assert start_own(client).version == "base"
    assert operator.request(Status()).open_slots == 0


def test_slots_in_use_are_never_evicted(server):
    operator, client = server.operator(), server.client()
    *pinned, extra = (server.publish(number) for number in (1, 2, 3, 4))
    post(operator, *(make_order(f"o/{v}", version=v, slots=1) for v in pinned))
    assert code_of(operator.request, Activate(1, extra)) == "overloaded"
    for _ in pinned:
        lease, started = take_slot(client)
        assert client.request(observe(started.episode_id, 0)).version == lease.version
        client.request(finish(started.episode_id))
    assert operator.request(Activate(1, extra)).version == extra
    assert extra in operator.request(Status()).resident_versions


# ---- orders and epochs -----------------------------------------------------------------------


def test_orders_are_idempotent_and_conflicts_are_refused(server):
    operator = server.operator()
    post(operator, make_order(slots=3))
    post(operator, make_order(slots=3))
    assert operator.request(Status()).open_slots == 3
    assert code_of(operator.request, PostOrders(1, [make_order(slots=4)])) == "conflict"
    assert operator.request(Status()).open_slots == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"order_id": "../x"},
        {"order_id": "a//b"},
        {"order_id": ""},
        {"task": "Reach The Goal"},
        {"suite": ""},
        {"phase": "test"},
        {"slots": 0},
        {"slots": 10**6},
        {"temperature": -1.0},
        {"horizon_steps": 0},
        {"init_state": -1},
        {"run_seed": -1},
    ],
    ids=str,
)
def test_bad_orders_are_refused(server, changes):
    orders = PostOrders(1, [make_order("good"), make_order(**changes)])
    assert code_of(server.operator().request, orders) in ("bad_message", "conflict")
    assert server.operator(epoch=0).request(Status()).open_slots == 0


def test_a_newer_learner_replaces_the_older_one(server):
    old = server.operator(epoch=3)
    waiting = old.send(FetchEpisodes(3, 10, 30.0))
    new = server.operator(epoch=4)
    ((reply_id, fault),) = old.poll(HANG_S)
    assert (reply_id, fault.code) == (waiting, "stale_epoch")
    assert code_of(old.request, PostOrders(3, [])) == "stale_epoch"
    assert code_of(old.request, LearnerHello("old", 3)) == "stale_epoch"
    assert code_of(new.request, PostOrders(5, [])) == "server_restarted"
    post(new, make_order(), epoch=4)


def test_episodes_come_again_in_a_new_epoch_until_acknowledged(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=2))
    for _ in range(2):
        _, started = take_slot(client)
        client.request(observe(started.episode_id, 0))
        client.request(finish(started.episode_id))
    first = operator.request(FetchEpisodes(1, 10, 10.0)).items
    assert len(first) == 2
    assert operator.request(FetchEpisodes(1, 10, 0.0)).items == []
    operator.request(AckEpisodes(1, {first[0].episode_id: first[0].sha256}))
    wrong = AckEpisodes(1, {first[1].episode_id: "0" * 64})
    assert code_of(operator.request, wrong) == "conflict"
    operator.request(LearnerHello("learner", 2))
    again = operator.request(FetchEpisodes(2, 10, 10.0)).items
    assert [item.episode_id for item in again] == [first[1].episode_id]


def test_a_long_poll_is_answered_when_an_episode_is_sealed(server):
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1))
    fetch_id = operator.send(FetchEpisodes(1, 10, 30.0))
    _, started = take_slot(client)
    client.request(observe(started.episode_id, 0))
    client.request(finish(started.episode_id))
    ((reply_id, reply),) = operator.poll(HANG_S)
    assert (reply_id, len(reply.items)) == (fetch_id, 1)


def test_evaluation_keeps_pixels_of_a_few_episodes_a_task(tmp_path):
    with running(tmp_path, CountingPolicy(), keep_eval_images_per_task=1) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_order(slots=3, phase="eval", split="eval"))
        for _ in range(3):
            _, started = take_slot(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id))
        items = []
        while len(items) < 3:
            items += operator.request(FetchEpisodes(1, 10, 10.0)).items
        episodes = [read_episode(item.payload.tobytes()) for item in items]
    assert [bool(episode.chunks[0].images) for episode in episodes] == [True, False, False]
    assert all(episode.chunks[0].choices_KA.shape == (K, A) for episode in episodes)
