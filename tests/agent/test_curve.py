"""Encryption and permissions: who is not let in, or may not do something, is told so and why."""

import logging
import socket
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import zmq.auth
import zmq.utils.z85
from patience import HANG_S
from server_fixtures import finish, make_order, observe, running

from agent.ledger import LedgerReader
from agent.server.permissions import NEEDED, needed_for
from agent.wire import keys
from agent.wire import messages as m
from agent.wire.client_list import ANYBODY, Permission
from agent.wire.curve import LOG_EVERY_S, PEERS_MAX, REASONS, Door, Refusals
from agent.wire.errors import ConfigError, HandshakeRefused, RequestTimeout, WireError
from agent.wire.handshake import read_mechanism
from agent.wire.sockets import DealerClient, RouterSocket
from sim_bridge.client import RequestTable

HELLO = m.Hello("robot", "test")


class Keys:
    """A server's folder, and one for each client that was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = folder / "server"
        keys.ensure_server_keys(self.server)

    def client(self, name: str, *may: str) -> keys.ClientKeys:
        keys.ensure_client(self.server, name, may, self.folder / name)
        return keys.load_client_keys(self.folder / name)

    def secrets(self) -> list[str]:
        paths = self.folder.rglob("*.key_secret")
        return [zmq.auth.load_certificate(path)[1].decode() for path in paths]


@pytest.fixture
def ring(tmp_path):
    return Keys(tmp_path / "keys")


@pytest.fixture
def server(tmp_path, ring):
    with running(tmp_path, keys_dir=str(ring.server)) as server:
        yield server


@contextmanager
def robot(server, client_keys, timeout_s=HANG_S):
    with DealerClient(server.server.robots_endpoint, timeout_s, keys=client_keys) as client:
        yield client


@contextmanager
def operator(server, client_keys):
    endpoint = server.server.operator_endpoint
    with DealerClient(endpoint, HANG_S, keys=client_keys) as client:
        yield client


def code_of(client: DealerClient, message: object) -> str:
    try:
        client.request(message)
    except WireError as error:
        return error.code
    return "ok"


def refused(server, reason: str) -> float:
    return server.sample("perennial_clients_refused_total", reason=reason)


def wait_until(condition, limit_s=HANG_S):
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# ---- permissions -----------------------------------------------------------------------------

CLIENT_MESSAGES = [
    HELLO,
    m.Assign("robot", "toy", 1),
    m.Telemetry("robot", {}),
    m.EpisodeStart("robot", "key", task="own"),
    observe("none", 0),
    finish("none"),
    finish("none", m.Outcome.ABORTED),
]
OPERATOR_MESSAGES = [
    m.LearnerHello("learner", 1),
    m.PostOrders(1, [make_order()]),
    m.FetchEpisodes(1, 1, 0.0),
    m.FetchPart(1, "0" * 32, 0, 1),
    m.AckEpisodes(1, {}),
    m.RejectEpisodes(1, {}),
    m.Activate(0, "base"),
    m.Rollback(),
    m.Status(),
]


@pytest.mark.parametrize(
    "may", [(), ("act",), ("report",), ("act", "report"), ("operate",), ("act", "operate")]
)
def test_a_client_may_exactly_what_its_key_allows(ring, server, may):
    client_keys = ring.client("one", *may)
    with robot(server, client_keys) as client, operator(server, client_keys) as learner:
        for asker, messages in ((client, CLIENT_MESSAGES), (learner, OPERATOR_MESSAGES)):
            for message in messages:
                is_forbidden = code_of(asker, message) == "forbidden"
                assert is_forbidden == (needed_for(message) not in may), message


def test_every_message_that_is_answered_needs_some_permission(server):
    tables = [server.server._client_handlers(), server.server._operator_handlers()]
    assert {message for table in tables for message in table} == set(NEEDED)
    assert set(tables[1]) == {t for t, needed in NEEDED.items() if needed == Permission.OPERATE}
    assert {type(message) for message in CLIENT_MESSAGES + OPERATOR_MESSAGES} == set(NEEDED)


def test_only_an_aborted_end_needs_no_report():
    needed = {outcome: needed_for(finish("none", outcome)) for outcome in m.Outcome}
    assert needed.pop(m.Outcome.ABORTED) == Permission.ACT
    assert set(needed.values()) == {Permission.REPORT}


def test_who_lacks_a_permission_is_told_what_and_how_to_get_it(ring, server):
    with robot(server, ring.client("arm-1", "act")) as client:
        client.request(HELLO)
        started = client.request(m.EpisodeStart("robot", "key", task="own"))
        client.request(observe(started.episode_id, 0))
        with pytest.raises(WireError) as refusal:
            client.request(finish(started.episode_id))
        text = str(refusal.value)
        assert "'arm-1' may not report (it may act)" in text
        assert "perennial keys add KEYS arm-1 --may act,report" in text
        assert refused(server, "forbidden") == 1
        ring.client("arm-1", "act", "report")
        sealed = client.request(finish(started.episode_id))
    assert sealed.outcome == m.Outcome.SUCCESS


def test_an_episode_and_a_client_id_belong_to_the_key_that_opened_them(ring, server):
    both = ("act", "report")
    with robot(server, ring.client("a", *both)) as a, robot(server, ring.client("b", *both)) as b:
        a.request(HELLO)
        started = a.request(m.EpisodeStart("robot", "key", task="own"))
        for message in (
            HELLO,
            m.Hello("robot", "test", instance_id="new"),  # would give back what a holds
            m.Assign("robot", "toy", 1),
            m.Telemetry("robot", {}),
            m.EpisodeStart("robot", "key", task="own"),
            observe(started.episode_id, 0),
            finish(started.episode_id, chunks=0),
            finish(started.episode_id, m.Outcome.ABORTED, chunks=0),
        ):
            assert code_of(b, message) == "forbidden", message
        assert a.request(observe(started.episode_id, 0)).step_index == 0
        assert a.request(finish(started.episode_id)).outcome == m.Outcome.SUCCESS
        b.request(m.Hello("other", "test"))


def closed_episode(client: DealerClient) -> str:
    client.request(HELLO)
    episode_id = client.request(m.EpisodeStart("robot", "key", task="own")).episode_id
    client.request(observe(episode_id, 0))
    assert client.request(finish(episode_id)).outcome == m.Outcome.SUCCESS
    return episode_id


def test_how_an_episode_ended_is_told_to_the_key_that_opened_it(ring, tmp_path):
    a_keys, b_keys = (ring.client(name, "act", "report") for name in "ab")
    episode_ids = []

    def check() -> None:
        with robot(server, a_keys) as a, robot(server, b_keys) as b:
            b.request(m.Hello("robot-b", "test"))
            for episode_id in episode_ids:
                for message in (
                    finish(episode_id),
                    finish(episode_id, m.Outcome.ABORTED, chunks=0),
                    observe(episode_id, 0),
                    observe(episode_id, 1),
                ):
                    with pytest.raises(WireError, match="belongs to another client") as refusal:
                        b.request(message)
                    assert refusal.value.code == "forbidden"
                    assert "success" not in str(refusal.value)
                # What its owner sends again is answered as ever.
                assert a.request(finish(episode_id)).outcome == m.Outcome.SUCCESS
                with pytest.raises(WireError, match="has ended: success"):
                    a.request(observe(episode_id, 0))
            assert code_of(b, finish("f" * 32)) == "unknown_episode"

    with running(tmp_path, keys_dir=str(ring.server)) as server:
        with robot(server, a_keys) as a:
            episode_ids.append(closed_episode(a))
        check()
        with operator(server, ring.client("learner", "operate")) as learner:
            learner.request(m.LearnerHello("learner", 1))
            (item,) = learner.request(m.FetchEpisodes(1, 1, 0.0)).items
            learner.request(m.AckEpisodes(1, {item.episode_id: item.sha256}))
        with robot(server, a_keys) as a:
            episode_ids.append(closed_episode(a))
    with running(tmp_path, keys_dir=str(ring.server)) as server:
        check()
        # A new key under the old name is the same client.
        keys.remove_client(ring.server, "a")
        keys.ensure_client(ring.server, "a", ["act", "report"], ring.folder / "new")
        with robot(server, keys.load_client_keys(ring.folder / "new")) as a:
            assert a.request(finish(episode_ids[0])).outcome == m.Outcome.SUCCESS


def test_an_episode_that_a_restart_aborted_belongs_to_its_key_too(ring, tmp_path):
    a_keys, b_keys = (ring.client(name, "act", "report") for name in "ab")
    settings = {"keys_dir": str(ring.server)}
    with running(tmp_path, **settings) as server, robot(server, a_keys) as a:
        a.request(HELLO)
        episode_id = a.request(m.EpisodeStart("robot", "key", task="own")).episode_id
        a.request(observe(episode_id, 0))
        server.server._episodes.abort_all = lambda reason: None  # it dies with the episode open
        server.server._episodes._open.clear()
    with running(tmp_path, **settings) as server:
        with robot(server, b_keys) as b:
            assert code_of(b, observe(episode_id, 1)) == "forbidden"
            assert code_of(b, finish(episode_id)) == "forbidden"
        with robot(server, a_keys) as a:
            assert code_of(a, observe(episode_id, 1)) == "server_restarted"
            assert a.request(finish(episode_id)).outcome == m.Outcome.ABORTED


def test_of_a_ledger_without_owners_nobody_with_a_key_is_told(ring, tmp_path):
    client_keys = ring.client("a", "act", "report")
    path = tmp_path / "agent" / "agent.db"

    def forget_owners() -> None:
        """Makes it the ledger that version 2 wrote."""
        with closing(sqlite3.connect(path)) as db:
            db.executescript("ALTER TABLE episodes DROP COLUMN owner; PRAGMA user_version = 2;")

    with running(tmp_path, keys_dir=str(ring.server)) as server, robot(server, client_keys) as a:
        episode_id = closed_episode(a)
    forget_owners()
    reader = LedgerReader(path)  # as the commands that only read do
    rows = reader.episodes()
    reader.close()
    assert [(row.episode_id, row.outcome) for row in rows] == [(episode_id, "success")]
    with running(tmp_path, keys_dir=str(ring.server)) as server:
        with robot(server, client_keys) as a:
            # A client goes on after this one; `forbidden` would end it.
            assert code_of(a, finish(episode_id)) == "unknown_episode"
            assert code_of(a, observe(episode_id, 0)) == "unknown_episode"
            a.request(m.Hello("robot", "test"))
            again = a.request(m.EpisodeStart("robot", "again", task="own")).episode_id
            assert a.request(finish(again, m.Outcome.ABORTED, chunks=0)).episode_id == again
        assert server.server._journal.row(episode_id) == rows[0]
    forget_owners()
    with running(tmp_path) as server:  # without keys there is nothing to tell clients by
        assert server.client().request(finish(episode_id)).outcome == m.Outcome.SUCCESS


def test_a_removed_client_is_refused_from_its_next_message_on(ring, server):
    client_keys = ring.client("arm-1", "act")
    with robot(server, client_keys) as client:
        client.request(HELLO)
        keys.remove_client(ring.server, "arm-1")
        with pytest.raises(WireError, match=r"forbidden: Hello: the key .* no longer let in"):
            client.request(HELLO)
        keys.allow_client(ring.server, "arm-1", client_keys.pair.public, ["act"])
        client.request(HELLO)  # the connection is still there


def test_a_new_key_under_an_old_name_does_not_revive_the_old_key(ring, server):
    with robot(server, ring.client("arm-1", "act")) as client:
        client.request(HELLO)
        keys.remove_client(ring.server, "arm-1")
        keys.ensure_client(ring.server, "arm-1", ["act"], ring.folder / "again")
        assert code_of(client, HELLO) == "forbidden"


def test_long_running_clients_end_on_a_refusal():
    class Forbidding:
        endpoint = "tcp://here"

        def send(self, message):
            return 1

        def poll(self, timeout_s):
            return [(1, m.Fault("forbidden", "the way out"))]

    table = RequestTable(Forbidding(), 1.0)
    table.ask("hello", HELLO)
    with pytest.raises(ConfigError, match="tcp://here: the way out"):
        table.receive(0.0)


# ---- the handshake ---------------------------------------------------------------------------


@pytest.fixture(params=["tcp", "ipc"])
def any_server(request, tmp_path, ring):
    endpoint = "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{tmp_path}/r.sock"
    with running(tmp_path, keys_dir=str(ring.server), robots_endpoint=endpoint) as server:
        yield server


def test_a_known_key_is_let_in(ring, any_server):
    with robot(any_server, ring.client("arm-1", "act")) as client:
        welcome = client.request(HELLO)
        started = client.request(m.EpisodeStart("robot", "key", task="own"))
        chunk = client.request(observe(started.episode_id, 0))
    assert chunk.actions.shape == (welcome.chunk_steps, welcome.action_dim)
    assert read_mechanism(any_server.server.robots_endpoint) == "CURVE"
    assert [refused(any_server, reason) for reason in REASONS] == [0] * len(REASONS)


def test_an_unknown_key_is_told_so(ring, any_server, caplog):
    client_keys = ring.client("arm-1", "act")
    keys.remove_client(ring.server, "arm-1")
    public = client_keys.pair.public
    with robot(any_server, client_keys) as client:
        with pytest.raises(HandshakeRefused) as refusal:
            client.request(HELLO)
        assert f"refused this client's key ({public[:5]}...)" in str(refusal.value)
        assert f"perennial keys allow KEYS NAME '{public}'" in str(refusal.value)
        assert refused(any_server, "unknown_key") >= 1
        assert f"with the key {public[:5]}...: unknown key" in caplog.text
        keys.allow_client(ring.server, "arm-1", public, ["act"])
        client.request(HELLO)  # the same object, once it is let in


def test_a_wrong_server_key_is_told_so(ring, any_server, tmp_path):
    other = Keys(tmp_path / "other")
    with (
        robot(any_server, other.client("arm-1", "act")) as client,
        pytest.raises(HandshakeRefused, match=r"another key than .*/server\.key says"),
    ):
        client.request(HELLO)
    wait_until(lambda: refused(any_server, "wrong_server_key") >= 1)


def test_a_client_without_keys_is_told_so(any_server):
    with (
        robot(any_server, None) as client,
        pytest.raises(HandshakeRefused, match="demands CURVE and this client has no keys"),
    ):
        client.request(HELLO)


def test_a_peer_without_curve_is_counted(server):
    host, _, port = server.server.robots_endpoint.removeprefix("tcp://").partition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    with socket.create_connection((host, int(port)), HANG_S) as peer:
        peer.sendall(greeting)
        wait_until(lambda: refused(server, "no_curve") == 1)


def test_a_server_without_curve_is_told_of(ring, tmp_path):
    with (
        running(tmp_path) as plain,
        robot(plain, ring.client("arm-1", "act")) as client,
        pytest.raises(HandshakeRefused, match="does not use CURVE"),
    ):
        client.request(HELLO)


def test_a_client_that_was_refused_before_it_said_anything_is_told_too(ring, server):
    client_keys = ring.client("arm-1", "act")
    keys.remove_client(ring.server, "arm-1")
    with robot(server, client_keys) as client:
        wait_until(lambda: client._watch.events.poll(0))  # nothing was asked so far
        with pytest.raises(HandshakeRefused):
            client.request(HELLO)


def test_pipelined_clients_are_told_too(ring, server):
    client_keys = ring.client("arm-1", "act")
    keys.remove_client(ring.server, "arm-1")
    with robot(server, client_keys) as client:
        client.send(HELLO)
        with pytest.raises(HandshakeRefused):
            client.poll(HANG_S)


def test_a_server_that_is_down_is_waited_for(ring):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        for client_keys in (None, ring.client("arm-1", "act")):
            with (
                DealerClient(endpoint, 0.3, keys=client_keys) as client,
                pytest.raises(RequestTimeout),
            ):
                client.request(HELLO)


def test_a_proxy_without_a_server_behind_it_is_waited_for(ring):
    """It takes every connection and closes it at once, as a container engine's does."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        taken = []

        def accept() -> None:
            while not stop.is_set():
                try:
                    listener.accept()[0].close()
                    taken.append(1)
                except TimeoutError:
                    pass

        thread = threading.Thread(target=accept)
        thread.start()
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with DealerClient(endpoint, 1.5, keys=ring.client("arm-1", "act")) as client:
                with pytest.raises(RequestTimeout):
                    client.request(HELLO)
                wait_until(lambda: len(taken) > 10)  # often enough to look like a refusal
        finally:
            stop.set()
            thread.join()


