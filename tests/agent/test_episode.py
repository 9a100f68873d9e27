"""An episode comes back bit by bit as it was written, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from episode_fixtures import make_chunk, make_end, make_meta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.episode import (
    ChunkRecord,
    EndRecord,
    Episode,
    EpisodeChecker,
    EpisodeCorrupt,
    EpisodeInvalid,
    EpisodeMeta,
    check_episode_id,
    mint_episode_id,
    read_episode,
    read_prefix,
)
from agent.episode_writer import EpisodeWriter

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def write(path: Path, episode: Episode) -> bytes:
    writer = EpisodeWriter(path, episode.meta)
    for chunk in episode.chunks:
        writer.append(chunk)
    sha256, size_bytes = writer.seal(episode.end)
    data = path.read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (sha256, size_bytes)
    return data


def make_episode(chunks: int = 3) -> Episode:
    return Episode(make_meta(), [make_chunk(t) for t in range(chunks)], make_end(chunks))


def assert_same(a: object, b: object) -> None:
    """Equal, arrays bit by bit."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    T, K, A, P = (draw(st.integers(low, 4)) for low in (0, 1, 1, 0))
    printable = st.characters(codec="utf-8", exclude_categories=("C", "Z"))
    text = st.text(printable, max_size=20)
    meta = make_meta(
        instruction=draw(text),
        task=draw(text),
        init_state=draw(st.integers(0, 2**40)),
        temperature=draw(st.floats(0, 10)),
        run_seed=draw(st.integers(0, 2**62)),
        source=draw(st.sampled_from(["policy", "expert"])),
    )
    image = hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3)))

    def floats(*shape: int) -> np.ndarray:
        return draw(hnp.arrays(np.float32, shape, elements=FLOATS))

    chunks = [
        ChunkRecord(
            step_index=t,
            images=draw(st.dictionaries(st.sampled_from(["agentview", "wrist"]), image)),
            proprio=floats(P),
            choices_KA=draw(hnp.arrays(np.int32, (K, A))),
            logprobs_KA=floats(K, A),
            actions_KA=floats(K, A),
            version=draw(text),
        )
        for t in range(T)
    ]
    end = EndRecord(
        outcome=draw(st.sampled_from(["success", "failure", "timeout", "intervened", "aborted"])),
        steps=draw(st.integers(0, T * K)),
        executed_TK=draw(hnp.arrays(np.uint8, (T, K), elements=st.integers(0, 3))),
        reason=draw(text),
        sealed_unix_s=1.0,
    )
    return Episode(meta, chunks, end)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(episodes())
def test_round_trip_is_bit_equal(episode: Episode) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "episode.mcap")
        data = write(path, episode)
        assert_same(read_episode(data), episode)
        assert_same(read_episode(path), episode)


def test_strided_images_are_stored_as_seen(tmp_path: Path) -> None:
    episode = make_episode()
    flipped = dataclasses.replace(
        episode.chunks[0], images={k: v[::-1, ::-1] for k, v in episode.chunks[0].images.items()}
    )
    episode.chunks[0] = flipped
    back = read_episode(write(tmp_path / "e.mcap", episode))
    assert_same(back.chunks[0].images, {k: v.copy() for k, v in flipped.images.items()})


def test_every_single_bit_flip_is_an_error(tmp_path: Path) -> None:
    episode = Episode(make_meta(), [make_chunk(0, image_size=2)], make_end(1))
    data = write(tmp_path / "e.mcap", episode)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(EpisodeCorrupt):
            read_episode(bytes(flipped))


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "e.mcap", make_episode(1))
    for size in range(0, len(data), 7):
        with pytest.raises(EpisodeCorrupt):
            read_episode(data[:size])
    with pytest.raises(EpisodeCorrupt):
        read_episode(data + b"\0")


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1), flip=st.none() | st.floats(0, 1, exclude_max=True))
def test_a_damaged_file_yields_a_true_prefix(cut: float, flip: float | None) -> None:
    """Whatever is cut or altered: what can be read is what was written, from the start on."""
    episode = make_episode(6)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "e.mcap")
        writer = EpisodeWriter(path, episode.meta)
        for chunk in episode.chunks:
            writer.append(chunk)
            writer.flush()
        writer.seal(episode.end)
        data = bytearray(path.read_bytes())[: int(cut * path.stat().st_size)]
        if flip is not None and data:
            data[int(flip * len(data))] ^= 0x10
        path.write_bytes(data)
        prefix = read_prefix(path)
    assert prefix.meta in (None, episode.meta)
    assert_same(prefix.chunks, episode.chunks[: len(prefix.chunks)])
    if prefix.end is not None:
        assert_same(prefix.end, episode.end)


