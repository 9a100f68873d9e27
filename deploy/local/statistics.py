"""Success rates with their uncertainty, and the continual-learning figures of a success matrix.

Standard library only, and independent of the learner's own code: a recount should not repeat its
mistakes. Row i of a matrix holds the counts after i tasks (row 0: the base model), columns are
tasks; trials 0 means not measured. What each figure means, and whose it is: docs/figures.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Z_95 = 1.959963984540054

Figure = tuple[float, float] | None  # value and standard error; None where it cannot be measured
Weights = dict[tuple[int, str], float]  # of the cells (row, task) that a figure is a sum of


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
    """`cells[row][column]`; columns are `tasks`, of which some were trained, some held out.

    curves: by task, the rate of the training episodes of each iteration, in order.
    """

    tasks: list[str]
    train_tasks: list[str]
    held_out_tasks: list[str]
    cells: list[list[Rate]]
    curves: Mapping[str, Sequence[Rate]] = field(default_factory=dict)

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
        return self._weigh({(row, task): 1 / len(tasks) for task in tasks})

    def gain(self) -> Figure:
        """final - base over the trained tasks."""
        share = 1 / max(1, self._last)
        rows = ((self._last, share), (0, -share))
        return self._weigh({(row, task): w for task in self.train_tasks for row, w in rows})

    def nbt_final(self) -> Figure:
        """Negative backward transfer: all but the last task, S(own) - S(final)."""
        return self._weigh(self._loss_since_own(lambda own: [self._last]))

    def nbt_libero(self) -> Figure:
        """The same against the mean of all rows after a task's own (LIBERO).

        The last task has none and is left out, as in `nbt_final`.
        """
        return self._weigh(self._loss_since_own(lambda own: list(range(own + 1, self._last + 1))))

    def bwt(self) -> Figure:
        """Backward transfer: S(final) - S(own), the opposite of `nbt_final`."""
        nbt = self.nbt_final()
        return None if nbt is None else (0.0 - nbt[0], nbt[1])

    def fwt_zero(self) -> Figure:
        """S(row before own) - S(base), over all tasks; the first task's is 0 by definition."""
        return self._weigh(self._transfer(1 / max(1, self._last)))

    def ft_crl_vla(self) -> Figure:
        """The same over all tasks but the first (CRL-VLA)."""
        return self._weigh(self._transfer(1 / max(1, self._last - 1)))

    def fwt_libero_train(self) -> Figure:
        """Success while training, mean over a task's iterations, then over tasks.

        LIBERO's FWT takes evaluations while training; these are the training episodes themselves.
        """
        curves = [self.curves.get(task, []) for task in self.train_tasks]
        if not all(curves):
            return None
        parts = [(1 / (len(curves) * len(curve)), rate) for curve in curves for rate in curve]
        return _combine(parts)

    def f_crl_vla(self) -> Figure:
        """The best row before the last, the base's too, less the last: all but the last task."""
        weights: Weights = {}
        for task in self.train_tasks[:-1]:
            column = [self.rate(row, task) for row in range(self._last)]
            if not all(rate.trials for rate in column):
                return None
            best = max(range(self._last), key=lambda row: column[row].value)
            weights |= {(best, task): 1.0, (self._last, task): -1.0}
        return self._weigh({cell: w / (self._last - 1) for cell, w in weights.items()})

    def figures(self) -> dict[str, Figure]:
        """The figures that a run is judged by; a name carries the figure's definition."""
        return {
            "base_avg": self.average(0, self.train_tasks),
            "final_avg": self.average(self._last, self.train_tasks),
            "gain": self.gain(),
            "nbt_final": self.nbt_final(),
            "nbt_libero": self.nbt_libero(),
            "bwt": self.bwt(),
            "fwt_zero": self.fwt_zero(),
            "fwt_libero_train": self.fwt_libero_train(),
            "ft_crl_vla": self.ft_crl_vla(),
            "f_crl_vla": self.f_crl_vla(),
            "base_zero_shot": self.average(0, self.held_out_tasks),
            "final_zero_shot": self.average(self._last, self.held_out_tasks),
        }

    @property
    def _last(self) -> int:
        return len(self.train_tasks)

    def _loss_since_own(self, later_rows: Callable[[int], list[int]]) -> Weights:
        """S(own) less the mean of the later rows, mean over all tasks but the last."""
        weights: Weights = {}
        for own, task in list(enumerate(self.train_tasks, start=1))[:-1]:
            share, rows = 1 / (self._last - 1), later_rows(own)
            weights[own, task] = share
            weights |= {(row, task): -share / len(rows) for row in rows}
        return weights

    def _transfer(self, share: float) -> Weights:
        """S(row before own) - S(base) of every task but the first."""
        weights: Weights = {}
        for before, task in list(enumerate(self.train_tasks))[1:]:
            weights |= {(before, task): share, (0, task): -share}
        return weights

    def _weigh(self, weights: Weights) -> Figure:
        return _combine([(weight, self.rate(*cell)) for cell, weight in weights.items()])


def _combine(parts: Sequence[tuple[float, Rate]]) -> Figure:
    """Weighted sum of independent rates; None if there is none, or one was not measured."""
    if not parts or any(rate.trials == 0 for _, rate in parts):
        return None
    value = sum(weight * rate.value for weight, rate in parts)
    return value, math.sqrt(sum(weight**2 * rate.variance for weight, rate in parts))