def test_clients_come_back_by_themselves_after_a_restart(ring, tmp_path):
    endpoint = f"ipc://{tmp_path}/r.sock"
    settings = {"keys_dir": str(ring.server), "robots_endpoint": endpoint}
    with DealerClient(endpoint, 0.5, keys=ring.client("arm-1", "act")) as client:
        with running(tmp_path, **settings):
            first = client.request(HELLO, retries=40).server_id
        with running(tmp_path, **settings):
            assert client.request(HELLO, retries=40).server_id != first


def test_without_its_authenticator_a_server_lets_nobody_in(ring, server):
    door = server.server._robots.door
    assert server.server.health().ready
    door.admission.stop()
    assert not server.server.health().ready
    with (
        robot(server, ring.client("arm-1", "act"), 0.5) as client,
        pytest.raises((RequestTimeout, HandshakeRefused)),
    ):
        client.request(HELLO)


# ---- addresses, logs, secrets ----------------------------------------------------------------


def test_keys_allow_a_bind_beyond_this_machine(ring):
    door = Door(ring.server, lambda reason: None)
    try:
        with RouterSocket("tcp://0.0.0.0:0", door=door) as router:
            assert router.endpoint.startswith("tcp://0.0.0.0:")
        with pytest.raises(ConfigError, match="cannot be encrypted"):
            RouterSocket("inproc://x", door=door)
    finally:
        door.close()
    with pytest.raises(ConfigError, match="perennial keys init"):
        RouterSocket("tcp://0.0.0.0:0")


