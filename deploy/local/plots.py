"""A run's plots: success over episodes, the success matrix, and episodes before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agent.durable import replacing
from deploy.local.progress import ROLLOUT
from deploy.local.records import Records
from deploy.local.statistics import Matrix, Rate
from deploy.local.summary import reported_matrix
from deploy.local.table import conditions_of

mpl.rcParams["text.parse_math"] = False  # a "$" in a name is a dollar

COLOURS = ("#0b7a75", "#d1495b", "#edae49", "#30638e", "#8d6a9f", "#5b8c5a", "#a0522d")
GREY = "#777777"
DPI = 130
WINDOW_EPISODES = 96  # of the moving success rate


def draw_plots(records: Records, summary: dict[str, Any]) -> list[Path]:
    """Writes the PNGs into RUN/plots and returns their paths."""
    folder = records.run_dir / "plots"
    folder.mkdir(exist_ok=True)
    matrix = reported_matrix(records)
    paths = [folder / "success.png", folder / "matrix.png"]
    draw_success(records, matrix, summary, paths[0])
    draw_matrix(matrix, summary, paths[1])
    strips = records.run_dir / "learner" / "filmstrips"
    before_after = folder / "before_after.png"
    if draw_before_after(matrix, strips, before_after):
        paths.append(before_after)
    return paths


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes the picture whole, or leaves the one before: a disk fills up, a process is killed."""
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format="png")
    plt.close(figure)


def training_ends(records: Records) -> list[dict[str, Any]]:
    """The workers' lines of counted training episodes, in the order in which the agent sealed them.

    Workers may run on machines whose clocks differ.
    """
    places = {episode_id: place for place, episode_id in enumerate(records.agent_rows)}
    return sorted(
        (e for e in records.ends if e["counted"] and e["phase"] == "train"),
        key=lambda end: places.get(end["episode_id"], len(places)),
    )


def draw_success(records: Records, matrix: Matrix, summary: dict[str, Any], path: Path) -> None:
    """Success per task over training episodes: moving rate with Wilson band, evaluations as dots.

    Dotted verticals part the tasks; ticks along the bottom are adapter swaps.
    """
    figure, axes = plt.subplots(figsize=(10, 5.2), layout="constrained")
    ends = training_ends(records)
    colours = {task: COLOURS[i % len(COLOURS)] for i, task in enumerate(matrix.tasks)}
    borders = _draw_training(axes, ends, matrix, colours)
    for task in matrix.tasks:
        _draw_evaluations(axes, matrix, task, borders, colours[task])
    for border in borders[1:-1]:
        axes.axvline(border, color=GREY, linestyle=":", linewidth=1)
    axes.plot(_swap_places(ends), [0.0] * len(_swap_places(ends)), "|", color=GREY, markersize=9)
    axes.set(
        xlabel="training episodes (ticks: adapter swaps)",
        ylabel="success rate",
        ylim=(-0.02, 1.02),
        title=f"{summary['suite']}, seed {summary['seed']}: {_change(summary)} over the trained "
        f"tasks\n{conditions_of(summary)}; bars and bands: 95% Wilson intervals",
    )
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save_figure(figure, path)


def _change(summary: dict[str, Any]) -> str:
    """`48% → 89%`, or the base alone where nothing was trained (`perennial eval`)."""
    averages = (summary["base_avg"], summary["final_avg"])
    return " → ".join(f"{100 * average:.0f}%" for average in averages if average is not None)


def _draw_training(
    axes: Axes, ends: list[dict[str, Any]], matrix: Matrix, colours: dict[str, str]
) -> list[int]:
    """Each task's moving success rate; returns where tasks begin and the last one ends."""
    borders = [0]
    for task in matrix.train_tasks:
        outcomes = [end["outcome"] == "success" for end in ends if end["task"] == task]
        start = borders[-1]
        borders.append(start + len(outcomes))
        places, rates = [], []
        for last in range(1, len(outcomes) + 1):
            window = outcomes[max(0, last - WINDOW_EPISODES) : last]
            if len(window) >= min(WINDOW_EPISODES, len(outcomes)) // 2:
                places.append(start + last)
                rates.append(Rate(sum(window), len(window)))
        low_high = [rate.interval() for rate in rates]
        axes.plot(places, [rate.value for rate in rates], color=colours[task], linewidth=1.8)
        axes.fill_between(
            places,
            [low for low, _ in low_high],
            [high for _, high in low_high],
            color=colours[task],
            alpha=0.18,
            linewidth=0,
        )
    return borders


