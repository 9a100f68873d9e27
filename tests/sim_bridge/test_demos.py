"""Collecting demonstrations: which settings a suite takes, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sim_bridge.demos.__main__ import main
from sim_bridge.demos.noise import ActionNoise
from sim_bridge.demos.shards import write_shards
from sim_bridge.libero import demos as libero
from sim_bridge.tabletop import demos as tabletop

META = {"tasks": []}


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that would be generated."""
    configs: list[Any] = []
    for module in (tabletop, libero):
        monkeypatch.setattr(module, "generate", lambda config, out, workers: configs.append(config))
    return configs


def test_the_suite_decides_what_is_recorded_and_its_defaults(generated: list[Any]) -> None:
    assert main(["collect", "--suite=tabletop", "--out=x", "--frames=7", "--seed=3"]) == 0
    words = ["--tasks=0,3", "--stride=4", "--renderer=exact", "--image-size=32"]
    assert main(["collect", "--suite=libero_goal", "--out=x", *words]) == 0
    assert generated == [
        tabletop.DemoConfig(frames=7, seed=3),
        libero.DemoConfig("libero_goal", (0, 3), stride=4, renderer="exact", image_size=32),
    ]


@pytest.mark.parametrize(
    ("suite", "word", "status"),
    [
        ("tabletop", "--stride=2", 2),
        ("libero_spatial", "--operators=expert", 2),
        ("libero_spatial", "--tasks=10", 2),
        ("libero_spatial", "--renderer=nice", 2),
        ("tabletop", "--operators=nobody", 2),
        ("libero_spacial", "--seed=0", 2),
    ],
)
def test_what_a_suite_does_not_have_is_refused_by_name(
    suite: str, word: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["collect", f"--suite={suite}", f"--out={out}", word]) == status
    said = capsys.readouterr().err
    assert (suite if suite == "libero_spacial" else word[2:].partition("=")[0]) in said
    assert not out.exists()


@pytest.mark.parametrize("word", ["--frames=0", "--workers=-1", "--tasks=a"])
def test_numbers_are_checked(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["collect", "--suite=tabletop", "--out=x", word])
    assert stopped.value.code == 2
    assert word.partition("=")[0] in capsys.readouterr().err


def test_an_episode_that_is_lost_at_its_start_gives_no_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libero, "_is_lost", lambda env: True)
    noise = ActionNoise(np.random.default_rng(0))
    body: Any = SimpleNamespace(env=None)
    assert libero.record_episode(body, noise, libero.DemoConfig("libero_spatial")) == []


def count_up(shard: int, frames: int) -> dict[str, np.ndarray]:
    return {"task": shard * 100 + np.arange(frames, dtype=np.int16)}


@pytest.mark.slow  # starts a process
def test_only_missing_shards_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, META, 25, 10, count_up, 1)
    shards = sorted(tmp_path.glob("*.npz"))
    assert [len(np.load(path)["task"]) for path in shards] == [10, 10, 5]
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    capsys.readouterr()
    write_shards(tmp_path, META, 25, 10, count_up, 1)
    said = capsys.readouterr().out
    assert "3 shards, 2 complete" in said
    assert f"25 frames in {tmp_path}" in said
    assert shards[0].stat().st_mtime_ns == kept
    assert np.load(shards[1])["task"].tolist() == list(range(100, 110))
    with pytest.raises(ValueError, match="other demonstrations"):
        write_shards(tmp_path, {"tasks": ["x"]}, 25, 10, count_up, 1)


def refuse(shard: int, frames: int) -> dict[str, np.ndarray]:
    raise ValueError("no such picture")


@pytest.mark.slow  # starts a process
def test_what_cannot_be_recorded_binds_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(ValueError, match="no such picture"):
        write_shards(out, META, 25, 10, refuse, 1)
    assert list(tmp_path.iterdir()) == []
    write_shards(out, {"tasks": ["x"]}, 5, 10, count_up, 1)  # with a setting that was mended
    assert {path.name for path in out.iterdir()} == {"meta.json", "shard-00000.npz"}
