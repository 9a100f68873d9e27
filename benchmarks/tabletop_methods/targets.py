"""What the comparison was to reach, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    losses = [loss for seed in SEEDS if (loss := _forgetting(results, seed)) is not None]
    rows = [
        ["sequential fine-tuning's share of the oracle's gain", "≥ 80%", *_share(results)],
        ["its forgetting, NBT (final)", "interval reaches ≤ 3 points", *_loss(losses)],
        ["success, asynchronous less synchronous", "interval includes 0", *_difference(results)],
        *(_pace_row(results, pace) for pace in PACES),
    ]
    return ["## Targets", "", *table(["figure", "target", "found", "verdict"], rows)]


def _gain(results: Results, method: str, seed: int) -> float | None:
    result = results.get(f"{method}-seed{seed}")
    gain = result.rollout.figures()["gain"] if result else None
    return gain[0] if gain else None


def _forgetting(results: Results, seed: int) -> float | None:
    result = results.get(f"sequential-seed{seed}")
    loss = result.rollout.figures()["nbt_final"] if result else None
    return loss[0] if loss else None


def _share(results: Results) -> list[str]:
    """Mean over the seeds that both have of gain over the oracle's gain."""
    pairs = [(_gain(results, "sequential", s), _gain(results, "multitask", s)) for s in SEEDS]
    both = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    if any(theirs <= 0 for _, theirs in both):
        return [UNKNOWN, "in a seed the oracle gained nothing"]
    shares = [mine / theirs for mine, theirs in both]
    if len(shares) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval(shares)
    text = f"{100 * mean:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
    return [text, _verdict(mean >= SHARE_TARGET - ROUNDING, len(shares), SEEDS)]


def _loss(values: Sequence[float]) -> list[str]:
    if len(values) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval(values)
    text = _points(mean, low, high)
    return [text, _verdict(low <= NBT_TARGET + ROUNDING, len(values), SEEDS)]


def _difference(results: Results) -> list[str]:
    """Of the two modes' final success, the whole suite, seed by seed."""
    pairs = _pairs(results, SUITE_PACE)
    values = [_final(theirs) - _final(mine) for mine, theirs in pairs]
    if len(values) < 2:
        return [UNKNOWN, "not measured yet"]
    mean, _, low, high = mean_interval(values)
    is_met = low <= ROUNDING and high >= -ROUNDING
    return [_points(mean, low, high), _verdict(is_met, len(values), PACE_SEEDS[SUITE_PACE])]


def _final(result: Result) -> float:
    final = result.rollout.figures()["final_avg"]
    if final is None:
        raise ValueError(f"{result.name}: its last row was not measured; delete it and run it anew")
    return final[0]


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
    times = [[sum(r.time_s.values()) for r in pair] for pair in _pairs(results, pace)]
    return [theirs / mine for mine, theirs in times]


def _pairs(results: Results, pace: str) -> list[tuple[Result, Result]]:
    """The synchronous and the asynchronous run of each seed that has both."""
    names = [[pace_name(pace, mode, seed) for mode in MODES] for seed in PACE_SEEDS[pace]]
    return [(results[a], results[b]) for a, b in names if a in results and b in results]
