"""A short real run of the toy suite with a micro OpenVLA-OFT, and a Prometheus that watches it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import HANG_S
from programs import find_program

from deploy.local.tail import JsonTail

ROOT = Path(__file__).parents[2]
POLL_S = 0.1


@contextmanager
def process(words: Sequence[str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped, whatever happens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            words, cwd=log_path.parent, env=environment, stdout=log, stderr=log
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(HANG_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def start_run(
    run_dir: Path, model_dir: Path, *overrides: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """`perennial run` with the toy suite: two tasks, two updates each."""
    words = [
        sys.executable, "-m", "deploy.local.cli", "run", "suite=toy", "model=micro",
        f"model.model_dir={model_dir}", f"run_dir={run_dir}", "budget=smoke",
        "threads.learner=1", "report=false", "learner.algorithm.learning_rate=0.01",
        "learner.micro_batch=8", *overrides,
    ]  # fmt: skip
    return process(words, run_dir.with_suffix(".log"))


def wait_until(condition: Callable[[], bool], what: str, child: subprocess.Popen[bytes]) -> None:
    """Polls; a child that ends with an error or a limit that passes fails the test."""
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert child.poll() in (None, 0), f"it ended with {child.returncode} before {what}"
        assert time.monotonic() < deadline_s, f"{what}: not within {HANG_S:.0f} s"
        time.sleep(POLL_S)


def read_events(run_dir: Path, event: str) -> list[dict[str, Any]]:
    """The learner's events of one kind so far."""
    lines = JsonTail(run_dir / "learner" / "progress.jsonl").read()
    return [line for line in lines if line["event"] == event]


@contextmanager
def held(run: subprocess.Popen[bytes], module: str) -> Iterator[None]:
    """The run's process of that module does nothing meanwhile."""
    children = psutil.Process(run.pid).children()
    (found,) = [child for child in children if module in child.cmdline()]
    found.suspend()
    try:
        yield
    finally:
        found.resume()


def find_prometheus() -> str:
    """Path of the program; without one the test is skipped, but fails in CI."""
    return find_program("prometheus", "prometheus")


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    url: str

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=HANG_S):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def ask(self, path: str, **words: str) -> Any:
        """The data of an answer of the HTTP API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=HANG_S) as r:
            answer = json.load(r)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, promql: str) -> dict[tuple[str, ...], float]:
        """An instant query's vector: label values in the order of their names -> value."""
        data = self.ask("query", query=promql)
        assert data["resultType"] == "vector", data
        return {
            tuple(value for _, value in sorted(sample["metric"].items())): float(sample["value"][1])
            for sample in data["result"]
        }

    def query_range(self, promql: str, seconds: float) -> list[float]:
        """Every value of every series, one a second, of the last `seconds`."""
        now_s = time.time()
        span = {"start": str(now_s - seconds), "end": str(now_s), "step": "1"}
        data = self.ask("query_range", query=promql, **span)
        return [float(value) for series in data["result"] for _, value in series["values"]]

    def expect(self, promql: str, wanted: dict[tuple[str, ...], float]) -> None:
        """Asks until the answer is `wanted`: what just happened has yet to be scraped."""
        deadline_s = time.monotonic() + HANG_S
        while (found := self.query(promql)) != pytest.approx(wanted):
            assert time.monotonic() < deadline_s, f"{promql}: expected {wanted}, got {found}"
            time.sleep(POLL_S)


@contextmanager
def watch(
    program: str, folder: Path, targets: dict[str, Path], rules: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """A Prometheus on loopback that scrapes what the targets' endpoints.json files name.

    rules: files of recording and alerting rules.
    """
    addresses = {
        name: urllib.parse.urlsplit(json.loads(path.read_text())["http"]).netloc
        for name, path in targets.items()
    }
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [address]}]}
        for name, address in addresses.items()
    ]
    # A scrape must outlast an update that holds the interpreter on a loaded machine.
    pace = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "500ms")
    config = {"global": pace, "rule_files": [str(path) for path in rules]}
    folder.mkdir()
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({**config, "scrape_configs": jobs}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [
        program, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}",
    ]  # fmt: skip
    with process(words, folder / "prometheus.log") as child:
        prometheus = Prometheus(f"http://{address}")
        wait_until(prometheus.is_ready, "Prometheus was ready", child)
        yield prometheus
