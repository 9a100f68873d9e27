"""Supervised fine-tuning beside GRPO: what the same success on one task costs the others."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tabletop_grpo import markdown
from benchmarks.tabletop_grpo.cells import SEEDS, SFT_LENGTHS, SFT_RATES, grpo_name, sft_name
from benchmarks.tabletop_grpo.figures import (
    Point,
    change,
    change_at,
    combine,
    judge_sft_drop,
    over_seeds,
)
from benchmarks.tabletop_grpo.results import Result
from benchmarks.tabletop_grpo.sections import Results, seeds_of


def new_task_point(result: Result, length: int, new_task: str) -> Point | None:
    """Where one run stands after its first task; None if a cell was not measured."""
    matrix = result.rollout
    moved = change(matrix, 1, [task for task in matrix.tasks if task != new_task])
    new = matrix.average(1, [new_task])
    return None if moved is None or new is None else Point(length, new[0], moved)


def sft_curve(results: Results, rate: str, new_task: str) -> list[Point]:
    """From the base policy over the lengths that were measured."""
    found = [
        (length, results[name])
        for length in SFT_LENGTHS
        if (name := sft_name(rate, length)) in results
    ]
    if not found:
        return []
    base = found[0][1].rollout.rate(0, new_task).value
    reached = [new_task_point(result, length, new_task) for length, result in found]
    return [Point(0, base, (0.0, 0.0)), *(point for point in reached if point is not None)]


def grpo_points(results: Results, new_task: str) -> list[Point]:
    """Every seed after its first task."""
    reached = [new_task_point(result, 0, new_task) for result in seeds_of(results)]
    return [point for point in reached if point is not None]


def supervised(results: Results, new_task: str) -> list[str]:
    """Supervised fine-tuning on one task: what it costs the others, beside GRPO."""
    names = [sft_name(rate, length) for rate in SFT_RATES for length in SFT_LENGTHS]
    absent = [name for name in names if name not in results]
    curves = {rate: curve for rate in SFT_RATES if (curve := sft_curve(results, rate, new_task))}
    lines = [f"## Supervised fine-tuning on {new_task}", ""]
    if not curves:
        return [*lines, *markdown.missing(absent)]
    found = next(results[name] for name in names if name in results)
    lines += [
        "The same adapter and optimiser, taught the scripted expert's demonstrations of the new "
        "task instead of its own episodes. Change of the others: mean over every other task, "
        f"trained or held out, in points. T = {found.temperature:g}. "
        f"{markdown.trials_behind(found)}",
        "",
        *markdown.table(
            ["learning rate", "iterations", f"{new_task}, %", "change of the others"],
            [
                (rate, str(p.length), f"{100 * p.success:.0f}", markdown.points(p.change))
                for rate, curve in curves.items()
                for p in curve
            ],
        ),
        *_sft_drop(curves),
        *_equal_success(results, curves, new_task),
    ]
    return lines + (markdown.missing(absent) if absent else [])


def _sft_drop(curves: Mapping[str, list[Point]]) -> list[str]:
    judged = [
        judge_sft_drop(f"learning rate {rate}, {curve[-1].length} iterations", curve[-1].change)
        for rate, curve in curves.items()
    ]
    return ["What the longest fine-tuning costs the others:", "", *markdown.verdicts(judged)]


def _equal_success(results: Results, curves: Mapping[str, list[Point]], new_task: str) -> list[str]:
    grpo = grpo_points(results, new_task)
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
        *markdown.table(["method", f"{new_task}, %", "change of the others", "beyond GRPO"], rows),
    ]
