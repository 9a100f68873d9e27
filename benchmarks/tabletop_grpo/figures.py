"""The report's figures, from results alone: pure functions, standard library only.

A figure is a value with its standard error. Means of success over tasks take the trials as
independent binomials; rows of one run share init states and noise, so differences between them
are, if anything, more certain than their errors say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deploy.local.seeds import SeedMean
from deploy.local.statistics import Figure, Matrix

GAIN_TARGET = 0.25  # final - base over the trained tasks, at the rollout temperature
GREEDY_GAIN_TARGET = 0.10
NBT_LIMIT = 0.05  # for NBT minus one standard error
ZERO_SHOT_LOSS_LIMIT = 0.05  # for the loss minus one standard error
WALL_LIMIT_S = 3600.0  # of a seed
SHARED_GAIN_LIMIT = 0.5  # of a task's own gain, that training it may give the others
SFT_DROP_TARGET = 0.15  # of the other tasks, by which supervised fine-tuning shows forgetting
Z_ONE_SIDED_95 = 1.645
ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met; `margin` is how far `found` lies on its good side.

    A margin of None: nothing was found that the target could be held against.
    """

    what: str
    target: str
    found: str
    margin: float | None
    unit: str = "points"

    @property
    def is_met(self) -> bool:
        """At the target counts as met."""
        return self.margin is not None and self.margin >= -ROUNDING

    @property
    def text(self) -> str:
        """`met by 3.1 points`."""
        if self.margin is None:
            return "UNDECIDED"
        size = abs(self.margin) * (100 if self.unit == "points" else 1)
        return f"{'met' if self.is_met else 'MISSED'} by {size:.1f} {self.unit}"


@dataclass(frozen=True)
class Point:
    """One length of supervised fine-tuning on one task.

    success: on that task. change: mean over the other tasks of the training sequence.
    held_out: the same for the tasks that are never trained, some of which share its skill.
    """

    length: int
    success: float
    change: tuple[float, float]
    held_out: Figure = None


def combine(*terms: tuple[float, Figure]) -> Figure:
    """Weighted sum of independent figures; None if one was not measured."""
    value, variance = 0.0, 0.0
    for weight, figure in terms:
        if figure is None:
            return None
        value += weight * figure[0]
        variance += (weight * figure[1]) ** 2
    return value, math.sqrt(variance)


def change(matrix: Matrix, row: int, tasks: Sequence[str]) -> Figure:
    """Mean over `tasks` of S(row) - S(0)."""
    return combine((1.0, matrix.average(row, tasks)), (-1.0, matrix.average(0, tasks)))


# ---- verdicts --------------------------------------------------------------------------------


def judge_gain(what: str, gain: SeedMean, target: float) -> Verdict:
    """The mean itself must reach the target."""
    return Verdict(
        what, f"≥ {100 * target:+.0f}", f"{100 * gain.mean:+.1f} ± {100 * gain.se:.1f}",
        gain.mean - target,
    )  # fmt: skip


def judge_nbt(nbt: SeedMean) -> Verdict:
    """Forgetting, less one standard error."""
    return Verdict(
        "forgetting (NBT)", f"NBT − SE ≤ {100 * NBT_LIMIT:.0f}",
        f"{100 * nbt.mean:+.1f} ± {100 * nbt.se:.1f}", NBT_LIMIT - (nbt.mean - nbt.se),
    )  # fmt: skip


def judge_zero_shot(moved: SeedMean) -> Verdict:
    """The change of the held-out tasks, plus one standard error."""
    return Verdict(
        "held-out tasks, change", f"change + SE ≥ {-100 * ZERO_SHOT_LOSS_LIMIT:.0f}",
        f"{100 * moved.mean:+.1f} ± {100 * moved.se:.1f}",
        moved.mean + moved.se + ZERO_SHOT_LOSS_LIMIT,
    )  # fmt: skip


def judge_wall(walls_s: Sequence[float]) -> Verdict:
    """The slowest seed."""
    slowest_s = max(walls_s)
    return Verdict(
        "wall time, slowest seed", f"≤ {WALL_LIMIT_S / 60:.0f} min", f"{slowest_s / 60:.1f} min",
        (WALL_LIMIT_S - slowest_s) / 60, "min",
    )  # fmt: skip


def judge_control(name: str, gain: tuple[float, float]) -> Verdict:
    """A control may not improve beyond noise: its gain is below its one-sided 95% bound."""
    value, error = gain
    return Verdict(
        name, f"gain ≤ {Z_ONE_SIDED_95:.2f} SE = {100 * Z_ONE_SIDED_95 * error:.1f}",
        f"{100 * value:+.1f} ± {100 * error:.1f}", Z_ONE_SIDED_95 * error - value,
    )  # fmt: skip


def judge_alone(task: str, own: tuple[float, float], others: tuple[float, float]) -> Verdict:
    """Training `task` alone must give the others less than half of its own gain."""
    margin = None if own[0] <= 0 else SHARED_GAIN_LIMIT * own[0] - others[0]
    error = math.hypot(SHARED_GAIN_LIMIT * own[1], others[1])
    return Verdict(
        f"{task} alone", f"others < half of {100 * own[0]:+.1f}",
        f"others {100 * others[0]:+.1f} (margin ± {100 * error:.1f})", margin,
    )  # fmt: skip


def judge_sft_drop(what: str, moved: tuple[float, float]) -> Verdict:
    """Supervised fine-tuning on one task must cost the others this much, or the suite is easy."""
    return Verdict(
        what, f"drop ≥ {100 * SFT_DROP_TARGET:.0f}",
        f"{-100 * moved[0]:+.1f} ± {100 * moved[1]:.1f}", -moved[0] - SFT_DROP_TARGET,
    )  # fmt: skip


# ---- equal success ---------------------------------------------------------------------------


def change_at(points: Sequence[Point], success: float) -> Figure:
    """The others' change where the new task first reaches `success`; None if it never does.

    `points` are in order of length, the base policy first; between two lengths both quantities
    are taken to move in proportion.
    """
    if points and points[0].success >= success:
        return points[0].change
    for before, after in pairwise(points):
        if before.success < success <= after.success:
            share = (success - before.success) / (after.success - before.success)
            return combine((1 - share, before.change), (share, after.change))
    return None
