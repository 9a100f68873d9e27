"""The report's picture: how success in training went, a panel a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes

from deploy.bench.results import Result
from deploy.local.plots import COLOURS, GREY, plt, save_figure

DPI = 90  # a small file: it is committed
COLUMNS = 3
PANEL_INCHES = (3.6, 2.4)


def draw_curves(rows: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Success of the training episodes by iteration: each seed, and their mean.

    Dotted lines part the tasks; the dashed grey line is the first method's mean.
    """
    shown = {method: results for method, results in rows.items() if any(r.curve for r in results)}
    lines = ceil(len(shown) / COLUMNS)
    columns = min(COLUMNS, len(shown))
    figure, panels = plt.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines + 0.5),
    )  # fmt: skip
    reference, means = next(iter(shown), ""), {m: mean_curve(r) for m, r in shown.items()}
    for index, (method, results) in enumerate(shown.items()):
        axes = panels[index // COLUMNS][index % COLUMNS]
        colour = COLOURS[index % len(COLOURS)]
        for result in results:
            _draw(axes, rates(result), colour, "-", 0.7)
        if method != reference:
            _draw(axes, means[reference], GREY, "--", 1.0)
        _draw(axes, means[method], colour, "-", 2.0)
        for border in _borders(results[0]):
            axes.axvline(border + 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.set_title(f"{method}, {len(results)} seeds", fontsize=10)
    for axes in panels.flat[len(shown) :]:
        axes.axis("off")
    panels[0][0].set_ylim(0, 1.02)
    panels[0][0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    figure.supxlabel("iteration", fontsize=10)
    figure.supylabel("success of training episodes", fontsize=10)
    save_figure(figure, path, DPI)


def rates(result: Result) -> list[float]:
    """By iteration."""
    return [successes / trials for _, _, successes, trials in result.curve]


def mean_curve(results: Sequence[Result]) -> list[float]:
    """Mean over the seeds, as far as all of them went."""
    curves = [rates(result) for result in results if result.curve]
    return [fmean(at) for at in zip(*curves, strict=False)]


def _draw(axes: Axes, values: Sequence[float], colour: str, style: str, width: float) -> None:
    axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=style, linewidth=width)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _borders(result: Result) -> list[int]:
    """The iterations after which another task began."""
    lengths = [len(list(group)) for _, group in groupby(result.curve, key=lambda row: row[0])]
    return [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
