"""DPO in the loop: it pairs what GRPO collects, and a kill changes nothing."""

import json

import pytest
from learner_run import Crash, Run, make_config
from test_ppo import same

from learner.algorithm_config import DpoConfig
from learner.checkpoint import CheckpointFolder


def dpo_config():
    # One optimiser for both tasks, so that the second update shows whether its state was resumed.
    return make_config(method="dpo", dpo=DpoConfig(), fresh_optimizer_per_task=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("dpo"), dpo_config())
    run.go()
    return run


def last_checkpoint(run):
    last = run.store.last_update()
    return CheckpointFolder(run.folder / "state" / "checkpoints").load(
        last.checkpoint, last.checkpoint_sha256
    )


def test_a_run_filters_what_grpo_filters_and_tells_how_far_apart_the_pairs_are(uninterrupted):
    assert len(uninterrupted.adapters.versions()) == 2
    text = (uninterrupted.folder / "state/progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    iterations = [line for line in lines if line["event"] == "iteration"]
    for line in iterations:
        assert line["groups"] > line["degenerate_groups"]
        assert line["grad_norm"] > 0
        assert line["clip_fraction"] == 0.0
        assert line["lp_diff_max"] <= 1e-4
        assert {"loss", "margin", "preferred", "approx_kl"} <= line.keys()
    counts = uninterrupted.store.counts()
    assert counts["filtered"] == 3 * sum(line["degenerate_groups"] for line in iterations)
    assert counts["filtered"] + counts["trained"] == 3 * sum(line["groups"] for line in iterations)
    assert counts["pending"] == 0


def test_a_kill_and_a_resume_change_neither_adapter_nor_optimiser(tmp_path, uninterrupted):
    first = Run(tmp_path, dpo_config(), crash_at=(2, "before_commit"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    second = Run(tmp_path, dpo_config(), agent=first.agent)
    second.go()
    assert second.adapters.versions() == uninterrupted.adapters.versions()
    assert second.store.counts() == uninterrupted.store.counts()
    mine, theirs = last_checkpoint(second), last_checkpoint(uninterrupted)
    assert mine.optimizer.keys() == theirs.optimizer.keys()
    assert same(mine.optimizer, theirs.optimizer)


def test_shuffled_outcomes_change_who_is_preferred(tmp_path, uninterrupted):
    config = make_config(
        method="dpo",
        dpo=DpoConfig(),
        fresh_optimizer_per_task=False,
        advantage_control="permute_within_group",
    )
    run = Run(tmp_path, config)
    run.go()
    assert run.adapters.versions() != uninterrupted.adapters.versions()
