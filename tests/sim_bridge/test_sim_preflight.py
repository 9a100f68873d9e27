"""What a simulator worker is refused for before any process is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim_bridge.__main__ import main
from sim_bridge.toy import ToySuite

CONTRACT = {
    "policy": "micro",
    "chunk_steps": 4,
    "action_dim": ToySuite().action_dim,
    "proprio_dim": ToySuite().proprio_dim,
    "images": {camera: [16, 16, 3] for camera in ToySuite().cameras},
    "tasks": {"toy": ["move_left"], "robot": ["pour"]},
}


def check(folder: Path, policy: str, *settings: str) -> int:
    own = ["suite=toy", f"log_path={folder}/sim-0/client.jsonl", *settings]
    return main(["--preflight", f"--policy={policy}", *own])


def test_a_suite_that_fits_the_policy_is_taken_and_nothing_is_left(tmp_path: Path) -> None:
    assert check(tmp_path, json.dumps(CONTRACT)) == 0
    assert check(tmp_path, "") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action_dim": 9}, "action_dim: policy 'micro' has 9"),
        ({"proprio_dim": 2}, "proprio_dim: policy 'micro' has 2"),
        ({"images": {"front": [16, 16, 3]}}, r"images: policy 'micro' wants ['front']"),
        ({"tasks": {"toy": ["juggle"]}}, "suite 'toy' has no task 'juggle'"),
        ({"tasks": 3}, "expected the line that perennial serve --preflight prints"),
        ({"more": 3}, "expected the line that perennial serve --preflight prints"),
    ],
    ids=str,
)
def test_a_policy_that_does_not_fit_is_named(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, json.dumps(CONTRACT | change)) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("suite=another", "unknown suite 'another'"),
        ("log_path=/proc/version/client.jsonl", "log_path: "),
        ("endpoint=udp://x", "expected tcp"),
        ("keys_dir=/nowhere", "/nowhere"),
    ],
)
def test_settings_that_cannot_work_are_named(
    setting: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, "", setting) == 2
    assert reason in capsys.readouterr().err
