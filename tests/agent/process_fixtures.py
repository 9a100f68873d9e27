"""A real agent process."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from patience import HANG_S

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "agent"]


@contextmanager
def agent_process(folder: Path, *overrides: str, command: Sequence[str] = COMMAND):
    config = folder / "agent.yaml"
    config.write_text("tasks: {own: {instruction: go}}\npolicy: {kind: noop}\n", encoding="utf-8")
    arguments = [
        f"--config={config}",
        f"state_dir={folder}/agent",
        f"adapters_dir={folder}/adapters",
        f"robots_endpoint=ipc://{folder}/r.sock",
        f"operator_endpoint=ipc://{folder}/o.sock",
        *overrides,
    ]
    process = subprocess.Popen([*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(HANG_S)
        process.stderr.close()


def wait_for_endpoints(folder: Path, process: subprocess.Popen) -> dict[str, str]:
    path = folder / "agent" / "endpoints.json"
    deadline_s = time.monotonic() + HANG_S
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return json.loads(path.read_text())
