"""The success matrix and the continual-learning figures derived from it. Numpy only.

Row i holds the measurements made after i tasks (row 0: the base model), columns are tasks; a cell
is (successes, trials) and trials 0 means not measured. S(i, j) is the success rate of row i on
task j. T is the number of trained tasks; the j-th trained task (from 1) was just trained in row j.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error; both None where the figure is undefined or unmeasured."""

    value: float | None
    standard_error: float | None


UNDEFINED = Estimate(None, None)


@dataclass
class SuccessMatrix:
    """Counts of T + 1 rows and named columns, int64[T + 1, tasks]."""

    tasks: list[str]
    train_tasks: list[str]
    held_out_tasks: list[str]
    successes: np.ndarray = field(init=False)
    trials: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        unknown = sorted({*self.train_tasks, *self.held_out_tasks} - set(self.tasks))
        if unknown:
            raise ValueError(f"tasks {unknown} are not columns; the columns are {self.tasks}")
        shape = (len(self.train_tasks) + 1, len(self.tasks))
        self.successes = np.zeros(shape, dtype=np.int64)
        self.trials = np.zeros(shape, dtype=np.int64)

    def record(self, row: int, task: str, successes: int, trials: int) -> None:
        """Set one cell. Raises ValueError when the counts are impossible."""
        if not 0 <= successes <= trials:
            raise ValueError(f"cell ({row}, {task}): {successes} successes of {trials} trials")
        column = self.tasks.index(task)
        self.successes[row, column] = successes
        self.trials[row, column] = trials

    def cell(self, row: int, task: str) -> Estimate:
        """S(row, task) with the binomial standard error sqrt(p (1 - p) / n)."""
        column = self.tasks.index(task)
        trials = int(self.trials[row, column])
        if trials == 0:
            return UNDEFINED
        p = int(self.successes[row, column]) / trials
        return Estimate(p, math.sqrt(p * (1 - p) / trials))

    def average(self, row: int, tasks: list[str]) -> Estimate:
        """Mean of S(row, j) over `tasks`."""
        return _mean([[(1.0, self.cell(row, task))] for task in tasks])

    def base_average(self) -> Estimate:
        """Mean of S(0, j) over the trained tasks."""
        return self.average(0, self.train_tasks)

    def final_average(self) -> Estimate:
        """AVG = mean_j S(T, j) over the trained tasks (Lopez-Paz and Ranzato 2017, ACC)."""
        return self.average(self._last, self.train_tasks)

    def gain(self) -> Estimate:
        """mean_j (S(T, j) - S(0, j)) over the trained tasks; the two rows are independent."""
        return _mean([self._difference(self._last, 0, task) for task in self.train_tasks])

    def nbt(self) -> Estimate:
        """NBT = 1/(T-1) sum_{j<T} (S(j, j) - S(T, j)): forgetting, positive is bad.

        Source: Liu et al. 2023 (LIBERO) as the continual-RL papers use it. Undefined for T < 2.
        """
        pairs = [(j, task) for j, task in self._own_rows() if j < self._last]
        return _mean([self._difference(j, self._last, task) for j, task in pairs])

    def bwt(self) -> Estimate:
        """BWT = 1/(T-1) sum_{j<T} (S(T, j) - S(j, j)) (Lopez-Paz and Ranzato 2017) = -NBT."""
        nbt = self.nbt()
        return nbt if nbt.value is None else Estimate(-nbt.value, nbt.standard_error)

    def fwt(self) -> Estimate:
        """FWT = mean_{j>1} (S(j-1, j) - S(0, j)): what earlier tasks gave a task untrained.

        Source: Lopez-Paz and Ranzato 2017, with the base model as the reference.
        """
        pairs = [(j, task) for j, task in self._own_rows() if j > 1]
        return _mean([self._difference(j - 1, 0, task) for j, task in pairs])

    def forgetting(self) -> Estimate:
        """F = mean_{j<T} (max_k S(k, j) - S(T, j)) over measured rows (Chaudhry et al. 2018).

        The maximum over noisy cells is biased upwards; NBT is not.
        """
        terms = []
        for j, task in self._own_rows():
            rows = [k for k in range(j, self._last) if self.cell(k, task).value is not None]
            if j < self._last and rows:
                best = max(rows, key=lambda k: self.cell(k, task).value or 0.0)
                terms.append(self._difference(best, self._last, task))
        return _mean(terms)

    def zero_shot(self, row: int) -> Estimate:
        """ZS = mean of S(row, j) over the held-out tasks."""
        return self.average(row, self.held_out_tasks)

    def metrics(self) -> dict[str, float | None]:
        """Every figure and `{name}_se`, ready for JSON."""
        figures = {
            "base_avg": self.base_average(),
            "final_avg": self.final_average(),
            "gain": self.gain(),
            "nbt": self.nbt(),
            "bwt": self.bwt(),
            "fwt": self.fwt(),
            "forgetting": self.forgetting(),
            "base_zero_shot": self.zero_shot(0),
            "final_zero_shot": self.zero_shot(self._last),
        }
        values = {name: estimate.value for name, estimate in figures.items()}
        return values | {f"{name}_se": e.standard_error for name, e in figures.items()}

    def to_dict(self) -> dict[str, Any]:
        """The counts as nested lists."""
        return {"successes": self.successes.tolist(), "trials": self.trials.tolist()}

    @property
    def _last(self) -> int:
        return len(self.train_tasks)

    def _own_rows(self) -> list[tuple[int, str]]:
        return list(enumerate(self.train_tasks, start=1))

    def _difference(self, plus: int, minus: int, task: str) -> list[tuple[float, Estimate]]:
        if plus == minus:
            return []
        return [(1.0, self.cell(plus, task)), (-1.0, self.cell(minus, task))]


def _mean(terms: list[list[tuple[float, Estimate]]]) -> Estimate:
    """Mean over `terms` of signed sums of independent cells; undefined if a cell is missing."""
    if not terms:
        return UNDEFINED
    value, variance = 0.0, 0.0
    for sign, estimate in (part for term in terms for part in term):
        if estimate.value is None or estimate.standard_error is None:
            return UNDEFINED
        value += sign * estimate.value
        variance += estimate.standard_error**2
    return Estimate(value / len(terms), math.sqrt(variance) / len(terms))
