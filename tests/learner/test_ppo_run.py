"""PPO in the loop: the critic is resumed with everything else, and published with nothing."""

import json

import pytest
from learner_run import STATE_SIZE, Crash, Run, make_config
from test_ppo import same

from learner.algorithm_config import PpoConfig
from learner.checkpoint import CheckpointFolder
from learner.critic import ValueHead


def ppo_config():
    ppo = PpoConfig(hidden_sizes=[8, 4], value_lr=1e-2)
    # One optimiser for both tasks, so that the second update shows whether its state was resumed.
    return make_config(method="ppo", ppo=ppo, resample_degenerate=0, fresh_optimizer_per_task=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("ppo"), ppo_config())
    run.go()
    return run


def last_checkpoint(run):
    last = run.store.last_update()
    return CheckpointFolder(run.folder / "state" / "checkpoints").load(
        last.checkpoint, last.checkpoint_sha256
    )


def test_a_run_trains_on_every_episode_and_tells_what_the_critic_does(uninterrupted):
    assert len(uninterrupted.adapters.versions()) == 2
    counts = uninterrupted.store.counts()
    assert counts["trained"] == 2 * 2 * 3
    assert counts["filtered"] == counts["pending"] == 0
    text = (uninterrupted.folder / "state/progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in (line for line in lines if line["event"] == "iteration"):
        assert line["value_loss"] > 0
        assert line["explained_variance"] <= 1
        assert line["degenerate_groups"] == 0


def test_the_critic_is_in_the_checkpoint_and_in_no_published_file(uninterrupted):
    checkpoint = last_checkpoint(uninterrupted)
    assert same(dict(checkpoint.critic), uninterrupted.critic.state_dict())
    assert any(name.startswith("critic.") for name in checkpoint.optimizer)
    fresh = ValueHead(STATE_SIZE, [8, 4], seed=0).state_dict()
    assert not same(fresh, dict(checkpoint.critic))
    assert not any("critic" in name for name in checkpoint.adapter)
    for version in uninterrupted.adapters.versions():
        names = {path.name for path in uninterrupted.adapters.verify(version).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}


def test_a_kill_and_a_resume_change_neither_adapter_nor_critic(tmp_path, uninterrupted):
    first = Run(tmp_path, ppo_config(), crash_at=(2, "before_commit"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    second = Run(tmp_path, ppo_config(), agent=first.agent)
    second.go()
    assert second.adapters.versions() == uninterrupted.adapters.versions()
    mine, theirs = last_checkpoint(second), last_checkpoint(uninterrupted)
    assert mine.critic.keys() == theirs.critic.keys()
    assert mine.optimizer.keys() == theirs.optimizer.keys()
    assert same(mine.critic, theirs.critic)
    assert same(mine.optimizer, theirs.optimizer)
