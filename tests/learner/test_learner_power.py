"""Whatever the loss of power leaves of the learner's folders, what was promised is there."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_run import make_config
from micro_fixtures import renewed_policy
from patience import HANG_S
from power import LOST, Aftermath, Disk, Drawn

from agent.adapters import AdapterStore
from agent.wire.messages import Activated, SealedEpisode
from learner.checkpoint import CheckpointFolder, Place
from learner.publication import Identity, Publication
from learner.receiver import Inbox, Receiver
from learner.store import LearnerStore

FEW = settings(max_examples=20)


def sealed(k: int, size: int = 200) -> SealedEpisode:
    payload = np.full(size, k, np.uint8)
    return SealedEpisode(
        f"{k:032x}", hashlib.sha256(payload.tobytes()).hexdigest(), "train/0/1/0/0",
        f"train/0/1/0/0#{k}", "toy", "a", "train", 0, "train", "base", "success", 5, True, payload,
    )  # fmt: skip


def offered(episode: SealedEpisode) -> SealedEpisode:
    """As one that is too large for a message: its bytes come in parts."""
    nothing = np.zeros(0, np.uint8)
    return replace(episode, payload=nothing, size_bytes=len(episode.payload))


class Agent:
    """Stands where an AgentLink does; what it is told is a promise."""

    def __init__(self, disk: Disk, episodes: list[SealedEpisode]) -> None:
        self.disk, self.episodes = disk, episodes
        self.stop = threading.Event()

    def fetch(self, limit: int, wait_s: float) -> list[SealedEpisode]:
        items, self.episodes = self.episodes[:2], self.episodes[2:]
        if not items:
            self.stop.set()
        return items

    def fetch_part(self, episode_id: str, offset: int, length: int) -> bytes:
        return sealed(int(episode_id)).payload.tobytes()[offset : offset + length]

    def acknowledge(self, sha256_by_id: dict[str, str]) -> None:
        self.disk.promise(("kept", dict(sha256_by_id)))

    def activate(self, version: str) -> Activated:
        self.disk.promise(("committed", version))
        return Activated(version, "base", 0.0)

    def close(self) -> None:
        pass


def publication_in(root: Path, link: Agent) -> Publication:
    store = LearnerStore(root / "learner.db")
    identity = Identity("0" * 64, "grpo+none", ["a", "b"], make_config())
    checkpoints, adapters = CheckpointFolder(root / "checkpoints"), AdapterStore(root / "adapters")
    policy = renewed_policy(POLICY_FOLDER[0])
    return Publication(policy, store, checkpoints, adapters, link, identity)


POLICY_FOLDER: list[Path] = []


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """Episodes are received, one in parts, one altered; two updates are committed and published."""
    POLICY_FOLDER[:] = [tmp_path_factory.mktemp("policy")]
    disk = Disk(tmp_path_factory.mktemp("disk"))
    episodes = [sealed(k) for k in range(4)]
    with disk.watched():
        agent = Agent(disk, [*episodes, offered(sealed(5)), sealed(4, size=10)])
        agent.episodes[-1].payload[0] += 1  # altered on the way
        publication = publication_in(disk.root, agent)
        inbox = Inbox(disk.root / "episodes", publication.store)
        receiver = Receiver(agent, inbox, agent.stop)
        receiver.start()
        receiver.join(HANG_S)
        optimizer = torch.optim.AdamW(publication.policy.parameters.values())
        publication.resume(optimizer)
        for update_id in (1, 2):
            with torch.no_grad():
                for parameter in publication.policy.parameters.values():
                    parameter += 0.01
            used = {e.episode_id: "trained" for e in episodes[2 * update_id - 2 : 2 * update_id]}
            place, parent = Place(update_id, 0, update_id, 8, 64), publication.version
            publication.commit(place, optimizer, used, {}, parent)
            disk.promise(("committed", publication.version))
        publication.store.close()
    return disk


def resume(root: Path, promises: tuple) -> None:
    """On what is left: every promise holds, and the run goes on from its last commit."""
    agent = Agent(Disk(root), [])
    publication = publication_in(root, agent)
    store, adapters = publication.store, publication.adapters
    last = store.last_update()
    newest = 0 if last is None else last.update_id
    assert all(int(version[1:6]) <= newest for version in adapters.versions())
    place = publication.resume(torch.optim.AdamW(publication.policy.parameters.values()))
    assert place.update_id == newest
    versions = adapters.versions()
    assert [int(version[1:6]) for version in versions][-1:] == ([newest] if newest else [])
    for version in versions:
        adapters.verify(version)
    for kind, value in promises:
        if kind == "committed":
            assert value in versions
        else:
            for episode_id, sha256 in value.items():
                assert store.known_sha256(episode_id) == sha256
                data = (root / "episodes" / f"{episode_id}.mcap").read_bytes()
                assert hashlib.sha256(data).hexdigest() == sha256
    for row in store.counted_episodes(["train/0/1/0/0"]).values():
        assert (root / "episodes" / row.file).read_bytes() == sealed(
            int(row.episode_id)
        ).payload.tobytes()
    counts = store.counts()
    assert counts["trained"] == 2 * newest
    store.close()


def test_the_learner_keeps_its_promises_after_every_cut(life: Disk) -> None:
    kept = [value for kind, value in life.cuts[-1].promises if kind == "kept"]
    assert [len(value) for value in kept] == [2, 2, 1]
    Aftermath(life, resume).of_all([LOST])


def test_the_learner_keeps_its_promises_whatever_survives(life: Disk) -> None:
    aftermath = Aftermath(life, resume)

    @FEW
    @given(st.data())
    def cut_anywhere(data: st.DataObject) -> None:
        cut = data.draw(st.sampled_from(life.cuts))
        aftermath.of(cut, Drawn(lambda low, high: data.draw(st.integers(low, high))))

    cut_anywhere()
