"""Success rates with their uncertainty, and the continual-learning figures of a success matrix.

Standard library only, and independent of the learner's own code: a recount should not repeat its
mistakes. Row i of a matrix holds the counts after i tasks (row 0: the base model), columns are
tasks; trials 0 means not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054

Figure = tuple[float, float] | None  # value and standard error; None where it cannot be measured


@dataclass(frozen=True)
class Rate:
    """Successes out of trials."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """Share of successes; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0

    @property
    def variance(self) -> float:
        """Binomial variance of `value`."""
        return self.value * (1 - self.value) / self.trials if self.trials else 0.0

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Score interval (Wilson 1927, eq. 4); (0, 1) without trials."""
        if self.trials == 0:
            return 0.0, 1.0
        p, n = self.value, self.trials
        centre = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        # Rounding must not push an end past the rate itself: bars would have negative length.
        return max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale))


@dataclass(frozen=True)
class Matrix:
    """`cells[row][column]`; columns are `tasks`, of which some were trained, some held out."""

    tasks: list[str]
    train_tasks: list[str]
    held_out_tasks: list[str]
    cells: list[list[Rate]]

    @classmethod
    def from_counts(
        cls, columns: Mapping[str, list[str]], counts: Mapping[str, list[list[int]]]
    ) -> Matrix:
        """From results or summary as JSON has them: `columns` names the tasks, `counts` counts."""
        cells = [
            [Rate(s, n) for s, n in zip(successes, trials, strict=True)]
            for successes, trials in zip(counts["successes"], counts["trials"], strict=True)
        ]
        return cls(columns["tasks"], columns["train_tasks"], columns["held_out_tasks"], cells)

    def rate(self, row: int, task: str) -> Rate:
        """Counts of one cell."""
        return self.cells[row][self.tasks.index(task)]

    def average(self, row: int, tasks: Sequence[str]) -> Figure:
        """Mean success of a row over `tasks`."""
        return _combine([[(1.0, self.rate(row, task))] for task in tasks])

    def gain(self) -> Figure:
        """final - base over the trained tasks."""
        return _combine([self._change(0, self._last, task) for task in self.train_tasks])

    def nbt(self) -> Figure:
        """Negative backward transfer: mean over all but the last task of S(own) - S(final).

        0 for a single task, which has nothing to forget.
        """
        if self._last == 1:
            return 0.0, 0.0
        owned = list(enumerate(self.train_tasks, start=1))[:-1]
        return _combine([self._change(self._last, own, task) for own, task in owned])

    def figures(self) -> dict[str, Figure]:
        """The figures that a run is judged by."""
        return {
            "base_avg": self.average(0, self.train_tasks),
            "final_avg": self.average(self._last, self.train_tasks),
            "gain": self.gain(),
            "nbt": self.nbt(),
            "base_zero_shot": self.average(0, self.held_out_tasks),
            "final_zero_shot": self.average(self._last, self.held_out_tasks),
        }

    @property
    def _last(self) -> int:
        return len(self.train_tasks)

    def _change(self, before: int, after: int, task: str) -> list[tuple[float, Rate]]:
        """S(after) - S(before) as a signed sum."""
        if before == after:
            return []
        return [(1.0, self.rate(after, task)), (-1.0, self.rate(before, task))]


def _combine(terms: list[list[tuple[float, Rate]]]) -> Figure:
    """Mean over `terms` of signed sums of independent rates; None if one was not measured."""
    rates = [part for term in terms for part in term]
    if not rates or any(rate.trials == 0 for _, rate in rates):
        return None
    value = sum(sign * rate.value for sign, rate in rates) / len(terms)
    return value, math.sqrt(sum(rate.variance for _, rate in rates)) / len(terms)
