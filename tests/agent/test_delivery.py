"""Episodes of any size reach the learner, damaged ones are run again, none is handed out twice."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from server_fixtures import (
    K,
    RunningServer,
    finish,
    make_order,
    observe,
    post,
    running,
    start_own,
    take_slot,
)

from agent.episode import read_episode
from agent.ledger import EpisodeState, LedgerReader
from agent.wire.errors import WireError
from agent.wire.messages import (
    AckEpisodes,
    FetchEpisodes,
    FetchPart,
    LearnerHello,
    Outcome,
    PostOrders,
    RejectEpisodes,
    SealedEpisode,
)
from agent.wire.sockets import DealerClient

MESSAGE_BYTES = 1 << 20
REPLY_BYTES = MESSAGE_BYTES // 2


@pytest.fixture
def server(tmp_path: Path):
    with running(tmp_path, max_message_bytes=MESSAGE_BYTES) as server:
        yield server


def noise(pixels: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures that no compression makes smaller."""
    rng = np.random.default_rng(seed)
    return {
        camera: rng.integers(0, 256, (pixels, pixels, 3), np.uint8)
        for camera in ("agentview", "wrist")
    }


def play(client: DealerClient, chunks: int, pixels: int = 16, client_id: str = "robot"):
    """One ordered episode; returns its seal."""
    _, started = take_slot(client, client_id)
    for step in range(chunks):
        client.request(observe(started.episode_id, step, images=noise(pixels, step)))
    return client.request(finish(started.episode_id, chunks=chunks))


def fetch(operator: DealerClient, epoch: int = 1) -> list[SealedEpisode]:
    """Everything there is now, the large ones without their bytes."""
    found: list[SealedEpisode] = []
    while items := operator.request(FetchEpisodes(epoch, 10, 0.3)).items:
        found += items
    return found


def fetch_bytes(operator: DealerClient, episode: SealedEpisode, length: int) -> bytes:
    data = b""
    while len(data) < episode.size_bytes:
        part = operator.request(FetchPart(1, episode.episode_id, len(data), length))
        assert part.offset == len(data)
        assert 0 < len(part.data) <= length
        data += part.data.tobytes()
    return data


def path_of(server: RunningServer, episode_id: str, folder: str = "episodes") -> Path:
    return Path(server.server._config.state_dir) / folder / f"{episode_id}.mcap"


@pytest.mark.parametrize("chunks", [1, 7, 13])
def test_an_episode_of_any_size_arrives_whole(server: RunningServer, chunks: int) -> None:
    operator, client = server.operator(revision=1), server.client()
    post(operator, make_order(slots=1))
    play(client, chunks, pixels=112)  # 75 KB a chunk, so 7 of them are just above one reply
    (episode,) = fetch(operator)
    data = episode.payload.tobytes()
    if chunks > 1:
        assert episode.size_bytes > REPLY_BYTES
        assert data == b""
        data = fetch_bytes(operator, episode, 100_001)
        assert len(data) == episode.size_bytes
    assert hashlib.sha256(data).hexdigest() == episode.sha256
    assert len(read_episode(data).chunks) == chunks
    assert fetch(operator) == []
    operator.request(AckEpisodes(1, {episode.episode_id: episode.sha256}))
    with pytest.raises(WireError, match="unknown_episode"):
        operator.request(FetchPart(1, episode.episode_id, 0, 10))


def test_large_and_small_ones_keep_their_order(server: RunningServer) -> None:
    operator, client = server.operator(revision=1), server.client()
    post(operator, make_order(slots=5))
    seals = [play(client, chunks, pixels=112) for chunks in (1, 9, 1, 1, 9)]
    items = fetch(operator)
    assert [item.episode_id for item in items] == [seal.episode_id for seal in seals]
    assert [bool(item.size_bytes) for item in items] == [False, True, False, False, True]


