"""Which of the values tried did best on the tasks outside the suite; whether it is what we use."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from benchmarks.tabletop_methods.cells import CHOSEN, RESULTS, TRIED, declare, tuning_name
from deploy.bench.results import Result, read_cells


@dataclass(frozen=True)
class Choice:
    """finals: value -> mean final success over the tuning tasks, None where it was not measured."""

    method: str
    setting: str
    finals: dict[str, float | None]

    @property
    def best(self) -> str | None:
        """The value with the highest; the first of equals. None before all were measured."""
        if None in self.finals.values():
            return None
        return max(self.finals, key=lambda value: self.finals[value] or 0.0)

    @property
    def is_in_use(self) -> bool:
        """Whether what was chosen is the best; also as long as that is not known."""
        return self.best is None or CHOSEN[self.method] == self.best


def choices(results: dict[str, Result]) -> list[Choice]:
    """One of each method that has something to choose."""
    return [
        Choice(
            method,
            setting.rpartition(".")[2],
            {v: final(results.get(tuning_name(method, v))) for v in values},
        )
        for method, (setting, values) in TRIED.items()
    ]


def final(result: Result | None) -> float | None:
    """Mean success over the trained tasks in the last row."""
    return None if result is None else result.summary["final_avg"]


def show_choice(console: Console) -> bool:
    """Prints the table; returns whether every choice is the best of its values.

    Raises ResultError for results made with other settings.
    """
    results, _ = read_cells(RESULTS, declare("tuning"))
    found = choices(results)
    for choice in found:
        told = ", ".join(
            f"{value}: {'not measured' if rate is None else f'{100 * rate:.1f}%'}"
            for value, rate in choice.finals.items()
        )
        mark = "" if choice.is_in_use else f"  [red]best is {choice.best}[/red]"
        console.print(
            f"{choice.method} ({choice.setting}) {told}; used: {CHOSEN[choice.method]}{mark}"
        )
    return all(choice.is_in_use for choice in found)