def test_a_server_without_its_keys_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match="perennial keys init"):
        Door(tmp_path, lambda reason: None)


def test_a_door_stops_its_threads(ring):
    before = threading.active_count()
    door = Door(ring.server, lambda reason: None)
    with RouterSocket("tcp://127.0.0.1:0", door=door):
        assert threading.active_count() > before
    door.close()
    assert threading.active_count() == before


def test_all_are_counted_and_each_peer_logged_once_in_a_while(caplog):
    now_s, counted = [0.0], []
    refusals = Refusals(counted.append, clock=lambda: now_s[0])
    for number in range(100):  # the key is another one each time
        refusals.note("unknown_key", "a", f"a with the key {number}", f"allow {number}")
    refusals.note("unknown_key", "b", "b", "text")
    refusals.note("forbidden", "a", "a", "text")
    assert (len(counted), len(caplog.records)) == (102, 3)
    now_s[0] = LOG_EVERY_S
    refusals.note("unknown_key", "a", "a", "text")
    assert len(caplog.records) == 4


def test_a_crowd_of_peers_has_one_line_more_than_the_table(caplog):
    now_s = [0.0]
    refusals = Refusals(lambda reason: None, clock=lambda: now_s[0])
    for _ in range(3):
        for number in range(10 * PEERS_MAX):
            refusals.note("unknown_key", str(number), str(number), "text")
    assert len(caplog.records) == PEERS_MAX + 1
    assert f"more than {PEERS_MAX} peers" in caplog.text
    refusals.note("forbidden", "arm-1", "arm-1", "lacks report")  # not hidden by them
    assert caplog.records[-1].message == "refused arm-1: lacks report"
    for _ in range(100):
        now_s[0] += LOG_EVERY_S / 10
        for number in range(2 * PEERS_MAX):
            refusals.note("unknown_key", f"{now_s[0]}/{number}", "peer", "text")
        assert all(len(table) <= PEERS_MAX + 1 for table in refusals._logged_s.values())
    assert len(caplog.records) <= 1 + 12 * (PEERS_MAX + 1)