def test_a_learner_that_knows_no_parts_is_told_so(server: RunningServer) -> None:
    operator, client = server.operator(), server.client()
    post(operator, make_order(slots=1))
    play(client, 9, pixels=112)
    with pytest.raises(WireError, match="cannot fetch it in parts") as caught:
        operator.request(FetchEpisodes(1, 10, 1.0))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("chunks", [1, 9])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_file_is_set_aside_and_its_slot_run_again(
    server: RunningServer, chunks: int, damage: str
) -> None:
    operator, client = server.operator(revision=1), server.client()
    post(operator, make_order(slots=2))
    bad, good = play(client, chunks, 112), play(client, 1)
    path = path_of(server, bad.episode_id)
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    assert [item.episode_id for item in fetch(operator)] == [good.episode_id]
    server.wait_until(
        lambda: server.sample("perennial_episodes_quarantined_total", reason="altered") == 1.0
    )
    assert path_of(server, bad.episode_id, "episodes/quarantine").exists() == (damage == "altered")
    again = play(client, 1)
    assert again.counted
    assert [item.episode_id for item in fetch(operator)] == [again.episode_id]


def test_a_rejected_episode_no_longer_counts_and_its_slot_is_run_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        operator, client = server.operator(revision=1), server.client()
        post(operator, make_order(slots=1))
        first = play(client, 1)
        (episode,) = fetch(operator)
        operator.request(AckEpisodes(1, {episode.episode_id: episode.sha256}))
        for _ in range(2):
            operator.request(RejectEpisodes(1, {first.episode_id: "damaged\nthere", "f" * 32: ""}))
        second = play(client, 1)
        assert [item.episode_id for item in fetch(operator)] == [second.episode_id]
        operator.request(RejectEpisodes(1, {second.episode_id: "again"}))
    with running(tmp_path) as server:  # durably
        third = play(server.client(), 1)
        assert third.counted
        assert [e.episode_id for e in fetch(server.operator(revision=1))] == [third.episode_id]


def test_a_server_that_lost_its_ledger_is_told_which_slots_need_no_episode(tmp_path: Path) -> None:
    order = make_order(slots=3)
    held = {"train/0/0/0/0#0": "a" * 32, "train/0/0/0/0#2": "b" * 32}
    for life in range(2):
        with running(tmp_path) as server:
            operator, client = server.operator(epoch=life + 1, revision=1), server.client()
            for _ in range(2):
                operator.request(PostOrders(life + 1, [order], held))
            lease, _ = take_slot(client)
            assert lease.slot_id == "train/0/0/0/0#1"
            assert server.wait_for_sample("perennial_open_slots") == 1.0
    with running(tmp_path) as server:
        operator = server.operator(epoch=3, revision=1)
        operator.request(RejectEpisodes(3, {"a" * 32: "damaged at the learner"}))
        assert take_slot(server.client())[0].slot_id == "train/0/0/0/0#0"
        with pytest.raises(WireError, match="no slot of these orders"):
            operator.request(PostOrders(3, [order], {"other#0": "a" * 32}))


def test_the_learner_is_told_whether_a_version_was_ever_activated(server: RunningServer) -> None:
    operator = server.operator(epoch=0)
    welcome = operator.request(LearnerHello("learner", 1, revision=1))
    assert (welcome.revision, welcome.has_activated) == (1, False)
    assert operator.request(LearnerHello("learner", 2)).revision == 0


# ---- what is recorded -------------------------------------------------------------------------


def reasons(tmp_path: Path) -> dict[str, tuple[str, str]]:
    reader = LedgerReader(tmp_path / "agent" / "agent.db")
    try:
        return {row.episode_id: (row.outcome, row.reason) for row in reader.episodes()}
    finally:
        reader.close()


