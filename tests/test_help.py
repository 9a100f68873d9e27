"""`perennial --help` and every subcommand's help are instant: nothing heavy is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_S

from deploy.local.cli import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
INNER = [f"{name} {word}" for name, command in COMMANDS.items() for word in command.inner]
HEAVY = {"torch", "transformers", "hydra", "omegaconf", "numpy", "matplotlib", "mujoco", "zmq"}


def run_perennial(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter that lists its imports on stderr, also after an exec."""
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "deploy.local.cli", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def imported_packages(stderr: str) -> set[str]:
    return set(re.findall(r"^import time:.*\|\s+([A-Za-z_]\w*)", stderr, re.MULTILINE))


def test_help_names_every_command() -> None:
    done = run_perennial("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert imported_packages(done.stderr) & HEAVY == set()


@pytest.mark.parametrize("command", [*COMMANDS, *INNER])
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    done = run_perennial(*command.split(), "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage:" in done.stdout
    packages = imported_packages(done.stderr)
    assert "argparse" in packages, "the import listing must reach past the exec"
    assert packages & HEAVY == set()


def test_an_unknown_command_is_one_clear_refusal() -> None:
    done = run_perennial("trian")
    assert done.returncode == 2
    assert "'trian'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_the_same_name_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "__init__.py").write_text("raise SystemExit('wrong learner')")
    done = run_perennial("plan", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
