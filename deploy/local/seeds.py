"""A figure over several seeds: mean, standard error and Student's interval. Standard library only.

The spread of the seeds holds everything that differs between them, the noise of the trials too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from deploy.local.statistics import Figure

HALVINGS = 60  # of the angle between 0 and a right one: beyond what a float tells apart


class MeanInterval(NamedTuple):
    """A mean, its standard error, and the ends of its interval."""

    mean: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedMean:
    """A figure over seeds.

    seeds_se: from the spread of the seeds, None for a single one. trials_se: from the trials alone.
    """

    mean: float
    seeds_se: float | None
    trials_se: float
    seeds: int

    @property
    def se(self) -> float:
        """Over seeds where there are several; it holds the trials' error too."""
        return self.trials_se if self.seeds_se is None else self.seeds_se

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Student's interval over the seeds; None for a single one, which has no spread."""
        if self.seeds_se is None:
            return None
        half = t_quantile(level, self.seeds - 1) * self.seeds_se
        return self.mean - half, self.mean + half


def over_seeds(figures: Sequence[Figure]) -> SeedMean | None:
    """None without a seed, or if one of them was not measured."""
    measured = [figure for figure in figures if figure is not None]
    if not measured or len(measured) < len(figures):
        return None
    values, count = [value for value, _ in measured], len(measured)
    return SeedMean(
        mean=fmean(values),
        seeds_se=stdev(values) / math.sqrt(count) if count > 1 else None,
        trials_se=math.sqrt(sum(error**2 for _, error in measured)) / count,
        seeds=count,
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> MeanInterval:
    """Mean over independent seeds and its two-sided Student interval (Student 1908).

    Raises ValueError for fewer than two values: one seed has no spread.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 of them, got {len(values)}")
    mean, se = fmean(values), stdev(values) / math.sqrt(len(values))
    half = t_quantile(level, len(values) - 1) * se
    return MeanInterval(mean, se, mean - half, mean + half)


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|t'| <= t) = `level` for Student's t' with `freedom` degrees of freedom.

    Raises ValueError unless 0 < level < 1 and freedom >= 1.
    """
    if not 0 < level < 1 or freedom < 1:
        raise ValueError(
            f"t_quantile: expected a level in (0, 1) and at least one degree of freedom, "
            f"got {level} and {freedom}"
        )
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) tan(angle)), a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    is_odd = freedom % 2
    cosine, total = math.cos(angle), 0.0
    term = cosine if is_odd else 1.0
    for power in range(is_odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
