"""Drives the compose file with the real engine: one project of its own, removed at the end."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patience import HANG_S

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
PROJECT = "perennial-test"
# One trained task, a few episodes: a swap within seconds, time enough to kill everybody.
SETTINGS = (
    "suite=tabletop budget=smoke task_order=[0] sim.envs=8 seed=1 threads.learner=1 "
    "learner.evaluation.greedy=false agent.lease_s=6 learner.algorithm.iterations_per_task=8"
)
PORTS = {"ROBOTS": 25555, "PROMETHEUS": 29090, "ALERTMANAGER": 29093, "GRAFANA": 23000}
OURS = ("agent", "learner", "sim")
WATCHERS = ("prometheus", "alertmanager")
POLL_S = 0.5


@dataclass
class Stack:
    """The project's containers. `texts` keeps all that any command has printed."""

    services: Sequence[str] = (*OURS, *WATCHERS)
    texts: list[str] = field(default_factory=list)

    def docker(self, *words: str, limit_s: float = HANG_S) -> str:
        """Runs `docker WORDS` and returns what it printed; fails the test if it fails."""
        environment = os.environ | {f"{name}_PORT": str(port) for name, port in PORTS.items()}
        done = subprocess.run(
            ["docker", *words],
            cwd=ROOT,
            env=environment | {"PERENNIAL_SETTINGS": SETTINGS, "SIM_REPLICAS": "2"},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        self.texts += [done.stdout, done.stderr]
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr[-3000:]}"
        return done.stdout

    def compose(self, *words: str, limit_s: float = HANG_S) -> str:
        """Runs `docker compose WORDS` for this project."""
        return self.docker(
            "compose", "-f", str(COMPOSE_FILE), "-p", PROJECT, *words, limit_s=limit_s
        )

    def up(self) -> float:
        """Starts everything and waits until it is healthy; returns the seconds it took."""
        started_s = time.monotonic()
        wait = ["--wait", "--wait-timeout", "150"]
        self.compose("up", "--detach", "--no-build", *wait, *self.services)
        return time.monotonic() - started_s

    def build(self) -> float:
        """Builds the images; returns the seconds it took."""
        started_s = time.monotonic()
        done = subprocess.run(["make", "images"], cwd=ROOT, capture_output=True, text=True,
                              timeout=HANG_S, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return time.monotonic() - started_s

    def tool(self, *words: str) -> str:
        """A command of the operator's container."""
        return self.compose("run", "--rm", "--no-deps", "-T", "operator", *words)

    def read(self, service: str, path: str) -> str:
        """A file as the service sees it; "" while it is not there."""
        (container, *_) = self.containers(service)
        done = subprocess.run(["docker", "exec", container, "cat", path], capture_output=True,
                              text=True, timeout=HANG_S, check=False)  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def containers(self, service: str) -> list[str]:
        """Ids of the service's containers, stopped ones too."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """What the engine knows of the service's containers."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *self.containers(service)))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The learner's progress lines of one kind."""
        lines = self.read("learner", "/var/lib/perennial/learner/progress.jsonl").splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in events if event["event"] == name]

    def answer(self, promql: str) -> dict[tuple[str, ...], float]:
        """What `query` finds, once it is something: on a busy machine one scrape may fail."""
        found: list[dict[tuple[str, ...], float]] = []

        def ask() -> bool:
            found.append(self.query(promql))
            return bool(found[-1])

        self.wait(ask, promql)
        return found[-1]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Prometheus' answer: label values, sorted by label name without job and instance."""
        answer = self._get("PROMETHEUS", "/api/v1/query?" + urllib.parse.urlencode(
            {"query": expression}))  # fmt: skip
        found = {}
        for row in answer["data"]["result"]:
            labels = {k: v for k, v in row["metric"].items() if k not in ("job", "instance")}
            key = tuple(labels[name] for name in sorted(labels) if name != "__name__")
            found[key] = float(row["value"][1])
        return found

    def alerts(self) -> set[str]:
        """Names of the alerts that Alertmanager holds."""
        return {alert["labels"]["alertname"] for alert in self._get("ALERTMANAGER",
                "/api/v2/alerts?active=true")}  # fmt: skip

    def _get(self, port: str, path: str) -> Any:
        url = f"http://127.0.0.1:{PORTS[port]}{path}"
        with urllib.request.urlopen(url, timeout=HANG_S) as answer:
            text = answer.read().decode()
        self.texts.append(text)
        return json.loads(text)

    def wait(self, condition: Callable[[], object], what: str, limit_s: float = HANG_S) -> None:
        """Until `condition` holds. Fails the test with the services' last words."""
        deadline_s = time.monotonic() + limit_s
        while True:
            try:
                if condition():
                    return
            except (urllib.error.URLError, ConnectionError):
                pass  # not there yet, or being restarted: what is waited for
            if time.monotonic() > deadline_s:
                tail = self.compose("logs", "--tail", "15")
                raise AssertionError(f"after {limit_s:g} s still not so: {what}\n{tail}")
            time.sleep(POLL_S)
