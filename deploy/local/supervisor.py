"""Starts a run's processes, keeps them alive, and stops them all, whatever happens."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from agent.process import StopFlag
from deploy.local.processes import Child, ProcessFailed, ProcessSpec
from deploy.local.settings import RunConfig

MODULES = {"agent": "agent", "learner": "learner", "probe": "sim_bridge.probe", "sim": "sim_bridge"}
POLL_S = 0.25
CLIENTS_FIRST_S = 1.0  # in which clients end their episodes while the others still answer
STOP_POLL_S = 0.02
HTTP_LIMIT_S = 2.0


class Interrupted(Exception):
    """The user or the system asked the run to stop."""


class StopSignal:
    """Turns the flag of the process into an exception where a run can be left."""

    def check(self) -> None:
        """Raises Interrupted once a signal came."""
        if StopFlag()():
            raise Interrupted


class Supervisor:
    """The processes of one run: the agent first, the others once it is ready.

    A context manager: leaving it stops every process. Must be used from the main thread.
    """

    def __init__(self, config: RunConfig, stop: StopSignal) -> None:
        self._settings = config.settings
        self._stop = stop
        run_dir = config.settings.run_dir
        self.children = {name: self._make_child(name, run_dir) for name in config.processes}
        self._endpoints_path = run_dir / "agent" / "endpoints.json"
        self._results_path = run_dir / "learner" / "results.json"

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything. Raises ProcessFailed when the agent does not become ready."""
        self._endpoints_path.unlink(missing_ok=True)
        self.children["agent"].start()
        self._wait_for_agent()
        for name, child in self.children.items():
            if name != "agent":
                child.start()

    def run(self, on_tick: Callable[[], None]) -> None:
        """Until the learner has finished: its exit status is 0 and its results are there.

        Restarts what crashes. Raises ProcessFailed when a process gives up, Interrupted when
        asked to stop.
        """
        while True:
            self._stop.check()
            for name, child in self.children.items():
                if child.watch() == 0:
                    if name == "learner" and self._results_path.is_file():
                        return
                    what = "without results" if name == "learner" else "before the learner did"
                    raise ProcessFailed(
                        f"{name} ended {what}: {child.last_line()} (log: {child.spec.log_path})"
                    )
            on_tick()
            time.sleep(POLL_S)

    def stop(self) -> list[str]:
        """Stops the clients, and soon after them the others; returns the names of those killed."""
        clients = [c for name, c in self.children.items() if name not in ("agent", "learner")]
        for child in clients:
            child.ask_to_stop()
        deadline_s = time.monotonic() + CLIENTS_FIRST_S
        while any(child.is_running for child in clients) and time.monotonic() < deadline_s:
            time.sleep(STOP_POLL_S)
        for child in self.children.values():
            child.ask_to_stop()
        limit_s = self._settings.stop_limit_s
        return [name for name, child in self.children.items() if not child.stop(limit_s)]

    def restarts(self) -> dict[str, int]:
        """How often each process was started again."""
        return {name: child.restarts for name, child in self.children.items()}

    def describe(self) -> str:
        """One line on how the processes are."""
        words = []
        for name, child in self.children.items():
            state = "●" if child.is_running else "restarting"
            words.append(f"{name} {state}" + (f" ({child.restarts}×)" if child.restarts else ""))
        return "  ".join(words)

    def _make_child(self, name: str, run_dir: Path) -> Child:
        kind = name.partition("-")[0]
        threads = self._settings.threads
        spec = ProcessSpec(
            name=name,
            module=MODULES[kind],
            config_path=run_dir / "config" / f"{name}.yaml",
            log_path=run_dir / "logs" / f"{name}.log",
            threads=getattr(threads, kind, 1),
        )
        return Child(spec, self._settings.restart_limit, self._settings.restart_backoff_s)

    def _wait_for_agent(self) -> None:
        agent = self.children["agent"]
        deadline_s = time.monotonic() + self._settings.ready_limit_s
        while not self._agent_is_ready():
            self._stop.check()
            if agent.watch() == 0:
                raise ProcessFailed(f"agent ended while starting: {agent.last_line()}")
            if time.monotonic() > deadline_s:
                raise ProcessFailed(
                    f"agent was not ready after {self._settings.ready_limit_s:.0f} s: "
                    f"{agent.last_line()} (log: {agent.spec.log_path})"
                )
            time.sleep(POLL_S)

    def _agent_is_ready(self) -> bool:
        try:
            endpoints = json.loads(self._endpoints_path.read_text())
            with urllib.request.urlopen(f"{endpoints['http']}/readyz", timeout=HTTP_LIMIT_S):
                return True
        except (FileNotFoundError, json.JSONDecodeError, urllib.error.URLError, OSError):
            return False  # not there yet, half written, or 503 until the model is loaded
