"""The sections of the report that compare cells; each is a list of lines of Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tabletop_grpo import markdown
from benchmarks.tabletop_grpo.cells import (
    CONTROLS,
    SEEDS,
    alone_name,
    grpo_name,
)
from benchmarks.tabletop_grpo.figures import (
    GAIN_TARGET,
    GREEDY_GAIN_TARGET,
    Verdict,
    change,
    judge_alone,
    judge_control,
    judge_gain,
    judge_nbt,
    judge_wall,
    judge_zero_shot,
)
from deploy.bench.results import Result
from deploy.bench.tables import table
from deploy.local.seeds import over_seeds
from deploy.local.statistics import Figure

Results = Mapping[str, Result]
COLUMNS = ("base", "final", "gain", "base, greedy", "final, greedy", "gain, greedy", "NBT",
           "held out, base", "held out, final", "held out, change")  # fmt: skip


def seeds_of(results: Results) -> list[Result]:
    """GRPO on all tasks, in order of seed."""
    return [results[name] for seed in SEEDS if (name := grpo_name(seed)) in results]


def figures_of(result: Result) -> dict[str, Figure]:
    """One run's figures, by `COLUMNS`."""
    rollout, greedy = result.rollout.figures(), result.greedy.figures()
    held_out = result.rollout.held_out_tasks
    last = len(result.rollout.train_tasks)
    return dict(
        zip(
            COLUMNS,
            (
                *(rollout["base_avg"], rollout["final_avg"], rollout["gain"]),
                *(greedy["base_avg"], greedy["final_avg"], greedy["gain"]),
                *(rollout["nbt_final"], rollout["base_zero_shot"], rollout["final_zero_shot"]),
                change(result.rollout, last, held_out),
            ),
            strict=True,
        )
    )


def targets(results: Results) -> list[str]:
    """The verdicts on GRPO, over the seeds that there are."""
    seeds = seeds_of(results)
    lines = ["## Targets", ""]
    if not seeds:
        return [*lines, *markdown.missing([grpo_name(seed) for seed in SEEDS])]
    means = {name: over_seeds([figures_of(r)[name] for r in seeds]) for name in COLUMNS}
    judged: list[Verdict] = []
    if gain := means["gain"]:
        judged.append(judge_gain(f"gain, T = {seeds[0].temperature:g}", gain, GAIN_TARGET))
    if greedy := means["gain, greedy"]:
        judged.append(judge_gain("gain, greedy (T = 0)", greedy, GREEDY_GAIN_TARGET))
    if nbt := means["NBT"]:
        judged.append(judge_nbt(nbt))
    if moved := means["held out, change"]:
        judged.append(judge_zero_shot(moved))
    judged.append(judge_wall([result.summary["wall_s"] for result in seeds]))
    return [
        *lines,
        f"Mean ± SE over {len(seeds)} of {len(SEEDS)} seeds, in points; NBT and the held-out "
        f"tasks at T = {seeds[0].temperature:g}. {markdown.trials_behind(seeds[0])}",
        "",
        *markdown.verdicts(judged),
    ]


def success(results: Results) -> list[str]:
    """Every figure by seed, and over seeds."""
    seeds = seeds_of(results)
    lines = ["## Success by seed", ""]
    if not seeds:
        return [*lines, *markdown.missing([grpo_name(seed) for seed in SEEDS])]
    by_seed = [figures_of(result) for result in seeds]
    rows = []
    for name in COLUMNS:
        is_difference = "gain" in name or "change" in name or name == "NBT"
        show = markdown.points if is_difference else markdown.percent
        mean = over_seeds([figures[name] for figures in by_seed])
        cells = [show(figures[name]) for figures in by_seed]
        rows.append((name, *cells, markdown.seed_mean(mean, "+" if is_difference else "")))
    counts = [
        (what, *(str(result.summary[where][what]) for result in seeds), "")
        for where, what in (
            ("episodes", "lost"),
            ("episodes", "duplicated"),
            ("swaps", "dropped_requests"),
        )
    ]
    return [
        *lines,
        f"Percent and points, ± binomial SE, at T = {seeds[0].temperature:g} unless greedy "
        f"(T = 0). {markdown.trials_behind(seeds[0])} The last column is the mean ± SE over seeds.",
        "",
        *table(
            ["", *(f"seed {result.summary['seed']}" for result in seeds), "mean"], rows + counts
        ),
    ]


