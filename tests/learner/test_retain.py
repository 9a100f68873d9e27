"""Weight merge: what is trained, published and served is base + c * (updates of earlier tasks)."""

import copy

import numpy as np
import pytest
import torch
from closeness import assert_near
from learner_run import make_config
from micro_fixtures import CAMERAS, micro_policy, play
from safetensors.torch import load

from agent.model.lora import WEIGHTS_NAME, rank_of, read_adapter
from agent.model.slots import SlotBank
from agent.wire.errors import ConfigError
from learner.algorithm_config import AsyncConfig
from learner.batch import Trajectory, build_samples
from learner.continual.retain import Retain
from learner.continual.settings import ContinualConfig, RetainConfig
from learner.randomness import keyed_rng

C, RANK = 0.5, 2


def change(policy, seed):
    """A task's training, as far as weights are concerned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def update_of(tensors):
    """Module -> B A, of an adapter with alpha = r."""
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")].flatten(1)
        @ tensor.flatten(1)
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }


@pytest.fixture
def learned(tmp_path):
    """A policy after two merged tasks and in a third, and the three tasks' own updates."""
    policy, updates = micro_policy(tmp_path), []
    method = Retain(RetainConfig(C), policy, seed=3)
    for task in range(2):
        updates.append(update_of(policy.adapter_tensors()))
        method.after_task(task)
        change(policy, seed=task)
    updates.append(update_of(policy.adapter_tensors()))
    return policy, updates, method


def test_the_next_task_is_trained_at_scale_1_on_the_scaled_updates_before(learned, tmp_path):
    policy, updates, _ = learned
    sample = build_samples([Trajectory(0, play(policy, 0), 0.0)], CAMERAS)
    with torch.no_grad():
        seen = policy.score(sample, np.arange(3)).logprobs_BKA
    (tmp_path / "merged").mkdir()
    merged = micro_policy(tmp_path / "merged", seed=0)
    with torch.no_grad():
        for parameter in merged.parameters.values():
            parameter.zero_()
        for module in updates[0]:
            weight = merged._peft.get_submodule(module).base_layer.weight
            total = C * updates[0][module] + C * updates[1][module] + updates[2][module]
            weight.add_(total.view_as(weight))
        by_hand = merged.score(sample, np.arange(3)).logprobs_BKA
    assert_near(seen, by_hand)


def test_what_is_published_is_served_as_it_was_trained(learned, tmp_path):
    policy, _, _ = learned
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in policy.adapter_files().items():
        (folder / name).write_bytes(content)
    tensors, spec = read_adapter(folder)
    assert spec.rank == 3 * RANK
    assert spec.scale == 1.0
    sample = build_samples([Trajectory(0, play(policy, 0), 0.0)], CAMERAS)
    with torch.no_grad():
        trained = policy._see(sample, np.arange(3), sample.choices_BKA).logits_BKAV
        (tmp_path / "served").mkdir()
        served = micro_policy(tmp_path / "served")
        network = copy.deepcopy(served._peft).unload()
        bank = SlotBank(network, 2, 3 * RANK)
        bank.load(1, tensors, spec)
        bank.select([1] * 3)
        served.network = network
        answered = served._see(sample, np.arange(3), sample.choices_BKA).logits_BKAV
    assert_near(answered, trained)


def test_at_its_end_a_task_is_merged_and_the_next_begins_exactly_there(learned):
    policy, updates, method = learned
    method.after_task(2)
    past = update_of(policy.past)
    for module, update in past.items():
        total = C * (updates[0][module] + updates[1][module] + updates[2][module])
        assert_near(update, total)
    fresh = policy.adapter_tensors()
    assert all(not tensor.any() for name, tensor in fresh.items() if ".lora_B." in name)
    assert all(tensor.any() for name, tensor in fresh.items() if ".lora_A." in name)
    # A zero update is no part of what is published: one rank a task.
    published = load(policy.adapter_files()[WEIGHTS_NAME])
    assert rank_of(published) == 3 * RANK
    assert all(torch.equal(published[name], tensor) for name, tensor in policy.past.items())


def test_only_the_new_adapter_is_trained_and_the_past_stays(learned):
    policy, _, _ = learned
    before, names = policy.past, set(policy.parameters)
    with policy.without_adapter():
        assert not policy.parameters
    assert set(policy.parameters) == names
    assert not [name for name in names if "frozen" in name]
    sample = build_samples([Trajectory(0, play(policy, 0), 0.0)], CAMERAS)
    policy.score(sample, np.arange(3)).logprobs_BKA.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters.values())
    frozen = {n: p for n, p in policy._peft.named_parameters() if ".frozen." in n}
    assert len(frozen) == len(before)
    assert all(p.grad is None and not p.requires_grad for p in frozen.values())
    assert {p.dtype for p in frozen.values()} == {torch.float32}


def test_a_fresh_adapter_is_a_function_of_seed_and_task_alone(tmp_path):
    drawn = []
    for _ in range(2):
        torch.manual_seed(len(drawn))
        policy = micro_policy(tmp_path)
        state = torch.get_rng_state()
        policy.fold(C, keyed_rng(3, "retain", 1))
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(policy.adapter_tensors())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    other = micro_policy(tmp_path)
    other.fold(C, keyed_rng(3, "retain", 2))
    name = next(name for name in drawn[0] if ".lora_A." in name)
    assert not torch.equal(other.adapter_tensors()[name], drawn[0][name])


def test_a_merged_update_is_float32_on_a_bfloat16_base(tmp_path):
    policy = micro_policy(tmp_path, dtype=torch.bfloat16)
    policy.fold(0.3, keyed_rng(0, "retain", 0))
    frozen = [p for n, p in policy._peft.named_parameters() if ".frozen." in n]
    assert {p.dtype for p in frozen} == {torch.float32}
    kept = {name.replace(".frozen.", "."): p for name, p in policy._peft.named_parameters()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in policy.past.items())


def test_a_run_of_another_method_is_not_taken_over(tmp_path):
    method = Retain(RetainConfig(C), micro_policy(tmp_path), seed=0)
    assert method.before_task(0, "base") == "base"
    with pytest.raises(ConfigError, match="another method"):
        method.before_task(1, "v00001-aaaaaaaaaaaa")


def test_an_optimiser_that_outlives_the_adapter_is_refused():
    retain = ContinualConfig("retain", retain=RetainConfig())
    with pytest.raises(ConfigError, match="fresh_optimizer_per_task=true"):
        make_config(retain, fresh_optimizer_per_task=False)


def test_acting_ahead_of_learning_is_refused_for_versions_that_could_not_be_restored():
    retain = ContinualConfig("retain", retain=RetainConfig())
    assert make_config(retain, resample_degenerate=0, asynchronous=AsyncConfig(0))
    with pytest.raises(ConfigError, match="asynchronous=null"):
        make_config(retain, resample_degenerate=0, asynchronous=AsyncConfig(1))
