"""Asks a run's processes whether they could work, before any of them is started."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.process.shown import printable
from deploy.local.placement import BadSetting
from deploy.local.processes import LINE_LIMIT_CHARS, module_command, module_environment
from deploy.local.supervisor import MODULES

LIMIT_S = 600.0  # for reading what settings name; a whole model may have to be hashed


def preflight(config_folder: Path, names: Iterable[str]) -> None:
    """Raises BadSetting with what the first process says that could not work.

    config_folder: holds NAME.yaml, the settings of each. Simulators differ in their names alone,
    so one stands for all; it is asked last, with what the agent's policy needs of it.
    """
    others = [name for name in names if not name.startswith("sim")]
    sims = [name for name in names if name.startswith("sim")][:1]
    with _asking(config_folder, others) as asked:
        told = {name: _answer(name, process) for name, process in asked.items()}
    with _asking(config_folder, sims, told.get("agent", "").strip()) as asked:
        for name, process in asked.items():
            _answer(name, process)


@contextmanager
def _asking(
    config_folder: Path, names: Iterable[str], policy: str = ""
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The processes, all at once; none is left behind."""
    asked: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            # A probe only needs what the others need.
            question = ["--check"] if name == "probe" else ["--preflight", f"--policy={policy}"]
            words = ["--config", str(config_folder / f"{name}.yaml"), *question]
            asked[name] = subprocess.Popen(
                module_command(MODULES[name.partition("-")[0]], words),
                env=module_environment(1),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        yield asked
    finally:
        for process in asked.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


def _answer(name: str, process: subprocess.Popen[str]) -> str:
    """What it printed. Raises BadSetting if it refuses."""
    try:
        out, said = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise BadSetting(
            f"{name}: its settings were not checked after {LIMIT_S:.0f} s; is a folder that they "
            "name on a disk that hangs?"
        ) from None
    if process.returncode != 0:
        lines = said.strip().splitlines() or [f"its check ended with {process.returncode}"]
        raise BadSetting(f"{name}: {printable(lines[-1].strip(), LINE_LIMIT_CHARS)}")
    return out
