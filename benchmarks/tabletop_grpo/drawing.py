"""The report's two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes

from benchmarks.tabletop_grpo.cells import CONTROLS, SFT_RATES
from benchmarks.tabletop_grpo.figures import Point
from benchmarks.tabletop_grpo.markdown import trials
from deploy.bench.results import Result
from deploy.local.plots import COLOURS, GREY, plt

DPI = 90  # small files: they are committed
SMOOTHING = 3  # iterations of the moving mean
CONTROL_STYLES = dict(zip(CONTROLS, (":", "--"), strict=True))


def draw_curves(seeds: Sequence[Result], controls: Sequence[Result], path: Path) -> None:
    """Success of the training episodes by iteration, task by task; controls in grey."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    first = (*seeds, *controls)[0]
    for result in controls:
        _draw_run(axes, result, GREY, CONTROL_STYLES[result.name], result.name)
    for colour, result in zip(COLOURS, seeds, strict=False):
        _draw_run(axes, result, colour, "-", f"seed {result.summary['seed']}")
    borders = task_borders(first)
    for task, left, right in zip(first.rollout.train_tasks, borders, borders[1:], strict=False):
        axes.text((left + right) / 2, 1.0, task, ha="center", va="top", color=GREY)
        if left:
            axes.axvline(left + 0.5, color=GREY, linestyle=":", linewidth=1)
    episodes = [row[3] for result in (*seeds, *controls) for row in result.curve]
    axes.set(
        xlabel="iteration",
        ylabel="success of training episodes",
        ylim=(0, 1.02),
        title=f"T = {first.temperature:g}, n = {min(episodes)} to {max(episodes)} episodes an "
        f"iteration, moving mean of {SMOOTHING}",
    )
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def task_borders(result: Result) -> list[int]:
    """0, then the iteration at which each task ended."""
    borders = [0]
    for _, rows in groupby(result.curve, key=lambda row: row[0]):
        borders.append(borders[-1] + len(list(rows)))
    return borders


def smooth(values: Sequence[float]) -> list[float]:
    """Moving mean over the last `SMOOTHING` values, fewer at the beginning."""
    return [fmean(values[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(values))]


def _draw_run(axes: Axes, result: Result, colour: str, style: str, label: str) -> None:
    """A line that breaks where the task changes."""
    place = 0
    for _, rows in groupby(result.curve, key=lambda row: row[0]):
        rates = [successes / trials for _, _, successes, trials in rows]
        places = range(place + 1, place + 1 + len(rates))
        name = label if place == 0 else None
        axes.plot(places, smooth(rates), color=colour, linestyle=style, linewidth=1.5, label=name)
        place += len(rates)


def draw_trade_off(
    curves: Mapping[str, Sequence[Point]], grpo: Sequence[Point], example: Result, path: Path
) -> None:
    """The others' change against the new task's success: a line a learning rate, GRPO as crosses.

    example: any of the runs, for the temperature and the trials.
    """
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    colours = dict(zip(SFT_RATES, COLOURS[1:], strict=False))
    for rate, points in curves.items():
        _draw_points(axes, points, f"SFT, learning rate {rate}", colours[rate], "o-")
        for point in points[1:]:
            axes.annotate(
                str(point.length), (point.success, point.change[0]), (5, 5),
                textcoords="offset points", fontsize=8, color=colours[rate],
            )  # fmt: skip
    if grpo:
        _draw_points(axes, grpo, "GRPO, each seed", COLOURS[0], "X")
    axes.axhline(0, color=GREY, linewidth=0.8)
    percent = mpl.ticker.PercentFormatter(1.0, decimals=0)
    axes.xaxis.set_major_formatter(percent)
    axes.yaxis.set_major_formatter(percent)
    matrix = example.rollout
    axes.set(
        xlabel=f"success on {matrix.train_tasks[0]}",
        ylabel="mean change of the other trained tasks",
        title=f"T = {example.temperature:g}, {trials(matrix, matrix.tasks)} a task, bars: 1 SE, "
        "numbers: iterations",
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _draw_points(axes: Axes, points: Sequence[Point], label: str, colour: str, style: str) -> None:
    axes.errorbar(
        [point.success for point in points],
        [point.change[0] for point in points],
        yerr=[point.change[1] for point in points],
        fmt=style, color=colour, label=label, linewidth=1.2, elinewidth=0.7, capsize=2,
        markersize=5,
    )  # fmt: skip
