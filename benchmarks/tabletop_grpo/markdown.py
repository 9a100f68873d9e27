"""How the report writes numbers and tables: success in percent, differences in points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.tabletop_grpo.figures import Verdict
from deploy.bench.results import Result
from deploy.bench.tables import table
from deploy.local.seeds import SeedMean
from deploy.local.statistics import Figure, Matrix, Rate

NOT_MEASURED = "not measured"


def percent(figure: Figure) -> str:
    """`43.3 ± 2.9`, in percent."""
    return NOT_MEASURED if figure is None else f"{100 * figure[0]:.1f} ± {100 * figure[1]:.1f}"


def points(figure: Figure) -> str:
    """`+25.1 ± 3.9`, in points of percent."""
    return NOT_MEASURED if figure is None else f"{100 * figure[0]:+.1f} ± {100 * figure[1]:.1f}"


def seed_mean(mean: SeedMean | None, sign: str = "") -> str:
    """`43.3 ± 2.9 (trials alone: ± 1.7)`."""
    if mean is None:
        return NOT_MEASURED
    seeds = "one seed" if mean.seeds_se is None else f"± {100 * mean.seeds_se:.1f}"
    return f"{100 * mean.mean:{sign}.1f} {seeds} (trials alone: ± {100 * mean.trials_se:.1f})"


def rate(cell: Rate) -> str:
    """`48% (48/100)`."""
    return f"{100 * cell.value:.0f}% ({cell.successes}/{cell.trials})" if cell.trials else "–"


def trials(matrix: Matrix, tasks: Sequence[str]) -> str:
    """Trials of each measured cell of `tasks`: `n = 100`, or `n = 50 to 100`."""
    counts = [
        cell.trials
        for row in range(len(matrix.cells))
        for task in tasks
        if (cell := matrix.rate(row, task)).trials
    ]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def trials_behind(result: Result) -> str:
    """The trials of a run's figures, as a sentence."""
    rollout, greedy = result.rollout, result.greedy
    parts = [f"{trials(rollout, rollout.train_tasks)} trained"]
    if rollout.held_out_tasks:
        parts.append(f"{trials(rollout, rollout.held_out_tasks)} held out")
    if any(cell.trials for row in greedy.cells for cell in row):
        parts.append(f"{trials(greedy, greedy.train_tasks)} greedy")
    return f"Trials a task: {', '.join(parts)}."


def verdicts(judged: Iterable[Verdict]) -> list[str]:
    """Target, what was found, and whether it is met."""
    head = ("figure", "target", "found", "verdict")
    return table(head, [(v.what, v.target, v.found, f"**{v.text}**") for v in judged])


def missing(names: Sequence[str]) -> list[str]:
    """The sentence in place of what the cells `names` would show."""
    what = "cell" if len(names) == 1 else "cells"
    return [f"Not measured yet: {what} {', '.join(f'`{name}`' for name in names)}.", ""]
