"""A perturbed instruction reaches the orders, is another one, and is one that can be read."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from agent.wire.messages import Order
from deploy.local.composition import CONFIGS
from learner.algorithm_config import AlgorithmConfig
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.evaluation import plan_row
from learner.instructions import instruction_for, rephrasings

SUITES = sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml"))


def tasks_of(suite: str) -> list[tuple[str, str]]:
    loaded = OmegaConf.load(CONFIGS / "suite" / f"{suite}.yaml")
    return [(task.slug, task.instruction) for task in loaded.tasks]


def config_of(name: str) -> LearnerConfig:
    tasks = [TaskConfig(slug, text, 10) for slug, text in tasks_of("tabletop")]
    suite = SuiteConfig(
        name=name,
        tasks=tasks,
        train_tasks=["push_left"],
        held_out_tasks=["drawer_open"],
        eval_init_states=20,
    )
    return LearnerConfig(suite=suite, algorithm=AlgorithmConfig())


@pytest.mark.parametrize("suite", SUITES)
def test_every_shipped_instruction_has_other_words(suite: str) -> None:
    for _, instruction in tasks_of(suite):
        others = rephrasings(instruction)
        assert others
        assert instruction not in others
        assert len(set(others)) == len(others)
        assert all("{" not in other and "  " not in other for other in others)


def test_deeds_are_not_taken_apart() -> None:
    for instruction in ("open the drawer and put the bowl inside", "put both mugs on the plate"):
        assert all(instruction in other for other in rephrasings(instruction))


def test_the_nano_policy_knows_every_word() -> None:
    known = {word for _, text in tasks_of("tabletop") for word in text.split()}
    told = {
        word for _, text in tasks_of("tabletop") for r in rephrasings(text) for word in r.split()
    }
    assert told <= known


def test_orders_of_a_perturbed_suite_carry_other_words_the_same_in_every_row() -> None:
    clean, perturbed = config_of("tabletop"), config_of("tabletop-camera-instruction")
    rows = [
        [order for cell in plan_row(perturbed, row, lambda task: "0") for order in cell.orders]
        for row in (0, 1)
    ]
    told = [{(o.task, o.init_state): o.instruction for o in orders} for orders in rows]
    assert told[0] == told[1]
    own = dict(tasks_of("tabletop"))
    assert all(text in rephrasings(own[task]) for (task, _), text in told[0].items())
    assert len({text for (task, _), text in told[0].items() if task == "push_left"}) == 2
    orders: list[Order] = rows[0]
    assert {order.suite for order in orders} == {"tabletop-camera-instruction"}
    assert instruction_for(clean, "push_left", "eval", 0) == own["push_left"]
    assert instruction_for(config_of("tabletop-camera"), "push_left", "eval", 0) == own["push_left"]