@pytest.mark.parametrize(("chunks", "fits"), [(23, True), (24, False)])
def test_a_training_episode_beyond_the_cap_goes_on_and_is_aborted_at_its_end(
    tmp_path: Path, chunks: int, fits: bool
) -> None:
    # 23 chunks of 2768 bytes are just below 64 KiB.
    with running(tmp_path, max_episode_bytes=1 << 16) as server:
        operator, client = server.operator(revision=1), server.client()
        post(operator, make_order(slots=1))
        _, started = take_slot(client)
        for step in range(chunks):
            reply = client.request(observe(started.episode_id, step, images=noise(20, step)))
            assert reply.actions.shape == (K, 7)
        seal = client.request(finish(started.episode_id, chunks=chunks))
        assert seal.counted == seal.recorded == reply.recorded == fits
        assert seal.outcome == (Outcome.SUCCESS if fits else Outcome.ABORTED)
        (episode,) = fetch(operator)
        recorded = read_episode(episode.payload.tobytes())
        assert len(recorded.chunks) == chunks
        assert sum(chunk.size_bytes for chunk in recorded.chunks) <= 1 << 16
        outcome, reason = reasons(tmp_path)[seal.episode_id]
        assert outcome == seal.outcome
        assert reason.startswith("too_large: with chunk 23 it has") != fits
        assert server.sample("perennial_episodes_too_large_total") == (not fits)


def test_an_evaluation_beyond_the_cap_counts_and_loses_only_pictures(tmp_path: Path) -> None:
    with running(tmp_path, max_chunk_bytes=1 << 10) as server:
        operator, client = server.operator(revision=1), server.client()
        post(operator, make_order("eval/0", slots=1, phase="eval", temperature=0.0))
        seal = play(client, 3)
        assert seal.counted
        (episode,) = fetch(operator)
        recorded = read_episode(episode.payload.tobytes())
        assert recorded.end.outcome == Outcome.SUCCESS
        assert recorded.end.executed_TK.shape == (3, K)
        assert "max_chunk_bytes is 1024" in recorded.end.reason
        assert all(chunk.images == {} for chunk in recorded.chunks)


def test_where_not_even_actions_fit_recording_stops_and_acting_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, max_chunk_bytes=1 << 10, max_episode_bytes=1 << 16) as server:
        client = server.client()
        started = start_own(client)
        for step in range(300):
            client.request(observe(started.episode_id, step))
        seal = client.request(finish(started.episode_id, chunks=300))
        assert seal.outcome == Outcome.ABORTED
        (episode,) = fetch(server.operator(revision=1))
        recorded = read_episode(episode.payload.tobytes())
        assert 0 < len(recorded.chunks) < 300
        assert recorded.end.reason.startswith("too_large")


def test_a_slot_that_is_always_too_large_is_not_run_for_ever(tmp_path: Path) -> None:
    with running(tmp_path, max_chunk_bytes=1 << 10) as server:
        operator, client = server.operator(revision=1), server.client()
        post(operator, make_order(slots=1))
        assert not play(client, 1, 64).counted
        time.sleep(0.3)  # it cools off
        assert not play(client, 1, 64).counted
        refused: dict[str, str] = {}
        while not refused:
            refused |= operator.request(FetchEpisodes(1, 10, 5.0)).refused
        assert "max_chunk_bytes is 1024" in refused["train/0/0/0/0"]


def test_an_acknowledged_episode_is_never_taken_back_for_its_missing_file(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        operator, client = server.operator(revision=1), server.client()
        post(operator, make_order(slots=1))
        play(client, 1)
        (episode,) = fetch(operator)
        row = server.server._journal.row(episode.episode_id)
        operator.request(AckEpisodes(1, {episode.episode_id: episode.sha256}))
        server.server._loop._mailbox.post(
            lambda: server.server._operator.on_damaged(row, "its file is gone")
        )
        server.wait_until(
            lambda: server.sample("perennial_episodes_quarantined_total", reason="altered") == 1.0
        )
        row = server.server._journal.row(episode.episode_id)
        assert (row.state, row.counted) == (EpisodeState.ACKED, True)
        assert server.server._book.open_slots() == 0


def test_a_disk_that_refuses_for_a_while_is_asked_again(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, client = server.operator(revision=1), server.client()
    post(operator, make_order(slots=1))
    play(client, 1)
    folder = Path(server.server._config.state_dir) / "episodes"
    moved = folder.with_name("elsewhere")
    folder.rename(moved)
    folder.symlink_to(folder)  # ELOOP: trouble with the path, nothing said of the file
    with pytest.raises(WireError, match="overloaded"):
        operator.request(FetchEpisodes(1, 10, 1.0))
    folder.unlink()
    shutil.move(moved, folder)
    assert len(fetch(operator)) == 1
