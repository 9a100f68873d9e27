"""A client whose observations its server would not take ends with the line that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paced_worker import TASK, watching
from patience import HANG_S
from test_minimal_robot import EXAMPLE, ROOT, noop_server

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LIMIT = 1 << 16
CLIENTS = {
    "minimal client": [str(EXAMPLE), "{endpoint}", TASK, "{folder}/client.jsonl", "1"],
    "robot": [
        "-m", "sim_bridge.robots", "robot=large_pictures:LargePictures", "endpoint={endpoint}",
        f"task={TASK}", "log_path={folder}/client.jsonl",
    ],
    "simulator": [
        str(HERE / "large_toy.py"), "suite=toy", "endpoint={endpoint}",
        "log_path={folder}/client.jsonl",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_with_large_pictures_is_told(tmp_path: Path, name: str) -> None:
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    with (
        noop_server(tmp_path, TASK, f"max_message_bytes={LIMIT}") as (endpoint, _),
        watching(tmp_path) as server,
    ):
        server.order("a")
        words = [word.format(endpoint=endpoint, folder=tmp_path) for word in CLIENTS[name]]
        done = subprocess.run(
            [sys.executable, *words], env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path,
            timeout=HANG_S, capture_output=True, text=True, check=False,
        )  # fmt: skip
        requests = server.status().requests
    assert done.returncode != 0
    line = done.stderr.splitlines()[-1]
    for part in ("Act to ", "was not sent", f"at most {LIMIT} are accepted", "max_message_bytes"):
        assert part in line, done.stderr[-2000:]
    assert requests < 100  # it was not tried again and again
