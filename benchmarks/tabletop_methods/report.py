"""Writes the report from the committed results; what is missing is named."""

from __future__ import annotations

from pathlib import Path

from benchmarks.remarks import remarks
from benchmarks.tabletop_methods import sections
from benchmarks.tabletop_methods.cells import (
    CORE,
    NAME,
    PARTS,
    POLICIES,
    REPORTS,
    RESULTS,
    SEEDS,
    SINGLE,
    declare,
)
from benchmarks.tabletop_methods.targets import targets
from deploy.bench.cells import Cell
from deploy.bench.results import Result, read_cells
from deploy.bench.tables import cost_table, figures_table, matrix_table
from deploy.local.table import conditions_of

INTRODUCTION = """\
Every method learns the same three tabletop tasks from the same nano policy with the same budget
(`configs/budget/bench.yaml`): six iterations a task, 64 to 96 episodes each. Success on evaluation
init states that training never sees, n = 100 a cell and seed, in percent; differences in points.
Mean over three seeds ± standard error, Student's 95% interval in brackets; a method marked † has
fewer seeds, and of one seed the brackets hold the standard error of its trials. `docs/figures.md`
defines the figures, `docs/methods.md` the methods.

`python -m benchmarks.tabletop_methods run` runs what has no result, `report` writes this page. The
runs need two things beforehand: `make nano-baselines`, and `perennial demos collect
--suite=tabletop --out=runs/demos/tabletop --frames=20000 --seed=7`.
"""
COST = """\
A mean over the seeds, each cell as if it had been run alone; wall times are of a machine that did
other work besides. All {cells} cells of this report together, tuning among them and what cells
share counted once: {hours:.1f} h.
"""


def write_report() -> list[Path]:
    """Returns the files written. Raises ResultError for results made with other settings."""
    parts = {part: declare(part) for part in PARTS}
    results, _ = read_cells(RESULTS, [cell for part in parts.values() for cell in part])
    rows = {m: sections.of(results, m) for m in (*CORE, *SINGLE, *POLICIES)}
    lines = [
        "# Continual-learning methods on the tabletop",
        "",
        INTRODUCTION,
        *_missing(parts, results),
    ]
    if any(rows.values()):
        lines += _what_was_run(next(found[0] for found in rows.values() if found))
    lines += targets(results)
    if any(rows.values()):
        lines += ["## Success, forgetting and transfer", "", *figures_table(rows)]
        lines += _commands(parts, rows)
    lines += [*sections.ordering(results), *remarks(RESULTS)]
    pictures = _draw(results, rows)
    lines += [*sections.trade_off(results), *_picture(pictures, "trade-off")]
    for section in (
        sections.axes, sections.asynchronous, sections.scales, sections.hyperparameters,
    ):  # fmt: skip
        lines += section(results)
    lines += _picture(pictures, "curves", "## Learning curves")
    lines += ["## Success matrices", "", "The seeds' trials together.", ""]
    for method, found in rows.items():
        if found:
            lines += [f"### {method}", "", *matrix_table(found)]
    spent_s = sum(result.cost["own_wall_s"] for result in results.values())
    told = COST.format(cells=len(results), hours=spent_s / 3600)
    lines += ["## Cost", "", told, *cost_table(rows)]
    path = REPORTS / f"{NAME}.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [path, *pictures.values()]


def _missing(parts: dict[str, list[Cell]], results: sections.Results) -> list[str]:
    left = {
        part: [cell.name for cell in cells if cell.name not in results]
        for part, cells in parts.items()
    }
    told = [
        f"{len(names)} of {len(parts[part])} of part `{part}`"
        for part, names in left.items()
        if names
    ]
    return (
        [f"**Incomplete.** Cells that are not measured yet: {'; '.join(told)}.", ""] if told else []
    )


def _what_was_run(result: Result) -> list[str]:
    summary = result.summary
    settings = summary["settings"]
    versions = ", ".join(f"{name} {value}" for name, value in settings["versions"].items())
    return [
        f"- Trained in this order: {', '.join(summary['train_tasks'])}; held out: "
        f"{', '.join(summary['held_out_tasks'])}; model `{settings['model']}` unless a row says "
        "otherwise.",
        f"- Rates: {conditions_of(summary)}.",
        f"- Versions: {versions}; {result.machine['cores']} cores, {result.machine['processor']}.",
        "",
    ]


def _commands(parts: dict[str, list[Cell]], rows: dict[str, list[Result]]) -> list[str]:
    declared = {cell.name: cell for cells in parts.values() for cell in cells}
    firsts = [declared[f"{method}-seed{SEEDS[0]}"] for method, found in rows.items() if found]
    told = [f"perennial run {' '.join(cell.overrides)}" for cell in firsts]
    return ["Each row's first seed again, by one command:", "", "```sh", *told, "```", ""]


def _draw(results: sections.Results, rows: dict[str, list[Result]]) -> dict[str, Path]:
    from benchmarks.tabletop_methods.drawing import draw_trade_off
    from deploy.bench.drawing import draw_curves

    drawn: dict[str, Path] = {}
    trained = {method: found for method, found in rows.items() if any(r.curve for r in found)}
    if trained:
        drawn["curves"] = REPORTS / f"{NAME}-curves.png"
        draw_curves(trained, drawn["curves"])
    if runs := sections.trade_off_runs(results):
        drawn["trade-off"] = REPORTS / f"{NAME}-trade-off.png"
        draw_trade_off(runs, drawn["trade-off"])
    return drawn


def _picture(pictures: dict[str, Path], name: str, heading: str = "") -> list[str]:
    if name not in pictures:
        return []
    return [*([heading, ""] if heading else []), f"![{name}]({pictures[name].name})", ""]
