"""CRL-VLA in whole runs: the heads over the step between tasks, resuming, and what it reports."""

import json

import pytest
from learner_run import Crash, Run, make_config
from test_ppo import same

from learner.algorithm_config import PpoConfig
from learner.checkpoint import CheckpointError, CheckpointFolder
from learner.continual.settings import ContinualConfig, CrlVlaConfig


def config_of(kind):
    """Two iterations a task; without a kind, PPO alone."""
    continual = None
    if kind is not None:
        crl_vla = CrlVlaConfig(
            critic=kind, draws=2, kl_weight=1.0, value_weight=5.0, batch_size=4, chunks_per_task=6
        )
        continual = ContinualConfig("crl-vla", crl_vla=crl_vla)
    ppo = PpoConfig(hidden_sizes=[8, 4], value_lr=1e-2)
    return make_config(
        continual, method="ppo", ppo=ppo, resample_degenerate=0, iterations_per_task=2
    )


def last_checkpoint(run):
    last = run.store.last_update()
    folder = CheckpointFolder(run.folder / "state" / "checkpoints")
    return folder.load(last.checkpoint, last.checkpoint_sha256)


def head(tensors, name):
    return {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}


@pytest.fixture(scope="module", params=["v", "q"])
def whole(tmp_path_factory, request):
    run = Run(tmp_path_factory.mktemp(request.param), config_of(request.param))
    run.go()
    return request.param, run


@pytest.mark.slow
@pytest.mark.parametrize("update", [3, 4], ids=["between the tasks", "within the second"])
def test_a_run_killed_and_resumed_freezes_and_learns_the_same(whole, update, tmp_path):
    kind, run = whole
    killed = Run(tmp_path, config_of(kind), crash_at=(update, "before_commit"))
    with pytest.raises(Crash):
        killed.go()
    killed.restore()
    before, after = last_checkpoint(killed), last_checkpoint(run)
    frozen = head(after.critic, "goal_head.")
    source = "monte_carlo_head." if update == 3 else "goal_head."
    assert same(frozen, head(before.critic, source))
    assert not same(frozen, head(after.critic, "monte_carlo_head."))
    killed.store.close()
    resumed = Run(tmp_path, config_of(kind), agent=killed.agent)
    resumed.go()
    assert resumed.adapters.versions() == run.adapters.versions()
    mine = last_checkpoint(resumed)
    for name in ("critic", "optimizer", "continual"):
        assert getattr(mine, name).keys() == getattr(after, name).keys()
        assert same(getattr(mine, name), getattr(after, name))
    assert not any("goal_head" in name for name in after.optimizer)
    assert any("monte_carlo_head" in name for name in after.optimizer)


def test_the_drift_is_reported_from_the_second_task_on(whole):
    _, run = whole
    text = (run.folder / "state/progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["event"] == "iteration"]
    assert ["crl_value_drift" in line for line in lines] == [False, False, True, True]
    assert [line["memory_chunks"] for line in lines] == [0, 0, 6, 6]
    assert lines[-1]["crl_value_drift"] > 0
    assert lines[-1]["crl_kl"] > 0


def test_a_run_with_another_critic_is_not_gone_on_with(tmp_path):
    first = Run(tmp_path, config_of(None), crash_at=(2, "before_commit"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    sha256 = first.store.last_update().checkpoint_sha256
    (tmp_path / "state" / "fork.json").write_text(json.dumps({"checkpoint_sha256": sha256}))
    first.store.close()
    with pytest.raises(CheckpointError, match=r"another critic than the DualCritic.*same critic"):
        Run(tmp_path, config_of("v"), agent=first.agent).go()
