"""Supervised fine-tuning beside GRPO: what the same success on one task costs the others."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tabletop_grpo import markdown
from benchmarks.tabletop_grpo.cells import (
    SEEDS,
    SFT_ALONE,
    SFT_LENGTHS,
    SFT_RATES,
    grpo_name,
    sft_alone_name,
    sft_name,
)
from benchmarks.tabletop_grpo.figures import (
    Point,
    change,
    change_at,
    combine,
    judge_sft_drop,
)
from benchmarks.tabletop_grpo.sections import Results, seeds_of
from deploy.bench.results import Result
from deploy.bench.tables import table
from deploy.local.seeds import over_seeds


def first_task_point(result: Result, length: int, train_tasks: list[str]) -> Point | None:
    """Where one run stands after its first task; None if a cell was not measured."""
    matrix = result.rollout
    moved = change(matrix, 1, train_tasks[1:])
    held_out = change(matrix, 1, [task for task in matrix.tasks if task not in train_tasks])
    new = matrix.average(1, train_tasks[:1])
    return None if moved is None or new is None else Point(length, new[0], moved, held_out)


def sft_curve(results: Results, rate: str, train_tasks: list[str]) -> list[Point]:
    """From the base policy over the lengths that were measured."""
    found = [
        (length, results[name])
        for length in SFT_LENGTHS
        if (name := sft_name(rate, length)) in results
    ]
    if not found:
        return []
    base = found[0][1].rollout.rate(0, train_tasks[0]).value
    reached = [first_task_point(result, length, train_tasks) for length, result in found]
    return [Point(0, base, (0.0, 0.0)), *(point for point in reached if point is not None)]


def grpo_points(results: Results, train_tasks: list[str]) -> list[Point]:
    """Every seed after its first task."""
    reached = [first_task_point(result, 0, train_tasks) for result in seeds_of(results)]
    return [point for point in reached if point is not None]


def supervised(results: Results, train_tasks: list[str]) -> list[str]:
    """Supervised fine-tuning on the first task: what it costs the others, beside GRPO."""
    new_task = train_tasks[0]
    names = [sft_name(rate, length) for rate in SFT_RATES for length in SFT_LENGTHS]
    absent = [name for name in names if name not in results]
    curves = {rate: curve for rate in SFT_RATES if (curve := sft_curve(results, rate, train_tasks))}
    lines = [f"## Supervised fine-tuning on {new_task}", ""]
    if not curves:
        return [*lines, *markdown.missing(absent)]
    found = next(results[name] for name in names if name in results)
    lines += [
        "The same adapter and optimiser, taught the scripted expert's demonstrations of the new "
        "task instead of its own episodes. Change of the others: mean over "
        f"{_named(train_tasks[1:])}, the other tasks of the sequence, in points; the held-out "
        "tasks, one of which is the same skill with another cube and target, stand beside it. "
        f"T = {found.temperature:g}. "
        f"{markdown.trials_behind(found)}",
        "",
        *table(
            [
                "learning rate",
                "iterations",
                f"{new_task}, %",
                "change of the others",
                "of the held-out",
            ],
            [
                (
                    rate,
                    str(p.length),
                    f"{100 * p.success:.0f}",
                    *map(markdown.points, (p.change, p.held_out)),
                )
                for rate, curve in curves.items()
                for p in curve
            ],
        ),
        *_equal_success(results, curves, train_tasks),
    ]
    return lines + (markdown.missing(absent) if absent else [])


def _named(tasks: list[str]) -> str:
    return " and ".join(tasks)


def fine_tuning_check(results: Results, train_tasks: list[str]) -> list[str]:
    """What supervised fine-tuning on each task alone costs the other trained ones."""
    rate, length = SFT_ALONE
    rows, judged, absent, found = [], [], [], None
    for index, task in enumerate(train_tasks):
        name = sft_alone_name(index, task)
        if name not in results:
            absent.append(name)
            continue
        found = results[name]
        moved = {other: change(found.rollout, 1, [other]) for other in train_tasks}
        others = change(found.rollout, 1, [other for other in train_tasks if other != task])
        rows.append([task, *map(markdown.points, moved.values()), markdown.points(others)])
        if others is not None:
            judged.append(judge_sft_drop(f"fine-tuning on {task}", others))
    lines = ["## Does fine-tuning on one task cost the others?", ""]
    if found is not None:
        lines += [
            f"{length} iterations at learning rate {rate} on the demonstrations of one task: "
            "change of every trained task, in points; the last column is the mean over the others. "
            f"T = {found.temperature:g}. {markdown.trials_behind(found)}",
            "",
            *table(["taught alone", *train_tasks, "others"], rows),
            *markdown.verdicts(judged),
        ]
    return lines + (markdown.missing(absent) if absent else [])


def _equal_success(
    results: Results, curves: Mapping[str, list[Point]], train_tasks: list[str]
) -> list[str]:
    new_task, grpo = train_tasks[0], grpo_points(results, train_tasks)
    if not grpo:
        return markdown.missing([grpo_name(seed) for seed in SEEDS])
    reached = sum(point.success for point in grpo) / len(grpo)
    moved = over_seeds([point.change for point in grpo])
    assert moved is not None, "a point has its change"
    rows = [("GRPO", f"{100 * reached:.0f}", markdown.points((moved.mean, moved.se)), "")]
    for rate, curve in curves.items():
        at = change_at(curve, reached)
        if at is None:
            best = max(curve, key=lambda point: point.success)
            text = f"never reached: {100 * best.success:.0f}% at best, after {best.length} it."
            rows.append((f"SFT, {rate}", text, markdown.points(best.change), "–"))
        else:
            more = combine((1.0, at), (-1.0, (moved.mean, moved.se)))
            rows.append(
                (f"SFT, {rate}", f"{100 * reached:.0f}", markdown.points(at), markdown.points(more))
            )
    return [
        f"At equal success on {new_task}: where each learning rate first reaches what GRPO reached "
        f"after its first task (mean of {len(grpo)} seeds), interpolated between lengths.",
        "",
        *table(["method", f"{new_task}, %", "change of the others", "beyond GRPO"], rows),
    ]