def _draw_evaluations(
    axes: Axes, matrix: Matrix, task: str, borders: list[int], colour: str
) -> None:
    """A task's evaluations as dots with Wilson bars, joined; held-out tasks dashed."""
    is_held_out = task in matrix.held_out_tasks
    measured = [
        (borders[row], rate)
        for row in range(len(matrix.cells))
        if (rate := matrix.rate(row, task)).trials
    ]
    values = [rate.value for _, rate in measured]
    bars = [
        [rate.value - rate.interval()[0] for _, rate in measured],
        [rate.interval()[1] - rate.value for _, rate in measured],
    ]
    trials = sorted({rate.trials for _, rate in measured})
    n = "–".join(str(count) for count in dict.fromkeys((*trials[:1], *trials[-1:])))
    axes.errorbar(
        [place for place, _ in measured],
        values,
        yerr=bars,
        color=colour,
        marker="s" if is_held_out else "o",
        linestyle="--" if is_held_out else "-",
        linewidth=0.8,
        capsize=3,
        label=f"{task}{' (held out)' if is_held_out else ''}, n = {n}",
    )


def _swap_places(ends: list[dict[str, Any]]) -> list[int]:
    """Training episodes after which the version changed."""
    versions = [end["version"] for end in ends]
    return [i for i in range(1, len(versions)) if versions[i] != versions[i - 1]]


def draw_matrix(matrix: Matrix, summary: dict[str, Any], path: Path) -> None:
    """The success matrix as a heat map, counts in the cells, own tasks framed."""
    rows = ["base", *(f"after {task}" for task in matrix.train_tasks)]
    figure, axes = plt.subplots(
        figsize=(2.2 + 1.5 * len(matrix.tasks), 1.6 + 0.75 * len(rows)), layout="constrained"
    )
    values = [
        [rate.value if rate.trials else float("nan") for rate in cells] for cells in matrix.cells
    ]
    image = axes.imshow(values, cmap="YlGn", vmin=0, vmax=1, aspect="auto")
    for row, cells in enumerate(matrix.cells):
        for column, rate in enumerate(cells):
            text = (
                f"{100 * rate.value:.0f}%\n{rate.successes}/{rate.trials}" if rate.trials else "–"
            )
            colour = "white" if rate.value > 0.7 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    for row, task in enumerate(matrix.train_tasks, start=1):
        frame = (matrix.tasks.index(task) - 0.5, row - 0.5)
        axes.add_patch(plt.Rectangle(frame, 1, 1, fill=False, edgecolor="black", linewidth=2))
    labels = [f"{t}\n(held out)" if t in matrix.held_out_tasks else t for t in matrix.tasks]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(f"success matrix\n{conditions_of(summary)}")
    figure.colorbar(image, ax=axes, format=mpl.ticker.PercentFormatter(1.0, decimals=0))
    save_figure(figure, path)


def draw_before_after(matrix: Matrix, strips: Path, path: Path) -> bool:
    """One evaluation episode per task from the base and from the last adapter, side by side.

    Both start from the same init state. Returns False, and writes nothing, without contact sheets.
    """
    last = len(matrix.cells) - 1
    pairs = [(task, [strips / f"{row}_{task}.png" for row in (0, last)]) for task in matrix.tasks]
    pairs = [(task, files) for task, files in pairs if all(file.is_file() for file in files)]
    if not pairs:
        return False
    figure, axes = plt.subplots(
        len(pairs), 2, figsize=(16, 2.6 * len(pairs)), layout="constrained", squeeze=False
    )
    for row, (task, files) in enumerate(pairs):
        for column, (file, when) in enumerate(zip(files, ("before", "after"), strict=True)):
            axes[row][column].imshow(plt.imread(file))
            axes[row][column].set_title(f"{task}, {when} ({ROLLOUT})", fontsize=10, loc="left")
            axes[row][column].axis("off")
    save_figure(figure, path)
    return True
