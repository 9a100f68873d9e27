"""What the comparison was to reach, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from benchmarks.tabletop_methods.cells import (
    JUDGED_PACE,
    MODES,
    PACE_SEEDS,
    PACES,
    SEEDS,
    SUITE_PACE,
    pace_name,
)
from deploy.bench.results import Result
from deploy.bench.tables import UNKNOWN, table
from deploy.local.seeds import mean_interval

Results = Mapping[str, Result]

SHARE_TARGET, NBT_TARGET, PACE_TARGET = 0.80, 0.03, 0.70
ROUNDING = 1e-9  # at the target counts as met


def targets(results: Results) -> list[str]:
    """What was aimed at, and what was found; judged once all planned seeds are there."""
    rows = [
        ["sequential fine-tuning's share of the oracle's gain", "≥ 80%", *_share(results)],
        ["its forgetting, NBT (final)", "interval reaches ≤ 3 points", *_loss(results)],
        ["success, asynchronous less synchronous", "interval includes 0", *_difference(results)],
        *(_pace_row(results, pace) for pace in PACES),
    ]
    return ["## Targets", "", *table(["figure", "target", "found", "verdict"], rows)]


def _share(results: Results) -> list[str]:
    """Mean over the seeds that both have of gain over the oracle's gain."""
    names = [(f"sequential-seed{seed}", f"multitask-seed{seed}") for seed in SEEDS]
    both = _figures(results, "gain", names)
    if any(theirs <= 0 for _, theirs in both):
        return [UNKNOWN, "in a seed the oracle gained nothing"]
    shares = [mine / theirs for mine, theirs in both]
    if len(shares) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval(shares)
    text = f"{100 * mean:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
    return [text, _verdict(mean >= SHARE_TARGET - ROUNDING, len(shares), SEEDS)]


def _loss(results: Results) -> list[str]:
    losses = _figures(results, "nbt_final", [(f"sequential-seed{seed}",) for seed in SEEDS])
    if len(losses) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval([loss for (loss,) in losses])
    return [_points(mean, low, high), _verdict(low <= NBT_TARGET + ROUNDING, len(losses), SEEDS)]


def _difference(results: Results) -> list[str]:
    """Of the two modes' final success, the whole suite, seed by seed."""
    both = _figures(results, "final_avg", _pace_names(SUITE_PACE))
    if len(both) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval([theirs - mine for mine, theirs in both])
    is_met = low <= ROUNDING and high >= -ROUNDING
    return [_points(mean, low, high), _verdict(is_met, len(both), PACE_SEEDS[SUITE_PACE])]


def _figures(
    results: Results, figure: str, names: Sequence[tuple[str, ...]]
) -> list[tuple[float, ...]]:
    """A figure of each cell, where all that are named together have it."""
    measured = {
        name: value[0]
        for name in chain(*names)
        if name in results and (value := results[name].rollout.figures()[figure]) is not None
    }
    return [tuple(measured[n] for n in group) for group in names if measured.keys() >= {*group}]


def _pace_row(results: Results, pace: str) -> list[str]:
    ratios = pace_ratios(results, pace)
    is_judged = pace == JUDGED_PACE
    target = f"≤ {PACE_TARGET}" if is_judged else "none"
    head = f"wall time of learning, asynchronous / synchronous, {pace}"
    if not ratios:
        return [head, target, UNKNOWN, "not measured yet"]
    mean = fmean(ratios)
    told = f"{mean:.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    verdict = _verdict(mean <= PACE_TARGET + ROUNDING, len(ratios), PACE_SEEDS[pace])
    return [head, target, told, verdict if is_judged else "reported"]


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _verdict(is_met: bool, count: int, planned: Sequence[int]) -> str:
    if count < len(planned):
        return f"{count} of {len(planned)} seeds so far"
    return "**met**" if is_met else "**missed**"


def pace_ratios(results: Results, pace: str) -> list[float]:
    """By seed: learning time of the asynchronous run over that of the synchronous one."""
    spent = {name: sum(result.time_s.values()) for name, result in results.items()}
    return [spent[b] / spent[a] for a, b in _pace_names(pace) if a in spent and b in spent]


def _pace_names(pace: str) -> list[tuple[str, str]]:
    """The synchronous and the asynchronous cell of each seed."""
    synchronous, asynchronous = MODES
    return [
        (pace_name(pace, synchronous, seed), pace_name(pace, asynchronous, seed))
        for seed in PACE_SEEDS[pace]
    ]
