"""A client's lines while the disk takes nothing: they wait, and each is written once."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_disk import DAMAGED, FULL, FaultyDisk
from test_log import LINE

from agent.durable import StorageError
from agent.wire.messages import Hello
from sim_bridge import lines as lines_module
from sim_bridge import probe_client
from sim_bridge.heartbeat import Heartbeat
from sim_bridge.log import EndLog, read_log
from sim_bridge.probe_client import ProbeLog


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "RETRY_PAUSE_S", 0.0)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("error", [FULL, DAMAGED])
def test_ends_wait_for_the_disk_and_are_written_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    error: OSError,
) -> None:
    path, disk = tmp_path / "client.jsonl", FaultyDisk(monkeypatch, call)
    log = EndLog(path)
    disk.error = error
    for steps in range(3):
        log.append(replace(LINE, steps=steps))
        assert not log.sync()
        assert not log.is_durable
    disk.error = None
    assert log.sync()
    assert log.is_durable
    log.append(replace(LINE, steps=3))
    log.close()
    assert [line.steps for line in read_log(path)] == [0, 1, 2, 3]
    begin, end = (record.getMessage() for record in caplog.records)
    assert str(path) in begin
    assert os.strerror(error.errno or 0) in begin
    assert str(path) in end


def test_a_sync_that_has_failed_is_believed_after_the_lines_were_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have dropped what it could not write."""
    path, disk = tmp_path / "client.jsonl", FaultyDisk(monkeypatch, "fdatasync")
    log = EndLog(path)
    log.append(replace(LINE, steps=0))
    assert log.sync()
    kept = path.stat().st_size
    disk.error = DAMAGED
    log.append(replace(LINE, steps=1))
    assert not log.sync()
    disk.error = None
    with path.open("r+b") as file:  # as it is after the system dropped the page
        file.seek(kept)
        file.write(bytes(path.stat().st_size - kept))
    log.append(replace(LINE, steps=2))
    assert log.sync()
    log.close()
    assert [line.steps for line in read_log(path)] == [0, 1, 2]


def test_what_is_lost_at_the_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, disk = tmp_path / "client.jsonl", FaultyDisk(monkeypatch, "write")
    log = EndLog(path)
    log.append(LINE)
    disk.error = FULL
    with pytest.raises(StorageError, match=r"client\.jsonl: its disk did not take .*\(1\)"):
        log.close()
    disk.error = None
    EndLog(path).close()
    assert read_log(path) == []


def test_a_limit_of_file_sizes_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    log = EndLog(path)
    log.append(LINE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(StorageError, match=r"client\.jsonl: File too large; raise the limit"):
            log.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()
    assert read_log(path) == [LINE]


@pytest.mark.parametrize("open_log", [EndLog, ProbeLog])
def test_a_full_disk_at_the_start_is_no_bad_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_log: Callable[[Path], object]
) -> None:
    """Whoever started it starts it again."""
    disk = FaultyDisk(monkeypatch, "open")
    disk.error = FULL
    with pytest.raises(StorageError, match=r"log\.jsonl: No space left on device; free disk"):
        open_log(tmp_path / "log.jsonl")


def test_the_probe_goes_on_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, disk = tmp_path / "probe.jsonl", FaultyDisk(monkeypatch, "write")
    monkeypatch.setattr(probe_client, "WAITING_MAX_BYTES", 500)
    log = ProbeLog(path)
    disk.error = FULL
    for sent in range(20):
        log.write(Hello("probe", "test"), None, 0.1, sent)
    disk.error = None
    log.write(Hello("probe", "test"), None, 0.1, 20)
    log.write(Hello("probe", "test"), None, 0.1, 21)
    log.close()
    sent = [json.loads(line)["sent"] for line in path.read_text().splitlines()]
    assert sent == [*range(len(sent) - 1), 21]
    told = capsys.readouterr().err
    assert f"{path}: {21 - (len(sent) - 1)} lines were left out" in told


def test_a_torn_line_of_the_probe_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    ProbeLog(path).close()
    path.write_text('{"event":"Hello","unix_s":1.0,"elapsed_s":0.1}\n{"event":"Hel')
    log = ProbeLog(path)
    log.write(Hello("probe", "test"), None, 0.1, 1)
    log.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["Hello"] * 2


def test_a_heartbeat_on_a_full_disk_is_told_and_keeps_nobody_from_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = FaultyDisk(monkeypatch, "replace", "open")
    disk.error = FULL
    heartbeat = Heartbeat(tmp_path / "heartbeat", lambda: float(disk.failed))
    disk.error = None
    heartbeat.observe(1)
    assert (tmp_path / "heartbeat").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device; free disk space" in line
