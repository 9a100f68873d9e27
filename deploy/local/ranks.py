"""How large the adapters of a run get: what its server must have room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GROWING = ("retain",)  # continual methods whose published adapter gains a rank with every task


def served_rank(rank: int, method: str, train_tasks: Sequence[str], task_order: Any) -> int:
    """The largest rank that the run publishes; `rank` is that of the adapter it trains.

    task_order: indices into `train_tasks`, or anything else for all of them.
    """
    if method not in GROWING:
        return rank
    is_list = isinstance(task_order, Sequence) and not isinstance(task_order, str)
    return rank * len(task_order if is_list else train_tasks)
