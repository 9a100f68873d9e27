"""A picture for people that cannot be written is skipped with a line; learning goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faulty_disk import FULL, FaultyDisk

from learner.evaluation import ROLLOUT
from learner.loop import Loop


def test_a_filmstrip_that_the_disk_refuses_is_skipped_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = {"agentview": np.zeros((16, 16, 3), np.uint8)}
    episode = SimpleNamespace(chunks=[SimpleNamespace(images=seen)])
    order = SimpleNamespace(order_id="o", slots=1)
    cell = SimpleNamespace(row=0, task="move_left", mode=ROLLOUT, orders=[order])
    loop = SimpleNamespace(
        watchers=SimpleNamespace(filmstrips=tmp_path / "filmstrips"),
        config=SimpleNamespace(cameras=list(seen)),
        inbox=SimpleNamespace(read=lambda row: episode),
    )
    disk = FaultyDisk(monkeypatch, "fsync")
    disk.error = FULL
    Loop._save_filmstrip(loop, cell, {"o#0": None})
    (record,) = caplog.records
    assert "no filmstrip of move_left" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert not list((tmp_path / "filmstrips").glob("*.png"))
    disk.error = None
    Loop._save_filmstrip(loop, cell, {"o#0": None})
    assert (tmp_path / "filmstrips" / "0_move_left.png").is_file()
