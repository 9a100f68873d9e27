"""The report's sections beside the tables that every comparison has."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.tabletop_methods.cells import (
    AXES,
    CORE,
    MEASURED_ON_AXES,
    SCALES,
    SEEDS,
    TRIED,
    chosen,
    declare,
    name_with,
)
from benchmarks.tabletop_methods.choice import choices
from benchmarks.tabletop_methods.targets import Results
from deploy.bench.results import Result
from deploy.bench.tables import UNKNOWN, over, table
from deploy.local.statistics import Figure

# AVG and NBT of arXiv 2603.11653, spatial suite, in percent and points: Table 1, and its ablations
# (SFT, full fine-tuning, CNN) from Table 3. Its DER is by its code what is der-base here. None: not
# in the sources that we have.
PAPER: dict[str, tuple[float | None, float | None]] = {
    "multitask": (85.8, None),
    "sequential": (81.2, 0.3),
    "der-base": (73.4, 4.7),
    "slca": (69.9, -0.6),
    "ewc": (66.1, 0.7),
    "retain": (66.0, None),
    "sft": (29.9, 78.7),
    "full": (7.3, 40.9),
    "cnn": (13.1, 11.4),
    "dwe": (None, 0.0),
}


def of(results: Results, method: str) -> list[Result]:
    """The finished seeds of a method."""
    names = [f"{method}-seed{seed}" for seed in SEEDS]
    return [results[name] for name in names if name in results]


def asynchronous(results: Results) -> list[str]:
    """Acting while learning beside acting and learning in turns."""
    rows = []
    for cell in declare("pace"):
        if cell.name in results:
            result = results[cell.name]
            figures, counts = result.rollout.figures(), result.summary["episodes"]
            rows.append(
                [
                    f"`{cell.name}`",
                    str(counts["trained"] + counts["filtered"]),
                    over([figures["base_avg"]]),
                    over([figures["final_avg"]]),
                    *(f"{result.time_s[part]:.0f}" for part in ("wait", "learn", "publish")),
                    f"{sum(result.time_s.values()) / 60:.1f}",
                ]
            )
    head = ["run", "training episodes", "before", "after", "waited, s", "learned, s",
            "published, s", "learning in all, min"]  # fmt: skip
    return [
        "## Asynchronous and synchronous",
        "",
        "At equal episodes, no group redrawn. Unpaced: the whole suite, as fast as simulators go. "
        "At 20 Hz: one task, `stack_green_red`, ten updates, bodies in a robot's time.",
        "",
        *(table(head, rows) if rows else _none()),
    ]


def ordering(results: Results) -> list[str]:
    """The paper's results beside ours."""
    rows = []
    for method, (average, loss) in PAPER.items():
        found = of(results, method)
        figures = [result.rollout.figures() for result in found]
        rows.append(
            [
                method,
                UNKNOWN if average is None else f"{average:.1f}",
                over([each["final_avg"] for each in figures]) if found else UNKNOWN,
                UNKNOWN if loss is None else f"{loss:+.1f}",
                over([each["nbt_final"] for each in figures], "+") if found else UNKNOWN,
            ]
        )
    head = ["method", "paper: final", "here: final", "paper: NBT", "here: NBT (final)"]
    return [
        "## Beside the paper",
        "",
        "arXiv 2603.11653, OpenVLA-OFT 7B, LIBERO-spatial, five tasks, from 56.9%: other tasks and "
        "another policy, so the order and the signs compare, not the numbers. SFT, full "
        "fine-tuning and the CNN are its ablations.",
        "",
        *table(head, rows),
    ]


def trade_off(results: Results) -> list[str]:
    """Gain beside forgetting, over the values of each method's setting."""
    rows = []
    for run in trade_off_runs(results):
        lost = run.result.rollout.figures()["nbt_final"]
        setting = TRIED[run.method][0].rpartition(".")[2]
        rows.append([run.method, f"{setting} {run.value}",
                     over([learned(run.result)], "+"), over([lost], "+")])  # fmt: skip
    head = ["method", "setting", "learned: S(j, j) - S(0, j)", "forgotten: NBT (final)"]
    return [
        "## Forgetting at matched success",
        "",
        "A method that learns little has little to forget: what counts is how much is forgotten "
        "for what was learned, over learning rates and over a method's own weight. Seed 0.",
        "",
        *(table(head, rows) if rows else _none()),
    ]


