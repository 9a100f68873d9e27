"""Writes the report and its pictures from the result files that exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.remarks import remarks
from benchmarks.tabletop_grpo import markdown
from benchmarks.tabletop_grpo.cells import CONTROLS, SFT_RATES, Cell, declare_cells
from benchmarks.tabletop_grpo.drawing import draw_curves, draw_trade_off
from benchmarks.tabletop_grpo.sections import (
    controls,
    matrices,
    seeds_of,
    success,
    suite_check,
    targets,
)
from benchmarks.tabletop_grpo.supervised import (
    fine_tuning_check,
    grpo_points,
    sft_curve,
    supervised,
)
from deploy.bench.results import PHASES, Result, read_results
from deploy.bench.tables import table

NAME = "tabletop-grpo"
INTRODUCTION = """\
# GRPO on the tabletop suite, and its controls

Three tasks learned one after another on one adapter by GRPO from the nano policy's own episodes,
beside runs that must not improve and beside supervised fine-tuning. The cells and their seeds are
declared in `benchmarks/tabletop_grpo/cells.py`; one that has no result is named as missing.

`python -m benchmarks.tabletop_grpo run` runs the cells that have no result yet, each a
`perennial run`, and goes on after any interruption; `python -m benchmarks.tabletop_grpo report`
writes this file from the results in `tabletop-grpo/`. Success is measured on evaluation init states
that training never sees, the same states and noise before and after. Gains and losses are in points
of percent; T is the sampling temperature, n the trials.
"""


def write_report(
    train_tasks: list[str], held_out_tasks: list[str], results_dir: Path, reports_dir: Path
) -> list[Path]:
    """Returns the files written. Raises ResultError for a file that is no result."""
    cells = declare_cells(train_tasks, held_out_tasks)
    results, absent = read_results(results_dir, [cell.name for cell in cells])
    reports_dir.mkdir(parents=True, exist_ok=True)
    pictures = draw_pictures(results, train_tasks, reports_dir)
    lines = [
        INTRODUCTION,
        *(["**Incomplete.**", *markdown.missing(absent)] if absent else []),
        *targets(results),
        *remarks(results_dir),
        *what_was_run(results),
        *success(results),
        *matrices(results),
        *_picture("Learning curves", "curves", pictures),
        *controls(results),
        *suite_check(results, train_tasks, held_out_tasks),
        *fine_tuning_check(results, train_tasks),
        *supervised(results, train_tasks),
        *_picture("", "sft", pictures),
        *cost(cells, results),
    ]
    path = reports_dir / f"{NAME}.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [path, *pictures.values()]


def draw_pictures(
    results: Mapping[str, Result], train_tasks: list[str], folder: Path
) -> dict[str, Path]:
    """The pictures that there are results for, by what they show."""
    drawn = {}
    seeds = seeds_of(results)
    held = [results[name] for name in CONTROLS if name in results]
    if any(result.curve for result in (*seeds, *held)):
        drawn["curves"] = folder / f"{NAME}-curves.png"
        draw_curves(seeds, held, drawn["curves"])
    curves = {rate: c for rate in SFT_RATES if (c := sft_curve(results, rate, train_tasks))}
    if curves:
        drawn["sft"] = folder / f"{NAME}-sft.png"
        example = next(result for name, result in results.items() if name.startswith("sft-"))
        draw_trade_off(curves, grpo_points(results, train_tasks), example, drawn["sft"])
    return drawn


def what_was_run(results: Mapping[str, Result]) -> list[str]:
    """Settings, versions and machines, as the runs themselves recorded them."""
    lines = ["## What was run", ""]
    if not results:
        return [*lines, "Nothing yet.", ""]
    example = next(iter(seeds_of(results)), next(iter(results.values())))
    settings = example.summary["settings"]
    algorithm, evaluation = settings["algorithm"], settings["evaluation"]
    tasks = example.summary["train_tasks"]
    machines = sorted({_machine(result.machine) for result in results.values()})
    return [
        *lines,
        f"- Suite `{example.summary['suite']}`, model `{settings['model']}`; trained in this order:"
        f" {', '.join(tasks)}; held out: {', '.join(example.summary['held_out_tasks'])}.",
        f"- Budget (`configs/budget/report.yaml`): {_flat(algorithm)}.",
        f"- Evaluation: {_flat(evaluation)}; T = {settings['temperature']:g} and greedy.",
        f"- Versions: {_flat(settings['versions'])}.",
        f"- Machine: {'; '.join(machines)}.",
        "",
    ]


def cost(cells: list[Cell], results: Mapping[str, Result]) -> list[str]:
    """What each cell changed and cost."""
    rows = []
    for cell in cells:
        if cell.name not in results:
            rows.append((f"`{cell.name}`", *["–"] * 4, "not run yet"))
            continue
        result = results[cell.name]
        episodes = result.summary["episodes"]
        rows.append(
            (
                f"`{cell.name}`",
                f"{result.summary['wall_s'] / 60:.1f}",
                str(episodes["collected"]),
                str(episodes["eval"]),
                " / ".join(f"{result.time_s[phase] / 60:.1f}" for phase in PHASES),
                f"`{' '.join(result.overrides)}`",
            )
        )
    head = ("cell", "wall, min", "episodes", "of them eval", f"{' / '.join(PHASES)}, min",
            "settings")  # fmt: skip
    return [
        "## Cells and their cost",
        "",
        "Iterations wait for episodes, learn from them and publish; the rest of the wall time is "
        "evaluation.",
        "",
        *table(head, rows),
    ]


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores, {machine['processor']}"


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _picture(title: str, name: str, pictures: Mapping[str, Path]) -> list[str]:
    if name not in pictures:
        return []
    heading = [f"## {title}", ""] if title else []
    return [*heading, f"![{name}]({pictures[name].name})", ""]
