"""Recorded episodes as a LeRobot data set: every executed step, and nothing that was not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agent.episode import ChunkRecord, EndRecord, EpisodeMeta, mint_episode_id
from agent.episode_writer import EpisodeWriter
from agent.wire.messages import Executed
from learner import demos_export
from learner.lerobot_statistics import picture_statistics, pixel_counts
from learner.recording import RecordingError

K, A, P, SIZE = 4, 7, 8, 12
RUN, LIMITED, REPLACED = (int(code) for code in Executed if code != Executed.NOT_RUN)
TIMEOUT = [[RUN, LIMITED, RUN, RUN], [REPLACED, RUN, RUN, RUN]]
SUCCESS = [[RUN] * 4, [RUN, RUN, 0, 0], [RUN, 0, 0, 0]]  # the second chunk was pre-empted


def chunks_of(count: int, seed: int, size: int) -> list[ChunkRecord]:
    rng = np.random.default_rng(seed)
    return [
        ChunkRecord(
            step_index=t,
            images={
                name: rng.integers(0, 256, (size, size, 3), np.uint8)
                for name in (("agentview", "wrist") if size else ())
            },
            proprio=rng.standard_normal(P, np.float32),
            choices_KA=rng.integers(0, 256, (K, A), np.int32),
            logprobs_KA=-rng.random((K, A), np.float32),
            actions_KA=rng.standard_normal((K, A), np.float32),
            version="base" if t == 0 else "v1",
        )
        for t in range(count)
    ]


def write(
    folder: Path, outcome: str, executed: list[list[int]], task: str = "left", size: int = SIZE
) -> list[ChunkRecord]:
    """One sealed episode, one more than there are."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = len(list(folder.glob("*.mcap")))
    meta = EpisodeMeta(
        episode_id=mint_episode_id(), order_id="", slot_id="", suite="toy", task=task,
        instruction=f"move {task}", split="eval", init_state=seed, phase="eval", version="v1",
        horizon_steps=12, temperature=1.0, run_seed=0, noise_key="", slot_index=0, policy="noop",
        base_sha256="0" * 64, client_id="c", started_unix_s=float(seed),
    )  # fmt: skip
    writer = EpisodeWriter(folder / f"{meta.episode_id}.mcap", meta)
    chunks = chunks_of(len(executed), seed, size)
    for chunk in chunks:
        writer.append(chunk)
    codes = np.array(executed, np.uint8).reshape(len(executed), K)
    writer.seal(EndRecord(outcome, int((codes > 0).sum()), codes, "", float(seed)))
    return chunks


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[list[ChunkRecord]]]:
    """A run's folder with two episodes that are exported, and one each that is not."""
    folder = tmp_path / "run"
    episodes = folder / "agent" / "episodes"
    kept = [write(episodes, "timeout", TIMEOUT), write(episodes, "success", SUCCESS, "right")]
    write(episodes, "aborted", TIMEOUT)
    write(episodes, "failure", TIMEOUT, size=0)
    write(episodes / "quarantine", "success", SUCCESS)
    torn = sorted(episodes.glob("*.mcap"))[0].read_bytes()[:-40]
    (episodes / f"{mint_episode_id()}.mcap").write_bytes(torn)
    copies = folder / "learner" / "episodes"
    copies.mkdir(parents=True)
    first = sorted(episodes.glob("*.mcap"))[0]
    (copies / first.name).write_bytes(first.read_bytes())
    return folder, kept


def steps_of(executed: list[list[int]]) -> list[tuple[int, int]]:
    """(chunk, action) of every executed step."""
    return [(t, k) for t, row in enumerate(executed) for k, code in enumerate(row) if code]


