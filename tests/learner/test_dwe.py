"""An adapter per task: what each begins with and is evaluated with, and what then is exactly 0."""

import pytest
from learner_run import Run, make_config

from agent.wire.errors import ConfigError
from agent.wire.messages import BASE_VERSION, Phase
from learner.continual.settings import ContinualConfig

FRESH = {"fresh_optimizer_per_task": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = make_config(ContinualConfig("dwe"), **FRESH)
    config.evaluation.full_matrix = True
    run = Run(tmp_path_factory.mktemp("dwe"), config)
    run.together, post = [], run.agent.post_orders

    def record(orders):
        run.together.append({order.version for order in orders})
        post(orders)

    run.agent.post_orders = record
    run.go()
    return run


def test_every_task_begins_at_the_base(run):
    training = [order for order in run.agent.orders.values() if order.phase == Phase.TRAIN]
    assert {order.task for order in training} == {"a", "b"}
    assert {order.version for order in training} == {BASE_VERSION}
    parents = [run.adapters.manifest(version).parent for version in run.adapters.versions()]
    assert parents == [BASE_VERSION] * 2


def test_every_task_is_evaluated_with_its_own_version(run):
    first, second = run.adapters.versions()
    expected = {
        1: {"a": first, "b": BASE_VERSION, "h": BASE_VERSION},
        2: {"a": first, "b": second, "h": BASE_VERSION},
    }
    for row, version_of in expected.items():
        orders = [o for o in run.agent.orders.values() if o.phase == Phase.EVAL and o.row == row]
        assert {order.task: order.version for order in orders} == version_of


def test_the_server_is_asked_for_one_version_at_a_time(run):
    assert {len(versions) for versions in run.together} == {1}


def test_nothing_is_forgotten_and_nothing_passed_on(run):
    matrix = run.loop.matrices["rollout"]
    assert matrix.nbt_final().value == 0.0
    assert matrix.fwt_zero().value == 0.0
    assert matrix.zero_shot(2).value == matrix.zero_shot(0).value
    assert matrix.final_average().value != matrix.base_average().value  # what is 0 could differ


def test_an_optimiser_that_outlives_the_adapter_is_refused():
    with pytest.raises(ConfigError, match="fresh_optimizer_per_task=true"):
        make_config(ContinualConfig("dwe"), fresh_optimizer_per_task=False)