def test_flushed_chunks_survive_without_an_end(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e.mcap", make_meta())
    chunks = [make_chunk(t) for t in range(5)]
    for chunk in chunks[:4]:
        writer.append(chunk)
    writer.flush()
    writer.append(chunks[4])
    writer.abandon()
    prefix = read_prefix(tmp_path / "e.mcap")
    assert_same(prefix.chunks, chunks[:4])
    assert prefix.end is None
    assert re.fullmatch(r"torn or damaged before byte [\d,]+", prefix.problem)
    with pytest.raises(EpisodeCorrupt):
        read_episode(tmp_path / "e.mcap")


def test_an_id_is_written_once(tmp_path: Path) -> None:
    write(tmp_path / "e.mcap", make_episode(0))
    with pytest.raises(FileExistsError):
        EpisodeWriter(tmp_path / "e.mcap", make_meta())


def test_minted_ids_are_distinct_valid_and_in_order_of_time() -> None:
    ids = [mint_episode_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert [check_episode_id(i)[:12] for i in ids] == sorted(i[:12] for i in ids)
    assert all(i[12] == "7" and i[16] in "89ab" for i in ids)


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 32 + "\n"])
def test_ids_that_are_no_file_names_are_refused(bad: str) -> None:
    with pytest.raises(EpisodeInvalid, match="episode id"):
        EpisodeChecker(make_meta(episode_id=bad))


NAN = np.full((4, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"step_index": 1},
        {"images": {"a": np.zeros((4, 4), np.uint8)}},
        {"images": {"a": np.zeros((4, 4, 4), np.uint8)}},
        {"images": {"a": np.zeros((4, 4, 3), np.float32)}},
        {"proprio": np.zeros(5, np.float64)},
        {"proprio": np.full(5, np.inf, np.float32)},
        {"logprobs_KA": NAN},
        {"actions_KA": NAN},
        {"choices_KA": np.zeros((4, 3), np.int64)},
        {"choices_KA": np.zeros((4, 2), np.int32)},
    ],
)
def test_a_chunk_that_no_episode_can_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EpisodeInvalid):
        EpisodeChecker(make_meta()).chunk(dataclasses.replace(make_chunk(0), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "won"},
        {"steps": -1},
        {"executed_TK": np.ones((1, 4), np.uint8)},
        {"executed_TK": np.ones((2, 3), np.uint8)},
        {"executed_TK": np.full((2, 4), 4, np.uint8)},
        {"executed_TK": np.ones((2, 4), np.int32)},
    ],
)
def test_an_end_that_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    checker = EpisodeChecker(make_meta())
    checker.chunk(make_chunk(0))
    checker.chunk(make_chunk(1))
    with pytest.raises(EpisodeInvalid):
        checker.end(make_end(2, **changes))


def test_an_invalid_record_in_intact_bytes_is_refused(tmp_path: Path) -> None:
    """The writer takes records as they are; the reader does not."""
    episode = make_episode(2)
    swapped = Episode(episode.meta, episode.chunks[::-1], episode.end)
    with pytest.raises(EpisodeCorrupt, match="expected chunk 0"):
        read_episode(write(tmp_path / "a.mcap", swapped))
    strange: EpisodeMeta = dataclasses.replace(episode.meta, schema=99)
    with pytest.raises(EpisodeCorrupt, match="schema"):
        read_episode(write(tmp_path / "b.mcap", Episode(strange, [], make_end(0))))
