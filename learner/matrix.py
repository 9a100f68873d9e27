"""The success matrix and the continual-learning figures derived from it. Numpy only.

Row i holds the measurements made after i tasks (row 0: the base model), columns are tasks; a cell
is (successes, trials) and trials 0 means not measured. S(i, j) is the success rate of row i on
task j. T is the number of trained tasks; the j-th trained task (from 1) was just trained in row j.

A figure's name carries its definition, for papers call different things NBT or FWT; one that needs
a cell which was not measured is undefined. docs/figures.md has them side by side.
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
    """Counts of T + 1 rows and named columns, int64[T + 1, tasks].

    curves: by task, (successes, trials) of the training episodes of each iteration, in order.
    """

    tasks: list[str]
    train_tasks: list[str]
    held_out_tasks: list[str]
    successes: np.ndarray = field(init=False)
    trials: np.ndarray = field(init=False)
    curves: dict[str, list[tuple[int, int]]] = field(init=False, default_factory=dict)

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
        return _estimate(int(self.successes[row, column]), int(self.trials[row, column]))

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

    def nbt_final(self) -> Estimate:
        """NBT = 1/(T-1) sum_{j<T} (S(j, j) - S(T, j)): forgetting, positive is bad.

        Source: arXiv 2603.11653. Undefined for T < 2.
        """
        return _mean([self._difference(j, self._last, task) for j, task in self._earlier()])

    def nbt_libero(self) -> Estimate:
        """NBT = 1/(T-1) sum_{j<T} 1/(T-j) sum_{k>j} (S(j, j) - S(k, j)): over all later rows.

        Source: Liu et al. 2023 (LIBERO), NBT_k. They divide the sum over tasks by T, but the last
        task has no later row and its term is 0/0: it is left out of sum and divisor here. Counted
        as 0 it would make every figure smaller by (T-1)/T. Undefined for T < 2.
        """
        terms = []
        for j, task in self._earlier():
            later = range(j + 1, self._last + 1)
            weight = -1.0 / len(later)
            terms.append(
                [(1.0, self.cell(j, task)), *((weight, self.cell(k, task)) for k in later)]
            )
        return _mean(terms)

    def bwt(self) -> Estimate:
        """BWT = 1/(T-1) sum_{j<T} (S(T, j) - S(j, j)) = -nbt_final: negative is bad.

        Source: Lopez-Paz and Ranzato 2017, eq. 3; CRL-VLA's BWT.
        """
        nbt = self.nbt_final()
        return nbt if nbt.value is None else Estimate(0.0 - nbt.value, nbt.standard_error)

    def fwt_zero(self) -> Estimate:
        """FWT = 1/T sum_j (S(j-1, j) - S(0, j)): what earlier tasks gave a task untrained.

        Source: arXiv 2603.11653 prints no formula; this one agrees with its FWT of 0 for an adapter
        per task. The first task counts, with a term that is 0 whatever is measured, so this is
        (T-1)/T of `ft_crl_vla`. Undefined for T < 2: there is no earlier task.
        """
        pairs = self._own_rows() if self._last > 1 else []
        return _mean([self._difference(j - 1, 0, task) for j, task in pairs])

    def ft_crl_vla(self) -> Estimate:
        """FT = 1/(T-1) sum_{j>1} (S(j-1, j) - S(0, j)): the same without the first task.

        Source: CRL-VLA, mean(R_{i-1,i} - b_i), after Lopez-Paz and Ranzato 2017, eq. 4; b_i is the
        base model's success here, not a random policy's. Undefined for T < 2.
        """
        pairs = [(j, task) for j, task in self._own_rows() if j > 1]
        return _mean([self._difference(j - 1, 0, task) for j, task in pairs])

    def fwt_libero_train(self) -> Estimate:
        """Mean over tasks of the mean over iterations of success while training: learning speed.

        Source: the formula is Liu et al. 2023's FWT (LIBERO), FWT_k = mean_e c_{k,k,e}. The
        measurements are not: c is of the task's training episodes, sampled on training init
        states, of the adapter before each update (LIBERO: evaluations every fifth epoch, 0 to 50,
        each counted as the best so far once the peak is reached). Its standard error takes them as
        independent. Undefined unless every trained task has an iteration.
        """
        return _mean([self._learning(task) for task in self.train_tasks])

    def f_crl_vla(self) -> Estimate:
        """F = 1/(T-1) sum_{j<T} (max_{k<T} S(k, j) - S(T, j)): forgetting, positive is bad.

        Source: CRL-VLA, mean(max_k R_ki - R_Ti), after Chaudhry et al. 2018. k runs over every row
        before the last; the base's belongs to them, for a pretrained model can forget what it
        could do before the first task. The maximum over noisy cells is biased upwards; NBT is not.
        Undefined for T < 2, or if one of these rows was not measured.
        """
        terms = []
        for _, task in self._earlier():
            column = {k: self.cell(k, task).value for k in range(self._last)}
            rates = {k: value for k, value in column.items() if value is not None}
            if len(rates) < len(column):
                return UNDEFINED
            terms.append(self._difference(max(rates, key=rates.__getitem__), self._last, task))
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
            "nbt_final": self.nbt_final(),
            "nbt_libero": self.nbt_libero(),
            "bwt": self.bwt(),
            "fwt_zero": self.fwt_zero(),
            "fwt_libero_train": self.fwt_libero_train(),
            "ft_crl_vla": self.ft_crl_vla(),
            "f_crl_vla": self.f_crl_vla(),
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

    def _earlier(self) -> list[tuple[int, str]]:
        """Own row and name of every trained task but the last."""
        return self._own_rows()[:-1]

    def _learning(self, task: str) -> list[tuple[float, Estimate]]:
        curve = self.curves.get(task, [])
        return [(1.0 / len(curve), _estimate(*counts)) for counts in curve] or [(1.0, UNDEFINED)]

    def _difference(self, plus: int, minus: int, task: str) -> list[tuple[float, Estimate]]:
        if plus == minus:
            return []
        return [(1.0, self.cell(plus, task)), (-1.0, self.cell(minus, task))]


def _estimate(successes: int, trials: int) -> Estimate:
    if trials == 0:
        return UNDEFINED
    p = successes / trials
    return Estimate(p, math.sqrt(p * (1 - p) / trials))


def _mean(terms: list[list[tuple[float, Estimate]]]) -> Estimate:
    """Mean over `terms` of weighted sums of independent cells; undefined if a cell is missing."""
    if not terms:
        return UNDEFINED
    value, variance = 0.0, 0.0
    for weight, estimate in (part for term in terms for part in term):
        if estimate.value is None or estimate.standard_error is None:
            return UNDEFINED
        value += weight * estimate.value
        variance += (weight * estimate.standard_error) ** 2
    return Estimate(value / len(terms), math.sqrt(variance) / len(terms))
