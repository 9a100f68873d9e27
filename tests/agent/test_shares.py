"""What one client uses of the server leaves room for the others."""

from collections import Counter

import numpy as np
import pytest
from server_fixtures import (
    CountingPolicy,
    P,
    finish,
    make_order,
    observe,
    post,
    running,
    start_own,
)

from agent.metrics import AgentMetrics
from agent.noop_policy import NoopPolicy
from agent.policy import ActRequest, ActResult
from agent.server import clients as clients_module
from agent.server import inference as inference_module
from agent.server.exchange import Mailbox
from agent.server.inference import Inference, Job
from agent.server.shares import Backlog, check_share
from agent.wire.codec import Limits, decode, encode
from agent.wire.errors import WireError
from agent.wire.messages import Act, Assign, EpisodeStart, Hello
from agent.wire.wakeup import Wakeup


def code_of(call, *arguments) -> str:
    try:
        call(*arguments)
    except WireError as error:
        return error.code
    return "ok"


def take_all(total: int, parties: list[str]) -> Counter[str]:
    """What each party gets if all ask as often as they can, in turn."""
    held: Counter[str] = Counter()
    while True:
        before = held.total()
        for party in parties:
            if code_of(check_share, "things", total, held[party], held.total()) == "ok":
                held[party] += 1
        if held.total() == before:
            return held


def test_a_party_gets_as_much_as_it_leaves_free():
    assert take_all(512, ["a"]) == {"a": 256}
    assert take_all(300, ["a", "b"]) == {"a": 100, "b": 100}
    assert take_all(1, ["a", "b"]) == {"a": 1}
    assert take_all(2, ["a"]) == {"a": 1}
    with pytest.raises(WireError, match="overloaded: things: 1 more, of which you hold 256"):
        check_share("things", 512, 256, 256)


def test_a_late_party_finds_room():
    held = take_all(512, ["hog"])
    assert code_of(check_share, "things", 512, 0, held.total()) == "ok"


def test_a_backlog_knows_whose_bytes_are_written():
    backlog = Backlog(1000)
    for waiting_bytes in (0, 200):
        backlog.check_disk("a", 200, waiting_bytes)
        backlog.begin("a", 200)
        backlog.end("a", 200)
        backlog.hand_over("a", 200)
    assert code_of(backlog.check_disk, "a", 200, 400) == "overloaded"
    assert code_of(backlog.check_disk, "b", 200, 400) == "ok"
    assert code_of(backlog.check_disk, "a", 200, 200) == "ok"  # the first is on the disk
    backlog.begin("a", 400)
    assert code_of(backlog.begin, "a", 400) == "overloaded"
    assert code_of(backlog.begin, "b", 200) == "ok"
    backlog.end("a", 400)
    assert code_of(backlog.begin, "a", 400) == "ok"


def job(party: str, size_bytes: int = 0) -> Job:
    request = ActRequest({}, np.zeros(P, np.float32), "", "base", 0.0, (0, 0, 0))
    return Job(request, 0.0, lambda now_s: True, lambda result: None, party, size_bytes)


@pytest.fixture
def inference():
    wakeup = Wakeup()
    made = Inference(NoopPolicy(), Mailbox(wakeup), AgentMetrics(), 4, 0.0)
    yield made
    made.close()
    wakeup.close()


def test_parties_take_turns_in_batches(inference):
    for party in "aaaaaabbc":
        inference.submit(job(party))
    parties = ["".join(j.party for j in inference._take_batch()) for _ in range(4)]
    assert parties == ["abca", "baaa", "a", ""]
    assert inference.is_idle


def test_large_pictures_delay_who_sends_them(inference, monkeypatch):
    monkeypatch.setattr(inference_module, "BATCH_BYTES", 100)
    for party, size_bytes in (("big", 70), ("big", 70), ("small", 10), ("huge", 500)):
        inference.submit(job(party, size_bytes))
    batches = [[j.party for j in inference._take_batch()] for _ in range(3)]
    assert batches == [["big", "small"], ["huge"], ["big"]]


