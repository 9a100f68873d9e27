"""The report's tables. Success is in percent, a difference of successes in points of percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from agent.process.shown import LINE_MAX_CHARS, printable
from deploy.bench.results import Result
from deploy.local.seeds import over_seeds
from deploy.local.statistics import Figure, Matrix, Rate

Rows = Mapping[str, Sequence[Result]]  # method -> its results, by seed

# Columns: a figure's name in `Matrix.figures`, and how it is headed; differences carry a sign.
RATES = {"final_avg": "final"}
DIFFERENCES = {
    "gain": "gain",
    "nbt_final": "NBT (final)",
    "nbt_libero": "NBT (LIBERO)",
    "fwt_zero": "FWT (zero-shot)",
}
FEWER = "†"  # a row with fewer seeds than others
UNKNOWN = "–"


def figures_table(rows: Rows) -> list[str]:
    """A row a method: mean ± standard error over its seeds, and Student's 95% interval."""
    most = max((len(results) for results in rows.values()), default=0)
    lines = []
    for method, results in rows.items():
        if not results:
            continue
        mark = f" {FEWER}" if len(results) < most else ""
        figures = [result.rollout.figures() for result in results]
        cells = [over([each[name] for each in figures]) for name in RATES]
        cells += [over([each[name] for each in figures], "+") for name in DIFFERENCES]
        cells.append(over([zero_shot_change(result.rollout) for result in results], "+"))
        lines.append([f"{method}{mark}", str(len(results)), *cells])
    head = ["method", "seeds", *RATES.values(), *DIFFERENCES.values(), "held out, change"]
    text = table(head, [*base_rows(rows), *lines])
    if any(len(results) < most for results in rows.values() if results):
        text += [f"{FEWER} fewer seeds than other rows.", ""]
    return text


def base_rows(rows: Rows) -> list[list[str]]:
    """The success of each model that runs began with, by seed of the evaluation."""
    by_model: dict[str, dict[int, Figure]] = {}
    for results in rows.values():
        for result in results:
            summary = result.summary
            by_seed = by_model.setdefault(summary["settings"]["model"], {})
            by_seed[summary["seed"]] = result.rollout.average(0, result.rollout.train_tasks)
    nothing = [UNKNOWN] * (len(DIFFERENCES) + 1)
    return [
        ["base" if len(by_model) == 1 else f"base, {model}", str(len(by_seed)),
         over(list(by_seed.values())), *nothing]
        for model, by_seed in by_model.items()
    ]  # fmt: skip


def zero_shot_change(matrix: Matrix) -> Figure:
    """Mean over the held-out tasks of S(final) - S(base)."""
    figures = matrix.figures()
    before, after = figures["base_zero_shot"], figures["final_zero_shot"]
    if before is None or after is None:
        return None
    return after[0] - before[0], (before[1] ** 2 + after[1] ** 2) ** 0.5


def over(figures: Sequence[Figure], sign: str = "") -> str:
    """`43.3 ± 2.9 [36.1, 50.5]`; of one seed with the error of its trials, in brackets."""
    mean = over_seeds(figures)
    if mean is None:
        return UNKNOWN
    interval = mean.interval()
    text = f"{100 * mean.mean:{sign}.1f}"
    if interval is None:
        return f"{text} (± {100 * mean.trials_se:.1f})"
    return f"{text} ± {100 * mean.se:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def matrix_table(results: Sequence[Result]) -> list[str]:
    """The success matrix of one method, its seeds' trials together."""
    matrices = [result.rollout for result in results]
    first = matrices[0]
    held_out = set(first.held_out_tasks)
    head = ["after", *(f"{task} (held out)" if task in held_out else task for task in first.tasks)]
    lines = []
    for row, name in enumerate(["base", *first.train_tasks]):
        cells = []
        for task in first.tasks:
            rates = [matrix.rate(row, task) for matrix in matrices]
            pooled = Rate(sum(r.successes for r in rates), sum(r.trials for r in rates))
            own = f"**{rate_text(pooled)}**" if task == name else rate_text(pooled)
            cells.append(own if pooled.trials else UNKNOWN)
        lines.append([name, *cells])
    return table(head, lines)


def rate_text(rate: Rate) -> str:
    """`48% (144/300)`."""
    return f"{100 * rate.value:.0f}% ({rate.successes}/{rate.trials})"


def cost_table(rows: Rows) -> list[str]:
    """A row a method: the mean of its cells, each as if it had been run alone."""
    lines = []
    for method, results in rows.items():
        if not results:
            continue
        used = [result.summary["episodes"] for result in results]
        costs = [result.cost for result in results]
        restarts = [sum(result.summary["restarts"].values()) for result in results]
        lines.append(
            [
                method,
                _mean([e["trained"] + e["filtered"] for e in used]),
                _mean([e["eval"] for e in used]),
                _mean([e["aborted"] for e in used]),
                *(
                    _mean([cost[name] for cost in costs])
                    for name in ("environment_steps", "chunk_forwards", "learned_chunks")
                ),
                *(
                    _mean([cost[name] / 60 for cost in costs], ".1f")
                    for name in ("wall_s", "own_wall_s")
                ),
                _mean(restarts),
                _mean([cost["starts"] for cost in costs]),
            ]
        )
    head = ["method", "training episodes", "evaluation episodes", "aborted", "environment steps",
            "chunk forwards", "chunks learned from", "wall, min", "of it unshared, min",
            "processes restarted", "starts"]  # fmt: skip
    return table(head, lines)


def _mean(values: Sequence[float | None], form: str = ",.0f") -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):{form}}" if known and len(known) == len(values) else UNKNOWN


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(map(_cell, line))} |" for line in lines), ""]


def _cell(text: str) -> str:
    """Text that can neither end its cell nor its line."""
    return printable(text, LINE_MAX_CHARS).replace("|", "\\|")
