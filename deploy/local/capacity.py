"""How many simulator workers this machine carries: by its cores, and by the memory that is free.

Limits of containers count as the machine's own: the CPU set, and `cpu.max` and `memory.max` of this
process's control group (version 2) and those above it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deploy.local.placement import BadSetting

AUTO = "auto"
# Of the agent, the learner, the probe and the supervisor, besides the model's weights.
OTHERS_MB = 2000
WORKER_MB = 200  # a worker with its scene and renderer, before its first body
_MB = 1 << 20


def count_workers(envs: int, env_mb: float, model_dir: Path, root: Path = Path("/")) -> int:
    """As many workers of `envs` bodies as there are cores and as fit into memory; at least one.

    env_mb: what one body takes at most. Agent and learner, which each hold the model, are put
    aside first. root: where /proc and /sys are.

    Raises BadSetting where the system does not tell its memory.
    """
    weights_mb = sum(file.stat().st_size for file in model_dir.glob("*.safetensors")) / _MB
    free_mb = available_mb(root) - OTHERS_MB - 2 * weights_mb
    by_memory = int(free_mb // (WORKER_MB + envs * env_mb))
    return max(1, min(count_cores(root), by_memory))


def count_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    for folder in _control_groups(root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit():
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def available_mb(root: Path = Path("/")) -> float:
    """Memory that can be had without swapping: of the machine, and of every group around us.

    Raises BadSetting where the system does not tell.
    """
    machine = _fields(root / "proc" / "meminfo")
    if "MemAvailable:" not in machine:
        raise BadSetting("workers=auto: this system does not tell its memory; give workers=N")
    free_mb = [machine["MemAvailable:"] / 1024]
    for folder in _control_groups(root):
        limit = _read(folder / "memory.max")
        if limit.isdigit():
            # The page cache counts as used, but gives way.
            cache = _fields(folder / "memory.stat").get("inactive_file", 0)
            used = int(_read(folder / "memory.current")) - cache
            free_mb.append((int(limit) - used) / _MB)
    return min(free_mb)


def _control_groups(root: Path) -> Iterator[Path]:
    """This process's group and those above it; none where version 2 is not in use."""
    top = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            own = top / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _fields(path: Path) -> dict[str, int]:
    """`name number [unit]` lines."""
    words = (line.split() for line in _read(path).splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1}


def _read(path: Path) -> str:
    """Without the newline; "" for a file that is not there: not every group has every limit."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
