"""An agent is killed while versions are switched: what it serves next is what its journal says."""

import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from patience import HANG_S
from process_fixtures import agent_process, wait_for_endpoints
from server_fixtures import start_own

from agent.adapters import AdapterStore
from agent.noop_policy import NoopPolicy
from agent.wire.errors import WireError
from agent.wire.messages import Activate, Status
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.slow

KILLS = 5


def publish(folder: Path, number: int) -> str:
    manifest = AdapterStore(folder / "adapters").publish(
        number,
        {"weights.bin": bytes([number]) * 1000},
        parent="base",
        task="own",
        base_sha256=NoopPolicy.base_sha256,
        method="test",
        metrics={},
    )
    return manifest.version


def journaled(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "agent" / "agent.db") as ledger:
        return [v for (v,) in ledger.execute("SELECT version FROM activations ORDER BY seq")]


def kill(folder: Path, process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(HANG_S)
    (folder / "agent" / "endpoints.json").unlink()


def readiness(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=HANG_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_killed_agent_serves_what_its_journal_says(tmp_path: Path) -> None:
    versions = [publish(tmp_path, number) for number in (1, 2, 3)]
    wishes = [*versions, "base", versions[1]] * 5  # none is that of the one before
    answered: list[str] = []  # what was answered so far, in this and all earlier lives
    for attempt in range(KILLS):
        with agent_process(tmp_path) as process:
            endpoints = wait_for_endpoints(tmp_path, process)
            history = journaled(tmp_path)
            active = history[-1] if history else "base"
            with (
                DealerClient(endpoints["operator"], HANG_S) as operator,
                DealerClient(endpoints["robots"], HANG_S) as robot,
            ):
                assert operator.request(Status()).active_version == active
                assert start_own(robot).version == active
                answered = []
                for wish in wishes:
                    operator.send(Activate(0, wish))
                deadline_s = time.monotonic() + 0.03 * attempt
                while time.monotonic() < deadline_s:
                    answered += [reply.version for _, reply in operator.poll(0.005)]
                kill(tmp_path, process)
        made = journaled(tmp_path)[len(history) :]
        # A wish for what is active already is answered without a line of its own.
        wanted = wishes[1:] if wishes[0] == active else wishes
        assert made == wanted[: len(made)]
        assert answered == wishes[: len(answered)]
        assert len(made) >= len(answered) - 1


def test_an_agent_whose_version_is_gone_says_so_until_it_is_back(tmp_path: Path) -> None:
    version = publish(tmp_path, 1)
    folder = tmp_path / "adapters" / version
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with DealerClient(endpoints["operator"], HANG_S) as operator:
            operator.request(Activate(0, version))
        kill(tmp_path, process)
    shutil.move(folder, tmp_path / "aside")
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        status, text = readiness(endpoints["http"])
        assert status == 503
        assert version in text
        with DealerClient(endpoints["robots"], HANG_S) as robot:
            with pytest.raises(WireError, match=version) as refused:
                start_own(robot)
            assert refused.value.code == "overloaded"
            shutil.move(tmp_path / "aside", folder)
            deadline_s = time.monotonic() + HANG_S
            while readiness(endpoints["http"])[0] != 200:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            assert start_own(robot).version == version
