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
from agent.process.shown import printable
from deploy.local.signs import Signs

LONGEST_BACKOFF_S = 10.0
MEASURE_PERIOD_S = 2.0  # between two looks at what a process that ended has achieved since
LOG_TAIL_BYTES = 4096
LINE_LIMIT_CHARS = 1000  # of what it printed

PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # the repository, or site-packages


class ProcessFailed(Exception):
    """A child gave up; the text names it, the reason it printed, and its log."""


class ProcessRefused(ProcessFailed):
    """A child refused its settings: another start would not help."""


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
        signs: Signs | None = None,
        measure: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """restart_limit: ends without progress in a row that are forgiven.

        signs: what it tells while it runs; None: nothing, it is never found hanging. measure: grows
        with everything durable that the process achieves; None while that cannot be told.
        """
        self.spec = spec
        self.restarts = 0
        self._restart_limit = restart_limit
        self._backoff_s = backoff_s
        self._signs = signs
        self._measure = measure
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._start_again_at_s: float | None = None
        self._achieved = 0
        self._measure_at_s = 0.0
        self._vain_ends = 0  # since it last achieved something
        self._reason = ""  # of the last of them

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the process is alive now."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it runs and has said that it is ready."""
        return self.is_running and (self._signs is None or self._signs.is_ready)

    @property
    def trouble(self) -> str:
        """Why it ended, until it achieves something again; one line, or ""."""
        if not self._vain_ends:
            return ""
        count = f"end {self._vain_ends} of {self._restart_limit + 1} without progress"
        return f"{self.spec.name}, {count}, {self._reason}"

    def start(self) -> None:
        """Starts the process in a group of its own, so that Ctrl-C reaches the supervisor alone."""
        if self._process is None:
            self._achieved = self._measure() or 0
        words = module_command(self.spec.module, ["--config", str(self.spec.config_path)])
        told = {} if self._signs is None else self._signs.expect()
        with self.spec.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=module_environment(self.spec.threads) | told,
                process_group=0,
            )
        self._start_again_at_s = None

    def watch(self) -> int | None:
        """Kills a process that hangs, restarts one that ended after its backoff.

        Returns 0 once it has finished, else None. Raises ProcessRefused for refused settings,
        ProcessFailed after too many ends without progress.
        """
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._look_at(self._process)
            return None
        status = self._process.returncode
        if status == 0:
            return 0
        if status == BAD_INPUT:
            raise ProcessRefused(f"{self.spec.name}: {self.last_line()}")
        now_s = self._clock()
        if self._start_again_at_s is None:
            self._plan_restart(status, now_s)
        elif now_s >= self._start_again_at_s:
            self.start()
            self.restarts += 1
        return None

    def _look_at(self, process: subprocess.Popen[bytes]) -> None:
        """At a process that runs: does it hang, and has it achieved something since it ended?"""
        hang = self._signs.find_hang(process.pid) if self._signs is not None else ""
        if hang:
            process.kill()  # first: a full disk may refuse the line
            process.wait()
            with self.spec.log_path.open("a", encoding="utf-8") as log:
                log.write(f"perennial run: killed, because {hang}\n")
        elif self._vain_ends and self._clock() >= self._measure_at_s:
            self._measure_at_s = self._clock() + MEASURE_PERIOD_S
            self._forgive_after_progress()

    def _forgive_after_progress(self) -> None:
        achieved = self._measure()
        if achieved is not None and achieved > self._achieved:
            self._achieved, self._vain_ends = achieved, 0

    def _plan_restart(self, status: int, now_s: float) -> None:
        reason = f"{_describe(status)}: {self.last_line()}"  # unless the disk refuses
        self._forgive_after_progress()
        self._vain_ends += 1
        self._reason = reason
        if self._vain_ends > self._restart_limit:
            raise ProcessFailed(
                f"{self.spec.name} ended {self._vain_ends} times in a row without progress "
                f"({_describe(status)}): {self.last_line()} (log: {self.spec.log_path})"
            )
        backoff_s = min(self._backoff_s * 2.0 ** (self._vain_ends - 1), LONGEST_BACKOFF_S)
        self._start_again_at_s = now_s + backoff_s

    def last_line(self) -> str:
        """The last line of its log: processes put their reason to end there."""
        with self.spec.log_path.open("rb") as log:
            log.seek(max(0, self.spec.log_path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1].strip(), LINE_LIMIT_CHARS) if lines else "it printed nothing"

    def ask_to_stop(self) -> None:
        """SIGTERM; a second one changes nothing."""
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)  # one that is stopped would not hear it

    def stop(self, limit_s: float) -> bool:
        """SIGTERM, then SIGKILL after `limit_s`; False if the process had to be killed."""
        try:
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
        finally:
            if self._signs is not None:
                self._signs.close()


def _describe(status: int) -> str:
    """Exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
