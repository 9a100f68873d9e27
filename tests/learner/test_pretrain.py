"""Behaviour cloning: its loss, its exact resumption, and the supervised control beside GRPO."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closeness import assert_near
from micro_fixtures import INSTRUCTIONS, A, K, micro_config, micro_policy, write_micro_tokenizer

from agent.model.nano import init_nano
from agent.model.processing import PromptEncoder
from learner.demonstrations import DemonstrationError, load_demonstrations
from learner.pretrain import (
    FrameSampler,
    PretrainConfig,
    Stage,
    act_stage,
    learning_rate_at,
    see_stage,
    soft_label_loss,
)
from learner.sft import SftSettings, SupervisedUpdater
from learner.update import build_optimizer

CONFIG = PretrainConfig(
    batch_size=4, see_steps=6, act_steps=6, act_schedule_steps=9, checkpoint_every=2
)


@pytest.fixture
def shards(tmp_path):
    """Two shards of random frames whose expert moves by the first proprio value."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "demos"
    folder.mkdir()
    slugs = [{"slug": f"task{i}", "instruction": text} for i, text in enumerate(INSTRUCTIONS)]
    (folder / "meta.json").write_text(json.dumps({"tasks": slugs}))
    for shard in range(2):
        frames = 20
        proprio = rng.uniform(-1, 1, (frames, 8)).astype(np.float32)
        actions = np.repeat(proprio[:, None, :1], K, axis=1).repeat(A, axis=2)
        np.savez(
            folder / f"shard-{shard:05d}.npz",
            agentview=rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
            wrist=rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
            proprio=proprio,
            task=rng.integers(0, 2, frames).astype(np.int16),
            actions=np.sign(actions) * np.abs(actions),
            state=rng.normal(size=(frames, 5)).astype(np.float32),
            target=rng.normal(size=(frames, 6)).astype(np.float32),
        )
    return folder


def make_stage(make, shards, tmp_path, variant="oft-discrete") -> tuple[Stage, FrameSampler]:
    torch.manual_seed(0)
    model = init_nano(micro_config(write_micro_tokenizer(tmp_path), variant), seed=0)
    demos = load_demonstrations([shards])
    prompts = PromptEncoder(tmp_path, model.config)
    sampler = FrameSampler(demos, prompts, model, "micro", CONFIG)
    return make(model, sampler, CONFIG), sampler


def test_a_narrow_soft_label_is_the_hard_label() -> None:
    logits = torch.randn(2, K, A, 16, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 16, (2, K, A), generator=torch.Generator().manual_seed(1))
    hard = F.cross_entropy(logits.flatten(0, 2), tokens.flatten())
    assert_near(soft_label_loss(logits, tokens, sigma_bins=1e-3), hard)


def test_a_near_miss_costs_less_than_a_far_one_except_for_the_gripper() -> None:
    def cost(dim: int, guess: int) -> float:
        logits = torch.zeros(1, 1, A, 16)
        logits[0, 0, dim, guess] = 5.0
        return soft_label_loss(logits, torch.full((1, 1, A), 8), sigma_bins=2.0).item()

    assert cost(0, 9) < cost(0, 14)
    assert math.isclose(cost(A - 1, 9), cost(A - 1, 14), rel_tol=1e-6)


def test_the_rate_rises_then_falls_to_a_fiftieth() -> None:
    rates = [learning_rate_at(step, 100, 1.0, 10) for step in range(101)]
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(rates[100], 0.02)


def test_demonstrations_without_a_known_scene_still_teach_to_act(shards, tmp_path) -> None:
    for path in shards.glob("*.npz"):
        arrays = dict(np.load(path))
        unknown = {name: arrays[name][:, :0] for name in ("state", "target")}
        np.savez(path, **(arrays | unknown))
    losses = []
    stage, sampler = make_stage(act_stage, shards, tmp_path)
    stage.run(sampler, tmp_path / "act.pt", lambda step, figures: losses.append(figures))
    assert all(math.isfinite(figures["loss"]) for figures in losses)
    assert {figures["target"] for figures in losses} == {0.0}


@pytest.mark.parametrize("variant", ["oft-discrete", "cnn"])
@pytest.mark.parametrize("make", [see_stage, act_stage])
def test_a_killed_run_resumes_to_the_same_weights(make, variant, shards, tmp_path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    whole, sampler = make_stage(make, shards, tmp_path, variant)
    whole.run(sampler, tmp_path / "whole.pt", lambda step, figures: None)
    first, sampler = make_stage(make, shards, tmp_path, variant)
    with pytest.raises(Killed):
        first.run(sampler, tmp_path / "killed.pt", kill)
    second, sampler = make_stage(make, shards, tmp_path, variant)
    second.run(sampler, tmp_path / "killed.pt", lambda step, figures: None)
    for name, value in whole.average.items():
        assert torch.equal(value, second.average[name]), name


def test_a_shard_without_an_array_is_refused(shards) -> None:
    path = shards / "shard-00001.npz"
    with np.load(path) as archive:
        np.savez(path, **{k: archive[k] for k in archive.files if k != "wrist"})
    with pytest.raises(DemonstrationError, match="wrist"):
        load_demonstrations([shards])


def test_supervised_updates_fit_the_demonstrations_and_repeat(shards, tmp_path) -> None:
    def train() -> tuple[list[float], bytes]:
        policy = micro_policy(tmp_path)
        demos = load_demonstrations([shards], ["task0"])
        optimizer = build_optimizer(policy.parameters, 1e-2, 0.0)
        settings = SftSettings(steps=5, batch_size=8, clip_norm=1.0, seed=0)
        updater = SupervisedUpdater(policy, optimizer, demos, ["agentview", "wrist"], settings)
        losses = [updater.run(update).means["loss"] for update in range(4)]
        return losses, policy.adapter_files()["adapter_model.safetensors"]

    losses, adapter = train()
    assert losses[-1] < losses[0]
    assert train() == (losses, adapter)
