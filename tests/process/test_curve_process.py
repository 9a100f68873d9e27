"""Encrypted processes: they find each other, and one that is refused ends with one line."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
import zmq.auth
from patience import HANG_S

from deploy.local.settings import compose_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def python(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    assert python("agent.cli_keys", "init", folder / "agent").returncode == 0
    for name, may in (("learner", "operate"), ("sim", "act,report"), ("gone", "act,operate")):
        add = ["add", folder / "agent", name, "--may", may, "--out", folder / name]
        assert python("agent.cli_keys", *add).returncode == 0
    assert python("agent.cli_keys", "remove", folder / "agent", "gone").returncode == 0
    return folder


@contextlib.contextmanager
def running(log: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", *map(str, words)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(HANG_S)
            finally:
                process.kill()


@contextlib.contextmanager
def agent(folder: Path, keys: Path) -> Iterator[dict[str, str]]:
    config = folder / "agent.yaml"
    tasks = {"reach_red": {"instruction": "go", "suite": "toy"}}
    config.write_text(yaml.safe_dump({"tasks": tasks, "policy": {"kind": "noop"}}))
    endpoints = folder / "agent" / "endpoints.json"
    endpoints.unlink(missing_ok=True)
    words = [
        "agent",
        f"--config={config}",
        f"state_dir={folder}/agent",
        f"adapters_dir={folder}/adapters",
        f"robots_endpoint=ipc://{folder}/r.sock",
        f"operator_endpoint=ipc://{folder}/o.sock",
        f"keys_dir={keys}/agent",
    ]
    with running(folder / "agent.log", *words) as process:
        deadline_s = time.monotonic() + HANG_S
        while not endpoints.exists():
            assert process.poll() is None, (folder / "agent.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield json.loads(endpoints.read_text())


def probe(folder: Path, keys_dir: object) -> list[object]:
    return [
        "sim_bridge.probe",
        f"endpoint=ipc://{folder}/r.sock",
        f"keys_dir={keys_dir}",
        f"log_path={folder}/probe.jsonl",
        "task=reach_red",
        "request_timeout_s=1",
    ]


def answers(folder: Path) -> int:
    log = folder / "probe.jsonl"
    return log.read_text().count('"error":""') if log.exists() else 0


def wait_for_answers(folder: Path, count: int) -> None:
    deadline_s = time.monotonic() + HANG_S
    while answers(folder) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_client_comes_back_after_a_restart_of_the_server(tmp_path: Path, keys: Path) -> None:
    with running(tmp_path / "probe.log", *probe(tmp_path, keys / "sim")):
        for _ in range(2):
            with agent(tmp_path, keys):
                wait_for_answers(tmp_path, answers(tmp_path) + 10)
    assert (tmp_path / "probe.log").read_text() == ""


def learner_config(folder: Path, keys_dir: Path) -> list[object]:
    settings = compose_run([f"run_dir={folder}"]).processes["learner"]
    settings |= {"operator_endpoint": f"ipc://{folder}/o.sock", "keys_dir": str(keys_dir)}
    path = folder / f"learner-{keys_dir.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["learner", f"--config={path}", "die_with_parent=false"]


def test_a_refused_process_ends_with_one_line_and_status_2(tmp_path: Path, keys: Path) -> None:
    sim = ["sim_bridge", f"endpoint=ipc://{tmp_path}/r.sock", "suite=toy", "envs=1"]
    sim.append(f"log_path={tmp_path}/client.jsonl")
    adapters = ["agent.cli_adapters", "activate", tmp_path, "base"]
    refused = {
        "unknown key, sim": [*sim, f"keys_dir={keys}/gone"],
        "unknown key, probe": probe(tmp_path, keys / "gone"),
        "unknown key, learner": learner_config(tmp_path, keys / "gone"),
        "unknown key, CLI": [*adapters, "--keys", keys / "gone"],
        "no keys": [*sim, "keys_dir="],
        "no permission, sim": [*sim, f"keys_dir={keys}/learner"],
    }
    with agent(tmp_path, keys):
        for what, words in refused.items():
            done = python(*words)
            lines = [line for line in done.stderr.splitlines() if " INFO " not in line]

            assert (done.returncode, len(lines)) == (2, 1), (what, done.stderr)
            assert "perennial keys" in lines[0], what
        done = python(*adapters, "--keys", keys / "learner")
        assert done.returncode == 0, done.stderr


def test_no_secret_leaves_its_file(tmp_path: Path, keys: Path) -> None:
    with agent(tmp_path, keys) as endpoints:
        with running(tmp_path / "probe.log", *probe(tmp_path, keys / "sim")):
            wait_for_answers(tmp_path, 5)
        assert python(*probe(tmp_path, keys / "gone")).returncode == 2
        with urllib.request.urlopen(f"{endpoints['http']}/metrics", timeout=HANG_S) as reply:
            metrics = reply.read()
    assert b'perennial_clients_refused_total{reason="unknown_key"}' in metrics
    secret_files = list(keys.rglob("*.key_secret"))
    assert len(secret_files) == 4
    secrets = [zmq.auth.load_certificate(path)[1] for path in secret_files]
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p not in secret_files]
    assert any(b"unknown key" in text for text in written)
    assert [s for s in secrets for text in [*written, metrics] if s in text] == []