# ---- a real server ---------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    with running(tmp_path, max_open_episodes=16) as running_server:
        yield running_server


def test_one_client_cannot_open_all_episodes(server):
    hog, other = server.client(), server.client()
    codes = [code_of(start_own, hog, f"hog-{k}") for k in range(12)]
    assert codes == ["ok"] * 8 + ["overloaded"] * 4
    episode = start_own(other, "other")
    other.request(observe(episode.episode_id, 0))
    other.request(finish(episode.episode_id))


def test_one_client_cannot_take_all_client_ids(server, monkeypatch):
    monkeypatch.setattr(clients_module, "CLIENTS_MAX", 8)
    hog, other = server.client(), server.client()
    codes = [code_of(hog.request, Hello(f"hog-{k}", "")) for k in range(6)]
    assert codes == ["ok"] * 4 + ["overloaded"] * 2
    assert code_of(hog.request, Hello("hog-1", "")) == "ok"  # it is known
    assert code_of(other.request, Hello("other", "")) == "ok"


def test_one_client_cannot_lease_all_slots(server, monkeypatch):
    monkeypatch.setattr(clients_module, "LEASES_MAX", 4)
    post(server.operator(), make_order(slots=10))
    hog, other = server.client(), server.client()
    for client, name in ((hog, "hog"), (other, "other")):
        client.request(Hello(name, ""))
    taken = [len(hog.request(Assign("hog", "toy", 3)).leases) for _ in range(3)]
    assert taken == [3, 1, 0]
    assert len(other.request(Assign("other", "toy", 2)).leases) == 2


def test_a_message_is_refused_for_its_kind_before_the_rest_is_read():
    def refuse(kind: type) -> None:
        assert kind is Act
        raise WireError("forbidden", "not for you")

    frames = encode(observe("e", 0), 7)
    broken = [frames[0], *[b"nothing that fits"] * (len(frames) - 1)]
    with pytest.raises(WireError, match="not for you") as caught:
        decode(broken, Limits(), refuse)
    assert caught.value.request_id == 7


class Tallying(CountingPolicy):
    """Counts what the policy was asked, by the size of the pictures."""

    def __init__(self) -> None:
        super().__init__(adapter_slots=3)
        self.asked: Counter[int] = Counter()

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        self.asked += Counter(len(r.images["agentview"]) for r in requests)
        return super().act(requests)


def big(episode_id: str, step: int) -> Act:
    image = np.zeros((512, 512, 3), np.uint8)
    return observe(episode_id, step, images={"agentview": image, "wrist": image})


def test_who_floods_with_pictures_is_refused_before_the_policy_and_others_are_not(
    tmp_path, monkeypatch
):
    """The disk takes nothing; an ordered episode of the hog waits, and nobody else does."""
    monkeypatch.setattr("agent.server.episodes.QUEUE_LIMIT_BYTES", 8 << 20)
    policy = Tallying()
    with running(tmp_path, policy) as server:
        post(server.operator(), make_order(slots=2))
        journal = server.server._journal
        hog, victim = server.client(), server.client()
        hog.request(Hello("hog", ""))
        lease = hog.request(Assign("hog", "toy", 1)).leases[0]
        flood = hog.request(EpisodeStart("hog", "k", slot_id=lease.slot_id))
        monkeypatch.setattr(
            type(journal), "waiting_bytes", property(lambda self: self._put_bytes)
        )  # nothing is ever written
        codes = []
        for step in range(6):
            codes.append(code_of(hog.request, big(flood.episode_id, step)))
            if codes[-1] != "ok":
                break
        assert codes == ["ok", "ok", "overloaded"]
        asked = policy.asked[512]
        for _ in range(5):
            assert code_of(hog.request, big(flood.episode_id, 2)) == "overloaded"
        assert policy.asked[512] == asked == 2  # no work was done for what was refused
        episode = start_own(victim, "victim")
        for step in range(20):
            victim.request(observe(episode.episode_id, step))
