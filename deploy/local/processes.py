"""One supervised child process: how it is started, restarted after a crash, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.process import BAD_INPUT, thread_variables

QUICK_EXIT_S = 20.0  # a process that lived longer than this starts with a fresh restart budget
LONGEST_BACKOFF_S = 10.0
LOG_TAIL_BYTES = 4096

PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # the repository, or site-packages


class ProcessFailed(Exception):
    """A child gave up; the text names it, the reason it printed, and its log."""


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs one of Perennial's modules with this interpreter.

    -P keeps a folder called `agent` or `learner` in the user's directory from being imported.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(threads: int | None = None) -> dict[str, str]:
    """The environment for `module_command`; `threads` limits the numerical libraries.

    Idle threads sleep (OMP_WAIT_POLICY): spinning ones take the core that another process needs.
    """
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(PACKAGE_ROOT), *([inherited] if inherited else [])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment |= thread_variables(threads)
    return environment


@dataclass(frozen=True)
class ProcessSpec:
    """What to run: `python -m module --config config_path`, output appended to `log_path`."""

    name: str
    module: str
    config_path: Path
    log_path: Path
    threads: int


class Child:
    """One process of a run. Start it from the main thread: its parent-death signal follows the
    thread that started it, not the process."""

    def __init__(
        self,
        spec: ProcessSpec,
        restart_limit: int,
        backoff_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`restart_limit`: quick exits in a row that are forgiven."""
        self.spec = spec
        self.restarts = 0
        self._restart_limit = restart_limit
        self._backoff_s = backoff_s
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0
        self._start_again_at_s: float | None = None
        self._quick_exits = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the process is alive now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process in a group of its own, so that Ctrl-C reaches the supervisor alone."""
        words = module_command(self.spec.module, ["--config", str(self.spec.config_path)])
        with self.spec.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=module_environment(self.spec.threads),
                process_group=0,
            )
        self._started_at_s = self._clock()
        self._start_again_at_s = None

    def watch(self) -> int | None:
        """Restarts a crashed process after its backoff; returns 0 once it has finished, else None.

        Raises ProcessFailed for refused settings, and after too many quick exits in a row.
        """
        if self._process is None or self._process.poll() is None:
            return None
        status = self._process.returncode
        if status == 0:
            return 0
        if status == BAD_INPUT:
            raise ProcessFailed(f"{self.spec.name}: {self.last_line()}")
        now_s = self._clock()
        if self._start_again_at_s is None:
            self._plan_restart(status, now_s)
        elif now_s >= self._start_again_at_s:
            self.restarts += 1
            self.start()
        return None

    def _plan_restart(self, status: int, now_s: float) -> None:
        lived_s = now_s - self._started_at_s
        self._quick_exits = self._quick_exits + 1 if lived_s < QUICK_EXIT_S else 1
        if self._quick_exits > self._restart_limit:
            raise ProcessFailed(
                f"{self.spec.name} ended {self._quick_exits} times in a row ({_describe(status)}): "
                f"{self.last_line()} (log: {self.spec.log_path})"
            )
        backoff_s = min(self._backoff_s * 2.0 ** (self._quick_exits - 1), LONGEST_BACKOFF_S)
        self._start_again_at_s = now_s + backoff_s

    def last_line(self) -> str:
        """The last line of its log: processes put their reason to end there."""
        with self.spec.log_path.open("rb") as log:
            log.seek(max(0, self.spec.log_path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing"

    def ask_to_stop(self) -> None:
        """SIGTERM; a second one changes nothing."""
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, limit_s: float) -> bool:
        """SIGTERM, then SIGKILL after `limit_s`; False if the process had to be killed."""
        if not self.is_running or self._process is None:
            return True
        self.ask_to_stop()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True


def _describe(status: int) -> str:
    """Exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
