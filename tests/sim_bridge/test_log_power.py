"""Whatever the loss of power leaves of a client's log, what was synced is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power import Aftermath, Disk, Drawn
from test_log import LINE

from sim_bridge.log import EndLog, read_log


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """Two lives of a log in a folder of its own; what was synced is promised."""
    disk = Disk(tmp_path_factory.mktemp("disk"))
    steps = 0
    with disk.watched():
        for _ in range(2):
            log = EndLog(disk.root / "run" / "sim-0" / "client.jsonl")
            for _ in range(2):
                steps += 2
                log.append(replace(LINE, steps=steps - 1))
                log.append(replace(LINE, steps=steps))
                disk.mark("appended")
                log.sync()
                disk.promise(steps)
            log.close()
    return disk


def go_on(root: Path, promises: tuple[int, ...]) -> None:
    """What was promised is read, in order and once, and the log goes on behind it."""
    path = root / "run" / "sim-0" / "client.jsonl"
    log = EndLog(path)
    log.append(replace(LINE, steps=99))
    log.close()
    *steps, last = [line.steps for line in read_log(path)]
    assert last == 99
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= max(promises, default=0)


def test_the_log_keeps_its_promises_after_every_cut(life: Disk) -> None:
    Aftermath(life, go_on).of_all()


def test_the_log_keeps_its_promises_whatever_survives(life: Disk) -> None:
    aftermath = Aftermath(life, go_on)

    @given(st.data())
    def cut_anywhere(data: st.DataObject) -> None:
        cut = data.draw(st.sampled_from(life.cuts))
        aftermath.of(cut, Drawn(lambda low, high: data.draw(st.integers(low, high))))

    cut_anywhere()
