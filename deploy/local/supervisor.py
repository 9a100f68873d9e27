"""Starts a run's processes, keeps them alive, and stops them all, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from agent.process import StopFlag
from deploy.local.ledgers import achieved
from deploy.local.passing import Passing
from deploy.local.placement import socket_folder
from deploy.local.processes import Child, ProcessFailed, ProcessSpec
from deploy.local.settings import RunConfig
from deploy.local.signs import Signs

MODULES = {"agent": "agent", "learner": "learner", "probe": "sim_bridge.probe", "sim": "sim_bridge"}
POLL_S = 0.25
CLIENTS_FIRST_S = 1.0  # in which clients end their episodes while the others still answer
STOP_POLL_S = 0.02


class Interrupted(Exception):
    """The user or the system asked the run to stop."""


class StopSignal:
    """Turns the flag of the process into an exception where a run can be left."""

    def check(self) -> None:
        """Raises Interrupted once a signal came."""
        if StopFlag()():
            raise Interrupted


class Supervisor:
    """The processes of one run: the agent first, the others once it answers.

    A context manager: leaving it stops every process. Must be used from the main thread, while the
    run's folder of sockets is there.
    """

    def __init__(self, config: RunConfig, stop: StopSignal) -> None:
        self._settings = config.settings
        self._stop = stop
        self.passing = Passing()
        run_dir = config.settings.run_dir
        self.children = {
            name: self._make_child(name, place) for place, name in enumerate(config.processes)
        }
        self._endpoints_path = run_dir / "agent" / "endpoints.json"
        self._results_path = run_dir / "learner" / "results.json"

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the agent; `run` starts the others once it answers."""
        self._endpoints_path.unlink(missing_ok=True)  # of an agent that is gone
        self.children["agent"].start()

    def run(self, on_tick: Callable[[], None]) -> None:
        """Until the learner has finished: its exit status is 0 and its results are there.

        Restarts what crashes or hangs. Raises ProcessFailed when a process gives up, Interrupted
        when asked to stop.
        """
        waiting = [name for name in self.children if name != "agent"]
        while True:
            self._stop.check()
            for name, child in self.children.items():
                if self._watch(child) == 0:
                    if name == "learner" and self._results_path.is_file():
                        return
                    what = "without results" if name == "learner" else "before the learner did"
                    raise ProcessFailed(
                        f"{name} ended {what}: {child.last_line()} (log: {child.spec.log_path})"
                    )
            if waiting and self.children["agent"].is_ready:
                # It answers: what it may still lack, the learner may have.
                for child in [self.children[name] for name in waiting]:
                    with self._looking_after(child):
                        child.start()
                        waiting.remove(child.spec.name)
            on_tick()
            time.sleep(POLL_S)

    def finish(self, keep: Callable[[], bool], on_tick: Callable[[], None]) -> None:
        """Ticks until `keep` has noted that the run is finished. Raises Interrupted."""
        while not keep():
            self._stop.check()
            on_tick()
            time.sleep(POLL_S)

    def _watch(self, child: Child) -> int | None:
        status = None
        with self._looking_after(child):
            status = child.watch()
        return status

    def _looking_after(self, child: Child) -> AbstractContextManager[None]:
        return self.passing.borne(f"{child.spec.name} is not looked after", child.spec.log_path)

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
            state = "●" if child.is_ready else "starting" if child.is_running else "waiting"
            words.append(f"{name} {state}" + (f" ({child.restarts}×)" if child.restarts else ""))
        return "  ".join(words)

    def trouble(self) -> str:
        """Why processes have ended that have achieved nothing since, and what is refused at
        present; one line, or "".
        """
        told = [child.trouble for child in self.children.values()]
        return "; ".join(text for text in (*told, self.passing.describe()) if text)

    def _make_child(self, name: str, place: int) -> Child:
        kind, settings = name.partition("-")[0], self._settings
        run_dir = settings.run_dir
        spec = ProcessSpec(
            name=name,
            module=MODULES[kind],
            config_path=run_dir / "config" / f"{name}.yaml",
            log_path=run_dir / "logs" / f"{name}.log",
            threads=getattr(settings.threads, kind, 1),
        )
        path = socket_folder(run_dir) / f"{place}.notify"
        signs = Signs(path, settings.hang_limit_s, settings.ready_limit_s)
        measure = partial(achieved, run_dir, name)
        return Child(spec, settings.restart_limit, settings.restart_backoff_s, signs, measure)
