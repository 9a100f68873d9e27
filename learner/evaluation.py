"""Evaluation rows of the success matrix: what to order, and the counts that came back.

Init states come from the evaluation split, which training never sees, and the noise of a trial
depends on mode, task, init state and slot alone: rows are compared on the same trials.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.wire.messages import Order, Phase
from learner.config import LearnerConfig
from learner.instructions import instruction_for
from learner.matrix import SuccessMatrix
from learner.store import EpisodeRow

ROLLOUT, GREEDY = "rollout", "greedy"
ONCE, AT_END = "once", "at_end"


@dataclass(frozen=True)
class Cell:
    """One cell to measure: its orders cover every evaluation init state."""

    row: int
    mode: str
    task: str
    orders: tuple[Order, ...]

    @property
    def version(self) -> str:
        """The one that all of its orders are pinned to."""
        return self.orders[0].version


def plan_row(config: LearnerConfig, row: int, version_of: Callable[[str], str]) -> list[Cell]:
    """The cells of row `row` that a figure needs, each pinned to the version for its task.

    Row 0 and the last row measure every task, rows between them the task that was just trained
    (NBT needs S(j, j) and S(T, j)); greedy covers the trained tasks in the first and last row, and
    every task where nothing is trained. Rollouts at temperature 0 are greedy already.
    """
    suite, evaluation = config.suite, config.evaluation
    last = len(suite.train_tasks)
    whole = row in (0, last) or evaluation.full_matrix
    tasks = [*suite.train_tasks, *suite.held_out_tasks] if whole else [suite.train_tasks[row - 1]]
    wanted = [(ROLLOUT, task) for task in tasks]
    if evaluation.greedy and config.temperature > 0 and row in (0, last):
        only_measured = config.algorithm.iterations_per_task == 0
        wanted += [(GREEDY, task) for task in (tasks if only_measured else suite.train_tasks)]
    return [
        Cell(row, mode, task, _orders(config, row, mode, task, version_of(task)))
        for mode, task in wanted
    ]


def count_cell(cell: Cell, episodes: Mapping[str, EpisodeRow]) -> tuple[int, int]:
    """(successes, trials) of a cell from the counted episodes by slot id.

    Init states whose orders nobody can carry out are not among the trials.
    """
    slots = [f"{order.order_id}#{k}" for order in cell.orders for k in range(order.slots)]
    trials = [episodes[slot].success for slot in slots if slot in episodes]
    return sum(trials), len(trials)


def empty_matrices(config: LearnerConfig) -> dict[str, SuccessMatrix]:
    """A matrix for each mode; its columns are the trained tasks, then the held-out ones."""
    suite = config.suite
    columns = [*suite.train_tasks, *suite.held_out_tasks]
    return {
        mode: SuccessMatrix(columns, list(suite.train_tasks), list(suite.held_out_tasks))
        for mode in (ROLLOUT, GREEDY)
    }


def mode_temperature(config: LearnerConfig, mode: str) -> float:
    """Of sampling; 0 is greedy."""
    return 0.0 if mode == GREEDY else config.temperature


def conditions(config: LearnerConfig, mode: str) -> dict[str, Any]:
    """What a success rate of `mode` is measured under: no rate is told without.

    success: "once", at any step, or "at_end", at the last one.
    """
    return {
        "protocol": config.suite.protocol,
        "temperature": mode_temperature(config, mode),
        "success": ONCE if config.suite.stop_at_success else AT_END,
    }


def _orders(
    config: LearnerConfig, row: int, mode: str, slug: str, version: str
) -> tuple[Order, ...]:
    task, evaluation = config.task(slug), config.evaluation
    held_out = slug in config.suite.held_out_tasks
    slots = evaluation.held_out_slots_per_state if held_out else evaluation.slots_per_state
    if evaluation.middle_slots_per_state is not None and 0 < row < len(config.suite.train_tasks):
        slots = evaluation.middle_slots_per_state
    temperature = mode_temperature(config, mode)
    return tuple(
        Order(
            order_id=f"eval/{row}/{mode}/{slug}/{state}",
            suite=config.suite.name,
            task=slug,
            instruction=instruction_for(config, slug, "eval", state),
            split="eval",
            init_state=state,
            horizon_steps=task.horizon_steps,
            slots=slots if temperature > 0 else 1,
            phase=Phase.EVAL,
            version=version,
            temperature=temperature,
            run_seed=config.seed,
            noise_key=f"eval/{mode}/{slug}/{state}",
            row=row,
            mode=mode,
        )
        for state in range(config.suite.eval_init_states)
    )
