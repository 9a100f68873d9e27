"""Whole weights as an adapter: every step is the one that would be taken on the weights."""

import dataclasses

import numpy as np
import pytest
import torch
from closeness import GRADIENT, assert_near
from learner_run import make_config
from micro_fixtures import CAMERAS, micro_policy
from safetensors.torch import load
from test_update import SETTINGS, group_of

from agent.model.lora import WEIGHTS_NAME, AdapterError
from agent.wire.errors import ConfigError
from learner.batch import build_samples
from learner.continual.settings import ContinualConfig, RetainConfig
from learner.update import Updater, build_optimizer

RANK = 32  # of the micro model: its projector's first weight is 128 x 32
RATE = 1e-3


class WeightsThemselves:
    """The same base, its adapted weights trained as they are; stands where a LoraPolicy does."""

    def __init__(self, policy):
        self.score = policy.score
        with torch.no_grad():
            for parameter in policy.parameters.values():
                parameter.zero_().requires_grad_(False)
        self.parameters = {
            name.removesuffix(".base_layer.weight"): tensor.requires_grad_(True)
            for name, tensor in policy._peft.named_parameters()
            if name.endswith(".base_layer.weight")
        }


def at_the_base(policy):
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.zero_()
    return policy


@pytest.fixture
def both(tmp_path):
    (tmp_path / "plain").mkdir()
    whole = at_the_base(micro_policy(tmp_path, rank=RANK, full_rank=True))
    return whole, WeightsThemselves(micro_policy(tmp_path / "plain"))


def learn(policy, samples, settings=SETTINGS):
    """GRPO's AdamW steps; returns the gradient of the first minibatch by name, clipped."""
    updater = Updater(policy, build_optimizer(policy.parameters, RATE, 0.0), settings)
    updater.run(samples, 4, update_id=1)
    return {name: parameter.grad for name, parameter in policy.parameters.items()}


def updates(policy):
    """Module -> B A as published."""
    tensors = load(policy.adapter_files()[WEIGHTS_NAME])
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")].flatten(1)
        @ tensor.flatten(1)
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }


def test_grpo_steps_are_those_that_would_be_taken_on_the_weights(both):
    whole, direct = both
    before = {name: tensor.detach().clone() for name, tensor in direct.parameters.items()}
    samples = build_samples(group_of(whole, [1, 0, 0, 1]), CAMERAS)
    one = dataclasses.replace(SETTINGS, optimizer_steps=1)
    learn(whole, samples, one)
    gradients = learn(direct, samples, one)
    found, compared = updates(whole), 0
    assert found.keys() == before.keys()
    for name, start in before.items():
        moved = (direct.parameters[name].detach() - start).flatten(1)
        # Adam makes a whole step of the rounding of a gradient that is zero.
        sizes = gradients[name].flatten(1).abs()
        certain = sizes > max(1e-3 * sizes.max(), 1e-5)
        if certain.any():
            assert_near(found[name][certain], moved[certain], GRADIENT, name=name)
        compared += int(certain.sum())
    assert compared > 1000


def test_the_published_adapter_is_the_trained_weights(both, tmp_path):
    whole, direct = both
    samples = build_samples(group_of(whole, [1, 0, 0, 1]), CAMERAS)
    learn(whole, samples)
    with torch.no_grad():
        expected = whole.score(samples, np.arange(len(samples))).logprobs_BKA
        for name, update in updates(whole).items():
            weight = direct.parameters[name]
            weight.add_(update.view_as(weight))
        merged = direct.score(samples, np.arange(len(samples))).logprobs_BKA
    assert (expected - torch.from_numpy(samples.logprobs_BKA)).abs().max() > 1e-3
    assert_near(merged, expected)


def test_the_padding_and_the_identities_stay_as_they_are(both):
    whole, _ = both
    before = whole.adapter_tensors()
    assert sum(".lora_A." in name for name in whole.parameters) > 0
    assert sum(".lora_B." in name for name in whole.parameters) > 0
    learn(whole, build_samples(group_of(whole, [1, 0, 0, 1]), CAMERAS))
    after = whole.adapter_tensors()
    for name in (name for name in before if ".lora_A." in name):
        other = name.replace("lora_A", "lora_B")
        inputs, outputs = before[name][0].numel(), len(before[other])
        frozen, padding = (
            (name, after[other].flatten(1)[:, inputs:])
            if inputs <= outputs
            else (other, after[name][outputs:])
        )
        assert torch.equal(before[frozen], after[frozen])
        assert not padding.any()
        product = after[other].flatten(1) @ after[name].flatten(1)
        assert torch.linalg.matrix_rank(product) > 2


def test_a_run_goes_on_from_what_was_saved(both, tmp_path):
    whole, _ = both
    learn(whole, build_samples(group_of(whole, [1, 0, 0, 1]), CAMERAS))
    (tmp_path / "resumed").mkdir()
    resumed = micro_policy(tmp_path / "resumed", rank=RANK, full_rank=True)
    resumed.load_adapter(whole.adapter_tensors())
    assert resumed.adapter_files() == whole.adapter_files()
    assert resumed.parameters.keys() == whole.parameters.keys()


def test_what_is_frozen_stays_so_after_a_look_at_the_base(both):
    whole, _ = both
    trained = set(whole.parameters)
    with whole.without_adapter():
        assert not whole.parameters
    assert set(whole.parameters) == trained


def test_another_rank_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(AdapterError, match="lora_rank=32"):
        micro_policy(tmp_path, rank=31, full_rank=True)


def test_settings_that_would_count_an_update_twice_or_grow_without_end_are_refused():
    with pytest.raises(ConfigError, match="lora_alpha = lora_rank"):
        make_config(full_rank=True, lora_rank=32, lora_alpha=16.0)
    retain = ContinualConfig("retain", retain=RetainConfig())
    with pytest.raises(ConfigError, match="choose one of the two"):
        make_config(retain, full_rank=True, lora_rank=32, lora_alpha=32.0)
