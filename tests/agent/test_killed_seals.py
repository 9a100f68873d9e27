"""`kill -9` of a real agent while it seals: each episode is kept once and whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from process_fixtures import agent_process, wait_for_endpoints
from server_fixtures import make_order

from agent.episode import read_episode
from agent.ledger import EpisodeState, LedgerReader
from agent.wire.errors import WireError
from agent.wire.messages import (
    Act,
    Assign,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    Executed,
    FetchEpisodes,
    Hello,
    LearnerHello,
    PostOrders,
    Status,
)
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.slow

KILLS, SLOTS = 10, 12
GAP_S = 0.01  # between two ends: about as long as a seal
LIMIT_S = 120.0
ENDED = ("success", True)


class Round:
    """One life of the agent: slots that are free are played, and ended at once."""

    def __init__(self, client: DealerClient) -> None:
        self._client, self._id = client, f"robot-{uuid.uuid4().hex[:8]}"
        self.welcome = client.request(Hello(self._id, "test"), LIMIT_S)

    def play(self) -> list[EpisodeEnd]:
        """The ends of the episodes, not yet sent."""
        ends, welcome = [], self.welcome
        images = {name: np.zeros(shape, np.uint8) for name, shape in welcome.images.items()}
        proprio = np.zeros(welcome.proprio_dim, np.float32)
        for lease in self._client.request(Assign(self._id, "toy", SLOTS), LIMIT_S).leases:
            start = EpisodeStart(self._id, uuid.uuid4().hex, slot_id=lease.slot_id)
            episode_id = self._client.request(start, LIMIT_S).episode_id
            act = Act(episode_id, 0, images, proprio, np.zeros(0, np.uint8))
            self._client.request(act, LIMIT_S)
            executed = np.full(welcome.chunk_steps, Executed.RUN, np.uint8)
            ends.append(EpisodeEnd(episode_id, "success", len(executed), executed))
        return ends


def ask(client: DealerClient, end: EpisodeEnd) -> tuple[str, bool]:
    """What a repeated end gets; nothing was promised of an episode that is not known."""
    try:
        sealed = client.request(end, LIMIT_S)
    except WireError as error:
        if error.code != "unknown_episode":
            raise
        return "unknown", False
    return sealed.outcome, sealed.counted


def check_what_is_kept(state_dir: Path, operator: DealerClient, epoch: int) -> None:
    """Every episode of the ledger is fetched once and whole; no other file is there."""
    operator.request(LearnerHello("learner", epoch, revision=1), LIMIT_S)
    fetched = {}
    while items := operator.request(FetchEpisodes(epoch, 64, 0.1), LIMIT_S).items:
        for item in items:
            assert item.episode_id not in fetched
            data = item.payload.tobytes()
            assert hashlib.sha256(data).hexdigest() == item.sha256
            assert read_episode(data).end.outcome == item.outcome
            fetched[item.episode_id] = item
    with closing(LedgerReader(state_dir / "agent.db")) as ledger:
        rows = {row.episode_id: row for row in ledger.episodes()}
    assert {row.state for row in rows.values()} == {EpisodeState.SEALED}
    assert fetched.keys() == rows.keys()
    counted = [item.slot_id for item in fetched.values() if item.counted]
    assert len(counted) == len(set(counted))
    files = {path.name for path in (state_dir / "episodes").iterdir() if path.is_file()}
    assert files == {f"{episode_id}.mcap" for episode_id in rows}
    assert not list((state_dir / "episodes" / "quarantine").glob("*"))


def test_a_kill_within_seals_keeps_each_episode_once_and_whole(tmp_path: Path) -> None:
    moments, state_dir = random.Random(5), tmp_path / "agent"
    told: dict[str, tuple[str, bool]] = {}  # what the agent has answered, before a kill or after
    sent: list[EpisodeEnd] = []
    for number in range(KILLS + 1):
        (state_dir / "endpoints.json").unlink(missing_ok=True)
        with agent_process(tmp_path) as process:
            endpoints = wait_for_endpoints(tmp_path, process)
            with (
                DealerClient(endpoints["robots"], LIMIT_S) as client,
                DealerClient(endpoints["operator"], LIMIT_S) as operator,
            ):
                if number:
                    check_what_is_kept(state_dir, operator, number)
                robot = Round(client)
                for end in sent:  # of the round before: what became of it is the same for all time
                    answer = ask(client, end)
                    assert told.setdefault(end.episode_id, answer) == answer
                operator.request(LearnerHello("learner", 100 + number, revision=1), LIMIT_S)
                order = make_order(f"train/0/0/{number}/0", slots=SLOTS)
                operator.request(PostOrders(100 + number, [order]), LIMIT_S)
                if number == KILLS:
                    while sent := robot.play():
                        assert {ask(client, end) for end in sent} == {ENDED}
                    assert operator.request(Status(), LIMIT_S).open_slots == 0
                    check_what_is_kept(state_dir, operator, 1000)
                    break
                sent = robot.play()
                answers: dict[int, object] = {}
                # One after the other, so that most moments are within some seal.
                for end in sent[: moments.randint(1, SLOTS)]:
                    client.send(end)
                    answers.update(client.poll(moments.uniform(0, GAP_S)))
                os.kill(process.pid, signal.SIGKILL)
                process.wait(LIMIT_S)
                answers.update(client.poll(0.0))
                for answer in answers.values():
                    assert isinstance(answer, EpisodeSealed), answer
                    told[answer.episode_id] = (answer.outcome, answer.counted)
                    assert told[answer.episode_id] == ENDED