def test_a_peer_that_changes_its_key_has_one_line(ring, any_server, caplog):
    any_server.server._robots.door.refusals._clock = lambda: 0.0
    for number in range(5):
        name = f"arm-{number}"
        client_keys = ring.client(name, "act")
        keys.remove_client(ring.server, name)
        with robot(any_server, client_keys) as client, pytest.raises(HandshakeRefused):
            client.request(HELLO)
    assert refused(any_server, "unknown_key") >= 5
    assert caplog.text.count("unknown key") == 1


def test_a_message_on_a_socket_in_clear_may_do_everything():
    assert ANYBODY.may == set(Permission)


def test_no_secret_is_in_anything_that_was_written(ring, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    texts = []
    state = tmp_path / "state"
    with running(state, keys_dir=str(ring.server)) as server:
        good, bad = ring.client("good", "act"), ring.client("bad", "act")
        keys.remove_client(ring.server, "bad")
        other = Keys(tmp_path / "other").client("x", "act")
        for client_keys in (good, bad, other, None):
            with robot(server, client_keys) as client:
                try:
                    texts.append(repr(client.request(HELLO)))
                    client.request(finish("none"))
                except (WireError, ConfigError) as error:
                    texts.append(f"{error} {error!r}")
        texts.append(server.metrics.text().decode())
        texts.append(repr(vars(server.server._robots.door)))
    written = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
    everything = "\n".join([*texts, caplog.text]).encode() + b"\n".join(written)
    secrets = [*ring.secrets(), other.pair.secret]
    assert len(secrets) == 4
    assert [s for s in secrets if s.encode() in everything] == []
    assert good.pair.public[:5].encode() in everything  # the search does find what is there
    for secret in secrets:  # nor as bytes
        assert bytes(zmq.utils.z85.decode(secret)) not in everything
