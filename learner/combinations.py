"""Settings that are each in order and mean nothing together; every refusal says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.config import require

if TYPE_CHECKING:
    from learner.config import LearnerConfig

NEED_LAST_EPISODES = ("ewc", "der")  # of each task learned; er does without demonstrations


def refuse_combinations(config: LearnerConfig) -> None:
    """Raises ConfigError for the first that does not fit the rest."""
    algorithm, continual = config.algorithm, config.continual
    needs_episodes = continual.method in NEED_LAST_EPISODES or (
        continual.er is not None and not continual.er.demonstrations
    )
    require(
        not (needs_episodes and algorithm.method == "sft"),
        f"continual.method={continual.method} looks back at the episodes of earlier tasks, and "
        "algorithm.method=sft collects none; choose another of the two, or for er name "
        "continual.er.demonstrations",
    )
    require(
        not needs_episodes or config.keep_used_episodes,
        f"continual.method={continual.method} looks back at the episodes of earlier tasks: set "
        "keep_used_episodes=true",
    )
    require(
        not (continual.method == "multitask" and algorithm.grouping == "task"),
        "continual.method=multitask has episodes of all tasks in one iteration, and "
        "algorithm.grouping=task compares them all with each other; set grouping=init_state",
    )
