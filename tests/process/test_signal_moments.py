"""Every kind of process ends soon after a signal, whatever it is doing just then."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
import yaml

from deploy.local.processes import module_command, module_environment
from deploy.local.settings import compose_run

pytestmark = pytest.mark.slow
HANG_S = 60.0  # only a process that hangs takes so long
DELAYS_S = (0.0, 0.8, 2.0, 4.0, 9.0)  # imports, settings, loading, waiting for others, working
INTERPRETER_S = 0.5  # before that nothing of ours may run that could catch a signal
# Done before, or stopped in order: 128 + signal is what a shell shows.
EXPECTED = (0, 1, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
NANO = Path(__file__).parents[2] / "agent" / "assets" / "nano"
# Module and arguments; {dir} is a folder of the test's own.
KINDS: dict[str, tuple[str, list[str]]] = {
    "agent": ("agent", ["state_dir={dir}/agent", "robots_endpoint=ipc://{dir}/robots"]),
    "agent of zeros": (
        "agent", ["policy.kind=noop", "state_dir={dir}/agent", "robots_endpoint=ipc://{dir}/r"],
    ),
    "learner": ("learner", ["--config", "{dir}/learner.yaml"]),
    "simulator": ("sim_bridge", ["suite=tabletop", "endpoint=ipc://{dir}/r", "log_path={dir}/s"]),
    "probe": ("sim_bridge.probe", ["endpoint=ipc://{dir}/r", "log_path={dir}/p", "task=a"]),
    "robot": (
        "sim_bridge.robots", ["endpoint=ipc://{dir}/r", "log_path={dir}/l", "task=pick_red_tray"],
    ),
    "run": ("deploy.local.run", ["suite=toy", "budget=smoke", "run_dir={dir}/run"]),
    "bench": (
        "deploy.bench", ["suite=toy", "method=sequential", "seeds=1", "out={dir}/bench"],
    ),
    "demos": (
        "sim_bridge.demos",
        ["collect", "--suite=tabletop", "--out={dir}/demos", "--workers=1", "--frames=400"],
    ),
    "model": ("agent.cli_model", ["verify", str(NANO)]),
    "dry-run": ("deploy.local.dryrun", ["suite=tabletop"]),
    "report": ("deploy.local.report", ["{dir}/nothing"]),
    "setup": ("deploy.setup", ["compose", "{dir}/setup"]),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = compose_run(["suite=toy", "budget=smoke", f"run_dir={tmp_path}/run"])
    own = {
        "state_dir": f"{tmp_path}/learner",
        "adapters_dir": f"{tmp_path}/adapters",
        "operator_endpoint": f"ipc://{tmp_path}/nobody.sock",
        "die_with_parent": False,
    }
    text = yaml.safe_dump({**settings.processes["learner"], **own})
    (tmp_path / "learner.yaml").write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_ignored() -> Iterator[None]:
    """A shell has its background jobs ignore SIGINT, and children inherit that."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    module, arguments = KINDS[kind]
    words = [word.format(dir=folder) for word in arguments]
    return subprocess.Popen(
        module_command(module, words), env=module_environment(1), cwd=folder, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        process_group=0,
    )  # fmt: skip


def group_of(leader: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_ends_soon_and_quietly_whenever_it_is_told(
    kind: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    for delay_s, number in zip(DELAYS_S, cycle((signal.SIGINT, signal.SIGTERM)), strict=False):
        process = start(kind, folder)
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        began_s = time.monotonic()
        time.sleep(0.05)
        process.send_signal(number)  # a second one changes nothing
        output = process.communicate(timeout=HANG_S)[0]
        took_s = time.monotonic() - began_s
        case = f"{kind}, {number.name} after {delay_s} s"
        print(f"{case}: {took_s:.2f} s, {process.returncode}")
        record_property(case, took_s)
        if delay_s >= INTERPRETER_S:
            assert "Traceback" not in output, output
            assert process.returncode in EXPECTED or process.returncode == -number, output
        wait_for_group(process.pid)


def wait_for_group(leader: int) -> None:
    """Nothing that the process started outlives it for long."""
    ends_s = time.monotonic() + HANG_S
    while left := group_of(leader):
        assert time.monotonic() < ends_s, left
        time.sleep(0.1)
