"""What a comparison will cost, before anything of it is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from deploy.bench.cells import BEGINNINGS, Step, compose
from deploy.bench.results import Result
from deploy.local.progress import Plan

DEFAULT_S = 0.2  # an episode with its part of the learning: tabletop and nano policy, two cores


@dataclass(frozen=True)
class Effort:
    """Planned episodes; groups that are collected anew for degenerate ones are not foreseen."""

    train: int = 0
    evaluate: int = 0

    @property
    def episodes(self) -> int:
        """Both together."""
        return self.train + self.evaluate

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.train + other.train, self.evaluate + other.evaluate)

    def __sub__(self, other: Effort) -> Effort:
        return Effort(self.train - other.train, self.evaluate - other.evaluate)


@dataclass(frozen=True)
class Estimate:
    """missing: cells without a result. steps: what has to be run, each once, in order.

    episode_s: wall time of a planned episode, with its part of the learning. measured_in: the
    number of results that it comes from; 0: it is the default.
    """

    missing: int
    steps: tuple[Step, ...]
    episode_s: float
    measured_in: int

    @property
    def effort(self) -> Effort:
        """Of everything that has to be run."""
        return total(own_effort(step) for step in self.steps)

    @property
    def time_s(self) -> float:
        """Of the same."""
        return self.effort.episodes * self.episode_s


def estimate(
    plans: Sequence[Step], results: Mapping[str, Result], steps: Sequence[Step]
) -> Estimate:
    """plans: the cells' own steps. results: by cell. steps: what has to be run, each once."""
    measured = [
        (results[step.folder].cost["own_wall_s"], own_effort(step).episodes)
        for step in plans
        if step.folder in results
    ]
    episodes = sum(planned for _, planned in measured)
    episode_s = sum(wall_s for wall_s, _ in measured) / episodes if episodes else DEFAULT_S
    return Estimate(len(plans) - len(measured), tuple(steps), episode_s, len(measured))


@cache
def own_effort(step: Step) -> Effort:
    """Of the step alone, without what its beginning has done."""
    effort = _effort(compose(step.overrides).processes["learner"])
    if step.parent is None:
        return effort
    return effort - _effort(compose(step.parent.overrides).processes["learner"])


def total(efforts: Iterable[Effort]) -> Effort:
    """Their sum."""
    return sum(efforts, start=Effort())


def _effort(learner: dict[str, Any]) -> Effort:
    plan = Plan.from_learner(learner)
    return Effort(plan.train_episodes, plan.eval_episodes)


def describe(found: Estimate, cells: int) -> list[str]:
    """The lines that are printed first. cells: of the whole comparison."""
    lines = [f"{cells} cells, {cells - found.missing} have a result, {found.missing} to run"]
    if not found.missing:
        return lines
    own = [step for step in found.steps if not step.folder.startswith(BEGINNINGS)]
    alone = total(own_effort(each) for step in own for each in step.chain)
    effort = found.effort
    saved = alone.episodes - effort.episodes
    source = (
        f"measured in {found.measured_in} results"
        if found.measured_in
        else "a tabletop run's on two cores: nothing is measured here yet"
    )
    return [
        *lines,
        f"{len(found.steps) - len(own)} beginnings that cells share: {saved:,} episodes saved",
        f"{effort.episodes:,} episodes: {effort.train:,} of training, {effort.evaluate:,} of "
        "evaluation",
        f"about {clock(found.time_s)}, at {found.episode_s:.2f} s an episode ({source})",
    ]


def clock(time_s: float) -> str:
    """`2 h 05 min`."""
    minutes = max(1, round(time_s / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
