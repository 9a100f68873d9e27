"""In which order a run learns its tasks, and which of them together; follows from the settings."""

from dataclasses import dataclass

from learner.checkpoint import Place
from learner.config import LearnerConfig, TaskConfig


@dataclass(frozen=True)
class Stage:
    """Tasks that are learned together; row `row` of the success matrix is measured after it.

    A place within it has `task_index` = row - 1, its last task's.
    """

    tasks: tuple[TaskConfig, ...]
    row: int

    @property
    def task_index(self) -> int:
        """Of places within this stage."""
        return self.row - 1

    @property
    def name(self) -> str:
        """The tasks' names, joined."""
        return ",".join(task.slug for task in self.tasks)

    def task_at(self, cursor: int) -> tuple[TaskConfig, int]:
        """The task of the cursor-th order of a stage, and how many orders it had before."""
        turn, which = divmod(cursor, len(self.tasks))
        return self.tasks[which], turn


def stages(config: LearnerConfig) -> list[Stage]:
    """One task after another, or all at once (multitask: the oracle, at equal total episodes)."""
    tasks = [config.task(slug) for slug in config.suite.train_tasks]
    if config.continual.method == "multitask":
        return [Stage(tuple(tasks), len(tasks))]
    return [Stage((task,), row) for row, task in enumerate(tasks, start=1)]


def stage_at(config: LearnerConfig, task_index: int) -> Stage:
    """The stage in which a place has this task index."""
    return next(stage for stage in stages(config) if stage.task_index >= task_index)


def is_finished(config: LearnerConfig, stage: Stage, place: Place) -> bool:
    """Whether a learner at `place` is through with a stage."""
    algorithm, tasks = config.algorithm, len(stage.tasks)
    if place.task_index != stage.task_index:
        return place.task_index > stage.task_index
    limit = algorithm.max_episodes_per_task * tasks or float("inf")
    return place.iteration >= algorithm.iterations_per_task * tasks or place.episodes >= limit