def matrices(results: Results) -> list[str]:
    """Success after every task, a table a seed."""
    seeds = seeds_of(results)
    lines = ["## Success matrices", ""] if seeds else []
    for result in seeds:
        matrix = result.rollout
        own = ["", *matrix.train_tasks]
        names = ["base", *(f"after {task}" for task in matrix.train_tasks)]
        rows = [
            [name]
            + [
                f"**{text}**" if task == own[row] else text
                for task in matrix.tasks
                if (text := markdown.rate(matrix.rate(row, task)))
            ]
            for row, name in enumerate(names)
        ]
        for row in (0, len(matrix.train_tasks)):
            cells = [markdown.rate(result.greedy.rate(row, task)) for task in matrix.tasks]
            rows.append([f"{names[row]}, greedy", *cells])
        heads = [f"{t} (held out)" if t in matrix.held_out_tasks else t for t in matrix.tasks]
        lines += [f"Seed {result.summary['seed']}, T = {result.temperature:g}; greedy: T = 0.", ""]
        lines += table(["", *heads], rows)
    return lines


def controls(results: Results) -> list[str]:
    """Runs that must not improve, beside the one they differ from in one setting."""
    names = [grpo_name(0), *CONTROLS]
    found = [results[name] for name in names if name in results]
    lines = ["## Controls", ""]
    if found:
        rows = [
            (
                result.name,
                *(markdown.percent(figures_of(result)[name]) for name in COLUMNS[:2]),
                markdown.points(figures_of(result)["gain"]),
                markdown.points(figures_of(result)["gain, greedy"]),
            )
            for result in found
        ]
        lines += [
            "`lr0`: learning rate 0. `permuted`: outcomes permuted within each group. All else as "
            f"in `{grpo_name(0)}`. T = {found[0].temperature:g} unless greedy. "
            f"{markdown.trials_behind(found[0])}",
            "",
            *table(["cell", "base", "final", "gain", "gain, greedy"], rows),
        ]
    judged = [
        judge_control(name, gain)
        for name in CONTROLS
        if name in results and (gain := results[name].rollout.gain())
    ]
    if judged:
        lines += ["Neither may improve beyond noise:", "", *markdown.verdicts(judged)]
    absent = [name for name in names if name not in results]
    return lines + (markdown.missing(absent) if absent else [])


def suite_check(results: Results, train_tasks: list[str], held_out_tasks: list[str]) -> list[str]:
    """What training one task alone gives the others."""
    tasks = [*train_tasks, *held_out_tasks]
    rows, judged, absent, found = [], [], [], None
    for index, task in enumerate(train_tasks):
        name = grpo_name(0) if index == 0 else alone_name(task)
        if name not in results:
            absent.append(name)
            continue
        found = results[name]
        moved = {other: change(found.rollout, 1, [other]) for other in tasks}
        others = change(found.rollout, 1, [other for other in tasks if other != task])
        rows.append(
            [task]
            + [f"**{markdown.points(v)}**" if t == task else markdown.points(v)
               for t, v in moved.items()]
            + [markdown.points(others)]
        )  # fmt: skip
        own = moved[task]
        if own is not None and others is not None:
            judged.append(judge_alone(task, own, others))
    lines = ["## Does one task teach the others?", ""]
    if found is not None:
        lines += [
            "Gain of every task, in points, after training one of them alone; the last column is "
            "the mean over the others, trained and held out. It must stay below half of the task's "
            f"own gain. T = {found.temperature:g}. {markdown.trials_behind(found)} "
            f"For {train_tasks[0]} this is "
            f"the row after the first task of `{grpo_name(0)}`.",
            "",
            *table(["trained alone", *tasks, "others"], rows),
            *markdown.verdicts(judged),
        ]
    return lines + (markdown.missing(absent) if absent else [])
