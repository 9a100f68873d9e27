"""Continual methods in whole runs: what they come to where they should do nothing, and resuming."""

import json

import pytest
from learner_run import Crash, Run, make_config
from test_ppo import same

from learner.continual.settings import (
    ContinualConfig,
    DerConfig,
    ErConfig,
    EwcConfig,
    RetainConfig,
    SlcaConfig,
)

LEARN = {"fresh_optimizer_per_task": True, "iterations_per_task": 1}
METHODS = {
    "ewc": ContinualConfig("ewc", ewc=EwcConfig(weight=50.0, samples=4)),
    "er": ContinualConfig("er", er=ErConfig(1.0, batch_size=6, chunks_per_task=5)),
    "der": ContinualConfig("der", der=DerConfig(1.0, batch_size=6, chunks_per_task=5)),
    "der-base": ContinualConfig("der", der=DerConfig(1.0, batch_size=6, teacher="base")),
    "retain": ContinualConfig("retain", retain=RetainConfig(0.5)),
    "slca": ContinualConfig("slca", slca=SlcaConfig(0.1)),
    "dwe": ContinualConfig("dwe"),
}
IN_FULL = ("ewc", "er")  # of the methods, by the fast tests; the others by the slow ones
IN_SHORT = "er"  # killed in the middle of a task by the fast tests; the others by the slow ones
WITH_STATE = (IN_SHORT, "ewc", "der", "retain")
AT_ONCE = ("retain", "slca")  # what these make of the first task already is not what was trained
# At which one run is killed, one after the other, and how many updates are then kept. A process
# that goes on publishes the last one again: its second is that of the second task.
MOMENTS = (((2, "before_commit"), 1), ((2, "before_publish"), 2))
# Settings with which a method must be sequential fine-tuning, to the last bit.
NOTHING = {
    "ewc": ContinualConfig("ewc", ewc=EwcConfig(weight=0.0, samples=4)),
    "er": ContinualConfig("er", er=ErConfig(weight=0.0, batch_size=6)),
    "der": ContinualConfig("der", der=DerConfig(weight=0.0, batch_size=6)),
    "slca": ContinualConfig("slca", slca=SlcaConfig(1.0)),
}


def finish(folder, continual, **changes):
    run = Run(folder, make_config(continual, **LEARN), **changes)
    run.go()
    return run


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("sequential"), ContinualConfig())


@pytest.mark.parametrize("name", NOTHING)
def test_without_weight_a_method_is_sequential_fine_tuning(name, sequential, tmp_path):
    run = finish(tmp_path, NOTHING[name])
    assert run.adapters.versions() == sequential.adapters.versions()


def test_one_task_merged_whole_is_not_merged(sequential, tmp_path):
    run = finish(tmp_path, ContinualConfig("retain", retain=RetainConfig(1.0)))
    ours, theirs = run.adapters.versions(), sequential.adapters.versions()
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]  # what follows is learned by a fresh adapter


@pytest.mark.parametrize(
    "name",
    [n if n in IN_FULL else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_a_method_changes_the_second_task_and_resumes_as_if_never_killed(
    name, sequential, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run = finish(whole, METHODS[name])
    ours, theirs = run.adapters.versions(), sequential.adapters.versions()
    assert (ours[0] == theirs[0]) == (name not in AT_ONCE)
    assert ours[1] != theirs[1]
    agent = None
    for crash_at, committed in MOMENTS:
        ended = Run(killed, make_config(METHODS[name], **LEARN), agent, crash_at)
        with pytest.raises(Crash):
            ended.go()
        ended.restore()
        assert ended.store.last_update().update_id == committed
        ended.store.close()
        agent = ended.agent
    resumed = finish(killed, METHODS[name], agent=agent)
    assert resumed.adapters.versions() == ours
    assert same(resumed.continual.state(), run.continual.state())


@pytest.mark.parametrize(
    "name", [IN_SHORT, *(pytest.param(n, marks=pytest.mark.slow) for n in WITH_STATE[1:])]
)
def test_killed_in_the_middle_of_the_second_task_it_goes_on_with_what_it_remembers(name, tmp_path):
    """What a method made when the task began is then in the checkpoint alone."""
    learn, runs = {**LEARN, "iterations_per_task": 2}, {}
    for part in ("whole", "killed"):
        (tmp_path / part).mkdir()
        crash_at = (4, "before_commit") if part == "killed" else None
        runs[part] = Run(tmp_path / part, make_config(METHODS[name], **learn), crash_at=crash_at)
    runs["whole"].go()
    with pytest.raises(Crash):
        runs["killed"].go()
    runs["killed"].restore()
    runs["killed"].store.close()
    resumed = Run(
        tmp_path / "killed", make_config(METHODS[name], **learn), agent=runs["killed"].agent
    )
    resumed.go()
    assert resumed.adapters.versions() == runs["whole"].adapters.versions()
    assert resumed.continual.state()
    assert same(resumed.continual.state(), runs["whole"].continual.state())


def test_a_run_gone_on_with_begins_without_what_another_method_remembers(tmp_path):
    """Forked in the middle of the second task, where replay has a memory and its heir none."""
    learn = {**LEARN, "iterations_per_task": 2}
    first = Run(tmp_path, make_config(METHODS["er"], **learn), crash_at=(4, "before_commit"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    assert first.continual.state()
    sha256 = first.store.last_update().checkpoint_sha256
    (tmp_path / "state" / "fork.json").write_text(json.dumps({"checkpoint_sha256": sha256}))
    first.store.close()
    heir = Run(tmp_path, make_config(METHODS["der"], **learn), agent=first.agent)
    heir.go()
    assert heir.store.last_update().metrics["memory_chunks"] == 0
    assert heir.continual.state() == {}
