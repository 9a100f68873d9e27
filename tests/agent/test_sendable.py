"""What no receiver would take is cut or refused at its sender, who is told why."""

import typing

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANG_S
from server_fixtures import P, finish, make_order, observe, post, running, start_own

from agent.process.instruction import MAX_CHARS
from agent.process.shown import CUT, fitted
from agent.server import delivery
from agent.server.clients import LEASES_PER_REPLY
from agent.server.validation import ORDER_SLOTS_MAX, REASON_MAX_CHARS
from agent.wire import codec
from agent.wire.codec import CLIENT_HEADER_BYTES, DEFAULT_LIMITS, decode, encode
from agent.wire.errors import WireError
from agent.wire.messages import (
    Act,
    Assign,
    Assignments,
    FetchEpisodes,
    Hello,
    Ok,
    Outcome,
    SlotLease,
    Status,
)
from agent.wire.schema import fields_of, texts_of
from agent.wire.sockets import DealerClient, Poller, RouterSocket
from agent.wire.wakeup import Wakeup
from sim_bridge.client import RequestTable
from sim_bridge.robot import BridgeError

STRING_MAX = DEFAULT_LIMITS.max_string_bytes
# Any letters at all, lone surrogates too, and lengths around what a decoder takes.
LETTERS = st.text(min_size=1, max_size=4)
WILD = st.builds(lambda text, times: text * times, LETTERS, st.sampled_from([0, 1, 2000, 9000]))
FREE = {
    (cls, name): typing.get_type_hints(cls)[name]
    for cls in codec.MESSAGE_TYPES.values()
    for name in texts_of(cls)
}
NAMES = [
    (cls, name)
    for cls in codec.MESSAGE_TYPES.values()
    for name in fields_of(cls)
    if typing.get_type_hints(cls)[name] is str and name not in texts_of(cls)
]


def filled(cls: type, **given_fields: object) -> object:
    """A message of that class with something in every field."""
    plain = {
        str: "x", int: 1, float: 1.0, bool: True, np.ndarray: np.zeros(1, np.uint8),
    }  # fmt: skip
    hints = typing.get_type_hints(cls)
    empty = {
        f: plain.get(h, typing.get_origin(h) and typing.get_origin(h)()) for f, h in hints.items()
    }
    return cls(**{**empty, **given_fields})


def is_name(text: str) -> bool:
    """Whether it is UTF-8, and as short as a decoder takes."""
    try:
        return len(text.encode()) <= STRING_MAX
    except UnicodeEncodeError:
        return False


def through(message: object) -> object:
    return decode([bytes(frame) for frame in encode(message, 1)]).message


def test_every_text_for_people_is_declared_as_one():
    assert {(cls.__name__, name) for cls, name in FREE} == {
        ("Hello", "client_name"),
        ("EpisodeEnd", "reason"),
        ("Fault", "message"),
        ("Episodes", "refused"),
        ("RejectEpisodes", "episodes"),
    }


@pytest.mark.parametrize(("cls", "name"), FREE, ids=lambda each: getattr(each, "__name__", each))
def test_any_text_for_people_arrives(cls, name):
    is_map = FREE[cls, name] is not str

    @settings(max_examples=150, deadline=None)
    @given(WILD)
    def check(text):
        value = getattr(through(filled(cls, **{name: {"x": text} if is_map else text})), name)
        got = value["x"] if is_map else value
        escaped = text.encode("utf-8", "backslashreplace")
        if len(escaped) <= STRING_MAX:
            assert got == escaped.decode()
        else:
            assert got.endswith(CUT)
            assert escaped.startswith(got.removesuffix(CUT).encode())
            assert STRING_MAX - 8 < len(got.encode()) <= STRING_MAX

    check()


@pytest.mark.parametrize(("cls", "name"), NAMES, ids=lambda each: getattr(each, "__name__", each))
def test_any_name_arrives_as_it_is_or_is_refused_by_field(cls, name):
    @settings(max_examples=40, deadline=None)
    @given(WILD)
    def check(text):
        message = filled(cls, **{name: text})
        if is_name(text):
            assert getattr(through(message), name) == text
            return
        with pytest.raises(WireError, match=rf"{cls.__name__}\.{name}: ") as caught:
            encode(message, 1)
        assert len(caught.value.message) < 300

    check()


def test_keys_are_names_too():
    long = "c" * (STRING_MAX + 1)
    with pytest.raises(WireError, match=r"Act\.images: .* has 8193 bytes, at most 8192 fit"):
        encode(Act("e", 0, {long: np.zeros((8, 8, 3), "u1")}, np.zeros(P), np.zeros(0, "u1")), 1)


@given(st.text(), st.integers(3, 40))
def test_a_cut_text_has_a_mark_and_fits(text, limit):
    cut = fitted(text, limit)
    assert len(cut.encode()) <= limit
    assert cut == text or cut.endswith(CUT) or not text.isascii()


# ---- sizes -----------------------------------------------------------------------------------

LIMIT = 1 << 17


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("sendable"), max_message_bytes=LIMIT) as server:
        yield server


def large_act(episode_id: str) -> Act:
    """Its parts are below the limit, and together above it."""
    picture = np.zeros((160, 160, 3), np.uint8)
    return observe(episode_id, 0, images={"agentview": picture, "wrist": picture})


