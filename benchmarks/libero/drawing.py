"""Curves of training success, one panel a run."""

from __future__ import annotations

from pathlib import Path

from deploy.local.records import Records

SMOOTHED = 3  # iterations


def draw_curves(runs: list[Records], path: Path) -> None:
    """Success of each iteration's training episodes, task by task, over episodes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(runs), figsize=(6 * len(runs), 3.6), squeeze=False, sharey=True
    )
    for axis, records in zip(axes[0], runs, strict=True):
        names = task_names(records)
        for task, points in training_curves(records).items():
            episodes, rates = zip(*points, strict=True)
            smooth = [
                sum(rates[max(0, i - SMOOTHED + 1) : i + 1]) / min(i + 1, SMOOTHED)
                for i in range(len(rates))
            ]
            (line,) = axis.plot(episodes, smooth, label=names[task])
            axis.plot(episodes, rates, ".", alpha=0.4, color=line.get_color())
        axis.set(xlabel="training episodes", title=f"seed {records.results['seed']}", ylim=(0, 1))
        axis.legend(loc="lower right")
    axes[0][0].set_ylabel("success, sampled")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def task_names(records: Records) -> dict[str, str]:
    """Slug -> a short name, by its place in the suite, of the trained and the held-out tasks."""
    places = [task["slug"] for task in records.config["suite"]["tasks"]]
    slugs = (*records.results["train_tasks"], *records.results["held_out_tasks"])
    return {slug: f"task {places.index(slug)}" for slug in slugs}


def training_curves(records: Records) -> dict[str, list[tuple[int, float]]]:
    """Task -> (training episodes so far, success of the latest slots) in the order of time."""
    ends = sorted(
        (end for end in records.ends if end["phase"] == "train" and end["counted"]),
        key=lambda end: end["unix_s"],
    )
    slots: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for number, end in enumerate(ends, 1):
        _, _, iteration, *_ = end["slot_id"].split("/")
        key = (end["task"], iteration)
        slots.setdefault(key, []).append((number, end["outcome"] == "success"))
    curves: dict[str, list[tuple[int, float]]] = {}
    for (task, _), found in slots.items():
        rate = sum(success for _, success in found) / len(found)
        curves.setdefault(task, []).append((found[-1][0], rate))
    return curves