def test_a_frame_is_an_executed_step(
    run: tuple[Path, list[list[ChunkRecord]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (timeout, success) = run
    out = tmp_path / "out"
    assert demos_export.main([str(folder), "--to=lerobot-v3", f"--out={out}", "--rate-hz=10"]) == 0
    said = capsys.readouterr().out
    assert "2 episodes, 15 frames" in said
    for reason in (
        "1 aborted",
        "1 whose pictures were not kept",
        "1 unreadable (not a finished MCAP",
    ):
        assert f"left out: {reason}" in said

    table = pq.read_table(out / "data/chunk-000/file-000.parquet").to_pydict()
    steps = [(timeout[t], k) for t, k in steps_of(TIMEOUT)]
    steps += [(success[t], k) for t, k in steps_of(SUCCESS)]
    assert np.array_equal(table["action"], [chunk.actions_KA[k] for chunk, k in steps])
    assert np.array_equal(table["observation.state"], [chunk.proprio for chunk, _ in steps])
    assert table["steps_since_observation"] == [k for _, k in steps]
    assert table["executed"] == [code for row in TIMEOUT + SUCCESS for code in row if code]
    assert table["version"] == [chunk.version for chunk, _ in steps]
    for camera in ("agentview", "wrist"):
        pictures = [
            np.asarray(Image.open(io.BytesIO(cell["bytes"])))
            for cell in table[f"observation.images.{camera}"]
        ]
        assert np.array_equal(pictures, [chunk.images[camera] for chunk, _ in steps])
    assert table["outcome"] == ["timeout"] * 8 + ["success"] * 7
    assert np.nonzero(table["next.done"])[0].tolist() == [7, 14]
    assert np.nonzero(table["next.success"])[0].tolist() == [14]
    assert table["frame_index"] == [*range(8), *range(7)]
    assert table["index"] == list(range(15))
    assert table["task_index"] == [0] * 8 + [1] * 7
    np.testing.assert_allclose(table["timestamp"], np.array(table["frame_index"]) / 10, rtol=1e-6)


def test_what_describes_the_frames_agrees_with_them(
    run: tuple[Path, list[list[ChunkRecord]]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    demos_export.export(run[0], out, 20)
    info = json.loads((out / "meta/info.json").read_text())
    table = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert info["codebase_version"] == "v3.0"
    assert set(info["features"]) == set(table.column_names)
    assert (info["total_frames"], info["total_episodes"], info["total_tasks"]) == (15, 2, 2)
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 8), (8, 15)]
    assert [(r["task"], r["tasks"], r["init_state"], r["outcome"]) for r in rows] == [
        ("left", ["move left"], 0, "timeout"),
        ("right", ["move right"], 1, "success"),
    ]
    stats = json.loads((out / "meta/stats.json").read_text())
    actions = np.array(table.column("action").to_pylist(), np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert rows[1]["stats/action/max"] == actions[8:].max(0).tolist()


def test_statistics_of_pictures_are_those_of_their_pixels() -> None:
    images = np.random.default_rng(0).integers(3, 200, (5, 9, 11, 3), np.uint8)
    found = picture_statistics(sum(pixel_counts(image) for image in images), len(images))
    pixels = images.reshape(-1, 3) / 255
    assert found["count"] == [5]
    for name, expected in {
        "min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0),
        "q01": np.quantile(pixels, 0.01, axis=0, method="inverted_cdf"),
        "q50": np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"),
        "q99": np.quantile(pixels, 0.99, axis=0, method="inverted_cdf"),
    }.items():  # fmt: skip
        assert np.shape(found[name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(found[name]), expected, atol=1e-12, err_msg=name)


def test_what_one_data_set_cannot_hold_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    write(folder, "aborted", TIMEOUT)
    with pytest.raises(RecordingError, match="1 aborted"):
        demos_export.export(folder, out, 20)
    write(folder, "success", SUCCESS)
    write(folder, "success", SUCCESS, size=SIZE + 1)
    assert demos_export.main([str(folder), "--to=lerobot-v3", f"--out={out}"]) == 1
    assert "other cameras" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert demos_export.main([str(folder), "--to=lerobot-v3", f"--out={folder}"]) == 1


@pytest.mark.parametrize("rate", ["0", "-20", "fast"])
def test_a_rate_is_a_positive_number(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demos_export.main(["run", "--to=lerobot-v3", "--out=out", f"--rate-hz={rate}"])
    assert stopped.value.code == 2
    assert "--rate-hz" in capsys.readouterr().err


@pytest.mark.slow
def test_lerobots_own_loader_reads_it(
    run: tuple[Path, list[list[ChunkRecord]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip(
        "torchvision", reason="lerobot's loader needs it; there is no CPU build here"
    )
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset", minversion="0.4")
    folder, (timeout, success) = run
    out = tmp_path / "out"
    demos_export.export(folder, out, 20)
    loaded = lerobot.LeRobotDataset("local/demos", out, delta_timestamps={"action": [0.0, 0.05]})
    assert (loaded.num_frames, loaded.num_episodes, loaded.fps) == (15, 2, 20)
    frame = loaded[9]
    assert frame["task"] == "move right"
    assert (int(frame["episode_index"]), frame["outcome"], frame["version"]) == (
        1,
        "success",
        "base",
    )
    assert np.array_equal(frame["observation.state"], success[0].proprio)
    assert np.array_equal(frame["action"], success[0].actions_KA[1:3])
    image = frame["observation.images.wrist"].numpy().transpose(1, 2, 0)
    assert np.array_equal((image * 255).round(), success[0].images["wrist"])
    last = loaded[7]
    assert last["action_is_pad"].tolist() == [False, True]
    assert np.array_equal(last["action"][0], timeout[1].actions_KA[3])
    assert loaded.meta.stats["observation.images.wrist"]["mean"].shape == (3, 1, 1)
    only = lerobot.LeRobotDataset("local/demos", out, episodes=[1])
    assert only.num_frames == 7
