"""How many simulator workers a machine gets, from what /proc and /sys would say of it."""

from pathlib import Path

import pytest

from deploy.local import capacity
from deploy.local.capacity import OTHERS_MB, WORKER_MB, available_mb, count_cores, count_workers
from deploy.local.placement import BadSetting
from deploy.local.settings import compose_run

MB = 1 << 20


class Machine:
    """A root folder with the files that are read."""

    def __init__(self, root: Path, free_mb: int) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {free_mb * 1024} kB\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def put_into(self, group: str) -> None:
        self.write("proc/self/cgroup", f"4:memory:/old\n0::{group}\n")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of them."""
    monkeypatch.setattr(capacity.os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with weights of 8 MB."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(8 * MB))
    return folder


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("free_mb", "envs", "expected"),
    [
        (OTHERS_MB + 2 * 8 + 3 * (WORKER_MB + 2800), 1, 3),  # as many as fit
        (OTHERS_MB + 2 * 8 + 3 * (WORKER_MB + 2800) - 1, 1, 2),
        (OTHERS_MB + 2 * 8 + 3 * (WORKER_MB + 2800), 3, 1),  # each with three bodies
        (10**6, 1, 16),  # as many as cores
        (100, 1, 1),  # never none: the run itself then says what is missing
    ],
)
def test_workers_are_as_many_as_cores_and_memory_hold(
    tmp_path: Path, model: Path, free_mb: int, envs: int, expected: int
) -> None:
    machine = Machine(tmp_path, free_mb)
    assert count_workers(envs, 2800, model, machine.root) == expected


@pytest.mark.usefixtures("cores")
def test_a_containers_limits_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 50_000)
    machine.put_into("/pod/box")
    assert (available_mb(machine.root), count_cores(machine.root)) == (50_000, 16)
    pod, box = "sys/fs/cgroup/pod", "sys/fs/cgroup/pod/box"
    machine.write(f"{box}/memory.max", "max\n")
    machine.write(f"{box}/cpu.max", "max 100000\n")
    machine.write(f"{pod}/memory.max", f"{8000 * MB}\n")
    machine.write(f"{pod}/memory.current", f"{5000 * MB}\n")
    machine.write(f"{pod}/memory.stat", f"anon 1\ninactive_file {1000 * MB}\n")
    machine.write(f"{pod}/cpu.max", "450000 100000\n")
    assert (available_mb(machine.root), count_cores(machine.root)) == (4000, 4)


def test_a_system_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="give workers=N"):
        count_workers(1, 2800, tmp_path, tmp_path)


def test_a_run_records_the_word_and_starts_what_fits_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked = []

    def count(envs: int, env_mb: float, model_dir: Path) -> int:
        asked.append((envs, env_mb, model_dir))
        return 3

    monkeypatch.setattr("deploy.local.settings.count_workers", count)
    given = ["suite=tabletop", f"model.model_dir={tmp_path}"]
    run = compose_run([*given, "suite.workers=auto"])
    assert asked == [(48, run.tree["suite"]["env_mb"], tmp_path)]
    assert run.settings.workers == 3
    assert [name for name in run.processes if name.startswith("sim")] == ["sim-0", "sim-1", "sim-2"]
    assert run.tree["workers"] == "auto"  # so it may go on where another number fits
    assert compose_run([*given, "workers=2"]).settings.workers == 2
    with pytest.raises(BadSetting, match="does not say what a body takes"):
        compose_run([*given, "workers=auto", "~suite.env_mb"])
