"""Which episodes to order, and complete groups with advantages once they are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.wire.messages import Order, Phase
from learner.advantages import is_degenerate, leave_one_out, normalise_group
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.curriculum import stage_at
from learner.instructions import instruction_for
from learner.randomness import keyed_rng
from learner.store import EpisodeRow


@dataclass(frozen=True)
class GroupPlan:
    """The orders whose slots, in order, make one group."""

    index: int  # within the iteration
    orders: tuple[Order, ...]

    @property
    def slot_ids(self) -> list[str]:
        """Slot ids in the order in which the group is consumed."""
        return [f"{order.order_id}#{k}" for order in self.orders for k in range(order.slots)]


@dataclass(frozen=True)
class Group:
    """G episodes of one task that are compared with one another.

    Orders that nobody can carry out leave slots without an episode: `missing` slots of `refused`
    orders. They keep their share of what is counted, so that other groups train as they would.
    """

    index: int
    episodes: tuple[EpisodeRow, ...]  # in slot order
    advantages_G: np.ndarray
    degenerate: bool
    missing: int = 0
    refused: int = 0


class Collection:
    """The groups of one iteration: what to order, and when it is enough.

    `groups_per_iteration` groups first; then, as long as the allowance of extra groups lasts, one
    more for each degenerate group of the previous attempt. Everything follows from the place and
    the outcomes, so a resumed learner orders the same again.
    """

    def __init__(self, config: LearnerConfig, place: Place, version: str) -> None:
        self._config, self._place, self._version = config, place, version
        self._attempt = 0
        self._allowance = config.algorithm.resample_degenerate
        self.groups: list[Group] = []

    def first_plans(self) -> list[GroupPlan]:
        """The iteration's regular groups."""
        algorithm = self._config.algorithm
        if algorithm.grouping == "init_state":
            return self._plans(algorithm.groups_per_iteration)
        orders = tuple(
            self._order(index, slots=1)
            for index in range(algorithm.groups_per_iteration * algorithm.group_size)
        )
        return [GroupPlan(0, orders)]

    def complete(
        self, plans: Sequence[GroupPlan], episodes: Mapping[str, EpisodeRow]
    ) -> list[GroupPlan]:
        """Take the plans' episodes by slot id; returns what to order in addition, if anything."""
        formed = [self._form(plan, episodes) for plan in plans]
        self.groups += formed
        if self._config.algorithm.grouping == "task":
            return []
        again = min(self._allowance, sum(group.degenerate for group in formed))
        self._allowance -= again
        self._attempt += 1
        return self._plans(again)

    def _plans(self, count: int) -> list[GroupPlan]:
        first, size = len(self.groups), self._config.algorithm.group_size
        return [GroupPlan(i, (self._order(i, size),)) for i in range(first, first + count)]

    def _order(self, index: int, slots: int) -> Order:
        config, place = self._config, self._place
        stage = stage_at(config, place.task_index)
        task, cursor = stage.task_at(place.groups_used + index)
        task_index = config.suite.train_tasks.index(task.slug)
        order_id = f"train/{place.task_index}/{place.update_id + 1}/{self._attempt}/{index}"
        init_state = init_state_at(config.seed, task_index, cursor, config.suite.train_init_states)
        return Order(
            order_id=order_id,
            suite=config.suite.name,
            task=task.slug,
            instruction=instruction_for(config, task.slug, "train", init_state),
            split="train",
            init_state=init_state,
            horizon_steps=task.horizon_steps,
            slots=slots,
            phase=Phase.TRAIN,
            version=self._version,
            temperature=config.temperature,
            run_seed=config.seed,
            noise_key=order_id,
        )

    def _form(self, plan: GroupPlan, by_slot: Mapping[str, EpisodeRow]) -> Group:
        algorithm = self._config.algorithm
        episodes = [by_slot[slot] for slot in plan.slot_ids if slot in by_slot]
        rewards_G = np.array([float(episode.success) for episode in episodes])
        if algorithm.advantage_control == "permute_within_group":
            stream = f"permute/{self._place.update_id}/{self._attempt}"
            rewards_G = keyed_rng(self._config.seed, stream, plan.index).permutation(rewards_G)
        advantages = leave_one_out if algorithm.grouping == "task" else normalise_group
        missing = len(plan.slot_ids) - len(episodes)
        refused = len({o.order_id for o in plan.orders} - {e.order_id for e in episodes})
        if missing and len(episodes) < 2:
            nothing_G = np.zeros(len(episodes))
            return Group(plan.index, tuple(episodes), nothing_G, True, missing, refused)
        return Group(
            plan.index, tuple(episodes), advantages(rewards_G), is_degenerate(rewards_G),
            missing, refused,
        )  # fmt: skip


def place_ahead(config: LearnerConfig, place: Place, iterations: int) -> Place:
    """Where a learner will be so many iterations of the same task later, if none is resampled."""
    algorithm = config.algorithm
    episodes = algorithm.groups_per_iteration * algorithm.group_size
    orders = episodes if algorithm.grouping == "task" else algorithm.groups_per_iteration
    return replace(
        place,
        update_id=place.update_id + iterations,
        iteration=place.iteration + iterations,
        groups_used=place.groups_used + iterations * orders,
        episodes=place.episodes + iterations * episodes,
    )


def init_state_at(seed: int, task_index: int, cursor: int, count: int) -> int:
    """The cursor-th training init state: seeded shuffles of all `count`, one after another."""
    lap, position = divmod(cursor, count)
    return int(keyed_rng(seed, f"init_states/{task_index}", lap).permutation(count)[position])
