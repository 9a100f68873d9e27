"""Settings that are each in order and mean nothing together; every refusal says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.process.checks import require

if TYPE_CHECKING:
    from learner.config import LearnerConfig

# With new weights each task, an adapter or a critic's head, of which no optimiser knows.
START_AFRESH = ("retain", "dwe", "crl-vla")
# Of each task learned; er does, too, without demonstrations.
NEED_LAST_EPISODES = ("ewc", "der", "crl-vla")


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
        continual.method != "crl-vla" or algorithm.method == "ppo",
        "continual.method=crl-vla replaces the critic of algorithm.method=ppo, and "
        f"{algorithm.method} has none: take algorithm=ppo-nano",
    )
    require(
        continual.method not in START_AFRESH or algorithm.fresh_optimizer_per_task,
        f"continual.method={continual.method} trains fresh weights each task, to which the "
        "optimiser's moments of the last ones mean nothing; set "
        "algorithm.fresh_optimizer_per_task=true",
    )
    require(
        not config.start_adapter or algorithm.iterations_per_task == 0,
        "start_adapter is only measured, and training begins at the base: set "
        "algorithm.iterations_per_task=0, or train on a base that `perennial model merge` has "
        "merged the adapter into",
    )
    require(
        config.start_adapter or config.start_adapter_scale == 1,
        f"start_adapter_scale={config.start_adapter_scale:g} scales nothing without an adapter: "
        "name one with start_adapter, or leave it at 1",
    )
    require(
        not (continual.method == "retain" and algorithm.full_rank),
        "continual.method=retain publishes an adapter whose rank grows by lora_rank a task, and "
        "algorithm.full_rank has the largest there is; choose one of the two",
    )
    require(
        not (continual.method == "retain" and algorithm.staleness > 0),
        "continual.method=retain publishes merged updates and the new one as one adapter, and "
        "algorithm.asynchronous restores earlier versions to check their samples, which it could "
        "not from that; set algorithm.asynchronous=null",
    )
    require(
        not (continual.method == "multitask" and algorithm.grouping == "task"),
        "continual.method=multitask has episodes of all tasks in one iteration, and "
        "algorithm.grouping=task compares them all with each other; set grouping=init_state",
    )
