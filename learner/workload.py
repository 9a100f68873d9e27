"""How much a run will do, counted from the learner's settings: episodes, steps, chunks, samples.

Bounds, not expectations: every episode runs to its horizon unless a mean length is given, every
group is trained on, and no chunk is computed twice. Evaluation is counted from the very orders
that the learner will post.
"""

from dataclasses import dataclass
from math import ceil

from learner.config import LearnerConfig
from learner.curriculum import Stage, stages
from learner.evaluation import plan_row


@dataclass(frozen=True)
class Played:
    """Episodes, their control steps in the environment, and the chunks asked of the server."""

    episodes: int = 0
    steps: int = 0
    chunks: int = 0

    def __add__(self, other: "Played") -> "Played":
        return Played(
            self.episodes + other.episodes, self.steps + other.steps, self.chunks + other.chunks
        )


@dataclass(frozen=True)
class Workload:
    """What a run does.

    Attributes:
        largest_iteration: the training episodes of one iteration, whose samples are in memory.
        resampled: training episodes that degenerate groups may cost besides, at most.
        updates: iterations of all tasks.
        optimizer_steps: of all of them.
        samples_trained: chunks through a forward and a backward, each pass counted.
        samples_scored: chunks through a forward of the learner besides.
    """

    training: Played
    evaluation: Played
    largest_iteration: Played
    resampled: int
    updates: int
    optimizer_steps: int
    samples_trained: int
    samples_scored: int


def count_workload(
    config: LearnerConfig, chunk_steps: int, mean_steps: int | None = None
) -> Workload:
    """The whole run's.

    Args:
        chunk_steps: control steps that one chunk lasts.
        mean_steps: of an episode; None: its horizon. A horizon bounds it.
    """
    algorithm = config.algorithm
    training, largest, updates = Played(), Played(), 0
    for stage in _stages(config):
        iteration = _iteration(config, stage, chunk_steps, mean_steps)
        count = _iterations(config, stage)
        training += Played(*(count * n for n in (iteration.episodes, iteration.steps,
                                                 iteration.chunks)))  # fmt: skip
        largest = max(largest, iteration, key=lambda played: played.chunks)
        updates += count
    resampled = updates * algorithm.resample_degenerate * algorithm.group_size
    trained = training.chunks * algorithm.epochs
    steps_each = algorithm.optimizer_steps_per_iteration * algorithm.epochs
    if algorithm.method == "sft":
        steps_each = config.sft.steps_per_iteration
        trained, resampled = updates * steps_each * config.sft.batch_size, 0
    # PPO values all chunks once an iteration; stale ones are scored for the proximal policy, but
    # for the first minibatch. DPO weighs its pairs before each backward.
    scored_once = training.chunks if algorithm.ppo is not None else 0
    if algorithm.staleness > 0:
        minibatches = algorithm.optimizer_steps_per_iteration
        scored_once = training.chunks * (minibatches - 1) // minibatches
    return Workload(
        training=training,
        evaluation=_evaluation(config, chunk_steps, mean_steps),
        largest_iteration=largest,
        resampled=0 if algorithm.grouping == "task" else resampled,
        updates=updates,
        optimizer_steps=updates * steps_each,
        samples_trained=trained + _replayed(config, steps_each),
        samples_scored=trained if algorithm.method == "dpo" else scored_once,
    )


def _stages(config: LearnerConfig) -> list[Stage]:
    """Those that are learned before the run stops."""
    last = config.last_row
    return [stage for stage in stages(config) if last is None or stage.row <= last]


def _iterations(config: LearnerConfig, stage: Stage) -> int:
    """A limit on episodes lets no new iteration begin beyond it."""
    algorithm, tasks = config.algorithm, len(stage.tasks)
    count = algorithm.iterations_per_task * tasks
    if algorithm.max_episodes_per_task:
        episodes = algorithm.groups_per_iteration * algorithm.group_size
        count = min(count, ceil(algorithm.max_episodes_per_task * tasks / episodes))
    return count


def _iteration(
    config: LearnerConfig, stage: Stage, chunk_steps: int, mean_steps: int | None
) -> Played:
    """One iteration's episodes; tasks that are learned together have equal shares."""
    if config.algorithm.method == "sft":
        return Played()
    episodes = config.algorithm.groups_per_iteration * config.algorithm.group_size
    each = [_play(task.horizon_steps, chunk_steps, mean_steps) for task in stage.tasks]
    steps, chunks = (
        round(episodes * sum(values) / len(each)) for values in zip(*each, strict=True)
    )
    return Played(episodes, steps, chunks)


def _replayed(config: LearnerConfig, steps_each: int) -> int:
    """Remembered chunks that are learned beside new ones, from the second task on."""
    replay = config.continual.er or config.continual.der or config.continual.crl_vla
    if replay is None:
        return 0
    updates = sum(_iterations(config, stage) for stage in _stages(config)[1:])
    return updates * steps_each * replay.batch_size


def _evaluation(config: LearnerConfig, chunk_steps: int, mean_steps: int | None) -> Played:
    trains = config.algorithm.iterations_per_task > 0
    rows = [0, *(stage.row for stage in _stages(config))] if trains else [0]
    total = Played()
    for row in rows:
        for cell in plan_row(config, row, lambda task: "counted"):
            for order in cell.orders:
                steps, chunks = _play(order.horizon_steps, chunk_steps, mean_steps)
                total += Played(order.slots, order.slots * steps, order.slots * chunks)
    return total


def _play(horizon_steps: int, chunk_steps: int, mean_steps: int | None) -> tuple[int, int]:
    """Steps and chunks of one episode."""
    steps = horizon_steps if mean_steps is None else min(horizon_steps, mean_steps)
    return steps, ceil(steps / chunk_steps)
