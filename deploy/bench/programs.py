"""Runs a program of ours to its end, and reads how far a run is from the run's own files."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.process import StopFlag
from agent.process.shown import LINE_MAX_CHARS, printable
from deploy.local.processes import ProcessFailed, module_command, module_environment
from deploy.local.progress import Plan, Progress
from deploy.local.shapes import END, EVENT, EVENTS
from deploy.local.tail import JsonTail

POLL_S = 1.0
STOP_LIMIT_S = 60.0  # a run stops its own processes within `stop_limit_s` each


class RunProgress:
    """What a run's files say of how far it is."""

    def __init__(self, run_dir: Path, learner: dict[str, Any]) -> None:
        """learner: its resolved settings."""
        self._progress = Progress(Plan.from_learner(learner))
        self._run_dir = run_dir
        self._events = JsonTail(run_dir / "learner" / "progress.jsonl", EVENT, EVENTS)
        self._ends: dict[Path, JsonTail] = {}

    def look(self) -> tuple[float, str]:
        """Share done in [0, 1], and the stage in words."""
        self._progress.add_events(self._events.read())
        for path in sorted(self._run_dir.glob("sim-*/client.jsonl")):
            self._progress.add_ends(self._ends.setdefault(path, JsonTail(path, END)).read())
        return self._progress.share_done(), self._progress.stage()


def run_program(
    module: str,
    words: Sequence[str],
    log_path: Path,
    show: Callable[[], None] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs a module of ours, its output in `log_path`; `show` is called meanwhile.

    Raises ProcessFailed, with its last line, if it ends with an error.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            module_command(module, words),
            cwd=cwd,
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while child.poll() is None:
                if show:
                    show()
                time.sleep(POLL_S)
        finally:
            with StopFlag().finishing():
                _stop(child)
    if child.returncode != 0:
        lines = log_path.read_text(errors="replace").strip().splitlines()
        reason = printable(lines[-1].strip(), LINE_MAX_CHARS) if lines else "it printed nothing"
        raise ProcessFailed(f"{module} ended with {child.returncode}: {reason} (log: {log_path})")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind: Ctrl-C reaches the child as well, SIGTERM does not."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
