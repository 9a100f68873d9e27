"""Forgetting beside what was learned, a point a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tabletop_methods.sections import Traded, learned
from deploy.local.plots import COLOURS, GREY, plt

DPI = 90  # a small file: it is committed


def draw_trade_off(runs: Sequence[Traded], path: Path) -> None:
    """Runs of one method are joined by a line, in the order of its setting."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    points: dict[str, list[tuple[float, float, str]]] = {}
    for method, value, result in runs:
        gained, lost = learned(result), result.rollout.figures()["nbt_final"]
        if gained is not None and lost is not None:
            points.setdefault(method, []).append((100 * gained[0], 100 * lost[0], value))
    for index, (method, found) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        xs, ys, _ = zip(*found, strict=True)
        axes.plot(xs, ys, "o-", color=colour, label=method, linewidth=1)
        for x, y, value in found:
            axes.annotate(value, (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="learned: mean of S(j, j) - S(0, j), points", ylabel="forgotten: NBT, points")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
