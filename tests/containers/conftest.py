"""Where no engine runs, these tests are skipped; `make test-containers` asks for one first."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from patience import HANG_S
from stack import OURS, PROJECT, WATCHERS, Stack


def _engine_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    words = ["docker", "compose", "version"]
    return all(
        subprocess.run(command, capture_output=True, timeout=HANG_S, check=False).returncode == 0
        for command in (words, ["docker", "info"])
    )


def _has_image(stack: Stack, name: str) -> bool:
    return any(name in line for line in stack.docker("images").splitlines())


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The project before anything is started; gone without a trace afterwards."""
    if not _engine_runs():
        why = "no Docker engine with compose answers"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    stack = Stack()
    if _has_image(stack, "grafana/grafana"):
        stack.services = (*OURS, *WATCHERS, "grafana")
    stack.compose("down", "--volumes", "--remove-orphans")
    yield stack
    stack.compose("--profile", "tools", "down", "--volumes", "--remove-orphans")
    for kind in ("container", "volume", "network"):
        every = ["--all"] if kind == "container" else []
        left = stack.docker(
            kind, "ls", *every, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"
        )
        assert left.split() == [], f"a {kind} was left behind"