def test_an_observation_above_the_servers_limit_is_not_sent(server):
    client = server.client()
    episode = start_own(client, "large")
    before = server.server._state.requests
    with pytest.raises(WireError, match="was not sent") as caught:
        client.request(large_act(episode.episode_id))
    size_bytes = sum(len(frame) for frame in encode(large_act(episode.episode_id), 9, HANG_S))
    assert caught.value.code == "too_large"
    for part in (
        f"Act to {client.endpoint}",
        f"{size_bytes} bytes",
        str(LIMIT),
        "max_message_bytes",
    ):
        assert part in caught.value.message
    assert server.server._state.requests == before
    # The connection is as it was, and so is the episode.
    assert client.request(observe(episode.episode_id, 0)).step_index == 0
    client.request(finish(episode.episode_id))


def test_the_bridge_names_it_and_keeps_no_open_request(server):
    client = server.client()
    episode = start_own(client, "bridge")
    requests = RequestTable(client, HANG_S)
    with pytest.raises(BridgeError, match=r"was not sent: .* smaller or fewer pictures"):
        requests.ask("act", large_act(episode.episode_id))
    assert not requests.is_open("act")
    client.request(finish(episode.episode_id, Outcome.ABORTED, chunks=0))


def test_too_many_parts_and_a_header_that_is_too_large_are_named(server):
    client = server.client()
    episode = start_own(client, "parts")
    tiny = np.zeros((1, 1, 3), np.uint8)
    with pytest.raises(WireError, match="67 parts, at most 64"):
        client.send(observe(episode.episode_id, 0, images={f"c{n}": tiny for n in range(64)}))
    named = observe(episode.episode_id, 0, images={f"{n}" * 8000: tiny for n in range(9)})
    with pytest.raises(WireError, match=rf"header of \d+ bytes, at most {CLIENT_HEADER_BYTES}"):
        client.send(named)
    client.request(finish(episode.episode_id, Outcome.ABORTED, chunks=0))


def test_a_client_of_another_make_is_told_in_the_reply_to_its_request(server):
    """Below the limit for each part, above it in all: its sender waits for this very id."""
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.linger = 0
    raw.connect(server.server.robots_endpoint)
    raw.send_multipart([bytes(frame) for frame in encode(large_act("e"), 77)])
    assert raw.poll(round(HANG_S * 1000))
    envelope = decode(raw.recv_multipart())
    raw.close()
    assert envelope.request_id == 77
    assert envelope.message.code == "too_large"
    assert f"at most {LIMIT} are accepted" in envelope.message.message


def test_a_reply_that_no_client_takes_becomes_a_fault():
    with RouterSocket("tcp://127.0.0.1:0") as router, DealerClient(router.endpoint) as client:
        request_id = client.send(Status())
        poller = Poller([router], Wakeup())
        while (received := router.receive()) is None:
            poller.wait(HANG_S)
        long = SlotLease(*"ab", "task", "i" * 8000, "train", 0, 1, "train", "base", 1.0)
        with pytest.raises(WireError, match="Assignments to a client was not sent: header of"):
            router.send(received.peer, Assignments([long] * 200), request_id)
        assert router.send(received.peer, Ok(), request_id)
        assert client.poll(HANG_S) == [(request_id, Ok())]


def test_the_loop_answers_although_an_answer_cannot_travel(server, monkeypatch):
    monkeypatch.setattr(server.policy, "name", "n" * 9000)
    client = server.client()
    with pytest.raises(WireError, match=r"the answer to Hello cannot travel: Welcome\.policy"):
        client.request(Hello("robot", ""))


def test_the_longest_leases_fit_a_reply(server):
    letter, name = "漢", "a" * 128  # as long as they may be
    order = make_order(
        "a" * 200, suite="leases", task=name, split=name, slots=ORDER_SLOTS_MAX,
        instruction=letter * MAX_CHARS,
    )  # fmt: skip
    post(server.operator(), order)
    client = server.client()
    client.request(Hello("many", ""))
    leases = client.request(Assign("many", "leases", 256)).leases
    assert len(leases) == LEASES_PER_REPLY
    assert {lease.instruction for lease in leases} == {letter * MAX_CHARS}


def test_refused_orders_are_told_in_as_many_replies_as_it_takes(tmp_path, monkeypatch):
    refused = {f"order-{n}": letter * 2000 for n, letter in enumerate("漢" * 600)}
    with running(tmp_path) as server:
        monkeypatch.setattr(server.server._book, "refused", lambda: refused)
        learner = server.operator(revision=1)
        told = {}
        while len(told) < len(refused):
            reply = learner.request(FetchEpisodes(1, 16, 0.0))
            assert 0 < len(reply.refused) <= delivery.NEWS_MAX
            told.update(reply.refused)
    assert told == refused


def test_a_reason_of_any_length_ends_an_episode(server):
    client = server.client()
    episode = start_own(client, "talker")
    client.request(observe(episode.episode_id, 0))
    reason = "why " * 5000
    sealed = client.request(finish(episode.episode_id, Outcome.FAILURE, reason=reason))
    assert sealed.outcome == Outcome.FAILURE
    row = server.server._journal.row(episode.episode_id)
    assert len(row.reason) == REASON_MAX_CHARS
    assert row.reason.endswith(CUT)
