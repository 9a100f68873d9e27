"""How large the adapters of a run get: what its server must have room for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.process.json_files import COUNT, DamagedFile, read_json
from agent.process.paths import expand_home

GROWING = ("retain",)  # continual methods whose published adapter gains a rank with every task


def served_rank(
    rank: int, method: str, train_tasks: Sequence[str], task_order: Any, start_adapter: str
) -> int:
    """The largest rank that the run publishes; `rank` is that of the adapter it trains.

    task_order: indices into `train_tasks`, or anything else for all of them. start_adapter: the
    folder of one that is measured only, or "".

    Raises ValueError if that is none.
    """
    if start_adapter:
        return max(rank, _rank_in(Path(expand_home("start_adapter", start_adapter))))
    if method not in GROWING:
        return rank
    is_list = isinstance(task_order, Sequence) and not isinstance(task_order, str)
    return rank * len(task_order if is_list else train_tasks)


def _rank_in(folder: Path) -> int:
    path = folder / "adapter_config.json"
    try:
        return int(read_json(path, {"r": COUNT[1:]}, "name an adapter folder")["r"])
    except DamagedFile as error:
        raise ValueError(f"start_adapter: no rank in {path.parent}: {error}") from error