class Traded(NamedTuple):
    """A run of a method with one value of the setting that was tuned."""

    method: str
    value: str
    result: Result


def trade_off_runs(results: Results) -> list[Traded]:
    """Seed 0 of the core methods and the runs with other values, ascending within a method."""
    found = []
    for method in CORE:
        for value in TRIED[method][1]:
            name = name_with(method, value)
            if method != "multitask" and name in results:
                found.append(Traded(method, value, results[name]))
    return found


def learned(result: Result) -> Figure:
    """Mean over the trained tasks of S(j, j) - S(0, j): what each gained when it was learned."""
    matrix = result.rollout
    own = [matrix.rate(row, task) for row, task in enumerate(matrix.train_tasks, start=1)]
    base = [matrix.rate(0, task) for task in matrix.train_tasks]
    if any(rate.trials == 0 for rate in (*own, *base)):
        return None
    value = sum(a.value - b.value for a, b in zip(own, base, strict=True)) / len(own)
    return value, sum(rate.variance for rate in (*own, *base)) ** 0.5 / len(own)


def axes(results: Results) -> list[str]:
    """Success of the last adapters of seed 0 where something else is changed."""
    rows = []
    for axis in AXES:
        found = [results.get(f"axis-{axis}-{method}") for method in MEASURED_ON_AXES]
        if any(found):
            rows.append([axis, *(_trained(result) for result in found)])
    if rows:
        rows.insert(0, ["none", *(_unchanged(results, method) for method in MEASURED_ON_AXES)])
    head = ["axis", *MEASURED_ON_AXES]
    return [
        "## Generalisation",
        "",
        "Mean success over the trained tasks, seed 0's last adapter, n = 50 a task, with one thing "
        "changed at its standard strength (`docs/perturbations.md`). The same episodes for all. "
        "Nothing changed: the run's own evaluation, n = 100 a task.",
        "",
        *(table(head, rows) if rows else _none()),
    ]


def _unchanged(results: Results, method: str) -> str:
    """Seed 0's evaluation; the base's is that of any run."""
    result = results.get(f"{'sequential' if method == 'base' else method}-seed0")
    figure = "base_avg" if method == "base" else "final_avg"
    return over([result.rollout.figures()[figure]]) if result else UNKNOWN


def _trained(result: Result | None) -> str:
    if result is None:
        return UNKNOWN
    return over([result.rollout.average(0, result.rollout.train_tasks)])


def scales(results: Results) -> list[str]:
    """The last adapter of sequential fine-tuning at part of its strength."""
    rows = [
        [scale, _trained(results[f"scale-{scale}"])]
        for scale in SCALES
        if f"scale-{scale}" in results
    ]
    return [
        "## The adapter at part of its strength",
        "",
        "Sequential fine-tuning, seed 0, every update multiplied; 0 is the base, 1 the run's end.",
        "",
        *(table(["scale", "trained tasks"], rows) if rows else _none()),
    ]


def hyperparameters(results: Results) -> list[str]:
    """What was tried on other tasks, and what was chosen."""
    rows = [
        [
            choice.method,
            choice.setting,
            ", ".join(
                f"{value}: {UNKNOWN if rate is None else f'{100 * rate:.1f}'}"
                for value, rate in choice.finals.items()
            ),
            " ".join(chosen(choice.method)),
        ]
        for choice in choices(dict(results))
    ]
    return [
        "## How hyperparameters were chosen",
        "",
        "On two tasks outside the suite (`pick_blue_tray`, `stack_red_blue`), four iterations "
        "each, one seed, n = 200 a task: the value with the highest final success over both. "
        "Three values a method, and a fourth beyond an end of the range if the best of three lay "
        "there, but none above RETAIN's 1, which keeps every task's update whole, nor above SLCA's "
        "0.5: at 1 that is sequential fine-tuning. The rest is GRPO's.",
        "",
        *table(["method", "setting", "final success, %", "used"], rows),
    ]


def _none() -> list[str]:
    return ["Not measured yet.", ""]
