"""The served VLA: what it answers depends on the request, not on who else asks."""

import json

import numpy as np
import pytest
import torch
from closeness import FORWARD, assert_near
from model_fixtures import INSTRUCTIONS, STATS, tiny_config
from safetensors.torch import load_file, save_file

from agent.config import PolicyConfig
from agent.model.checkpoint import save_model
from agent.model.lora import attach_lora, save_adapter
from agent.model.nano import build_nano_tokenizer, init_nano
from agent.policy import ActRequest, AdapterUnusable, NoFreeSlot, UnknownInstruction
from agent.vla_loading import load_vla_policy
from agent.wire.errors import ConfigError


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(init_nano(tiny_config(), seed=0), folder, step=0)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters with non-zero B."""
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        peft_model = attach_lora(init_nano(tiny_config(), seed=0), rank=4, alpha=8.0)
        for name, tensor in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.05)
        folders.append(tmp_path_factory.mktemp(f"adapter{seed}"))
        save_adapter(peft_model, folders[-1])
    return folders


def make_policy(model_dir, **changes):
    settings = {"model_dir": str(model_dir), "micro_batch": 4, "adapter_slots": 3}
    return load_vla_policy(PolicyConfig(**{**settings, "adapter_rank": 4, **changes}))


@pytest.fixture
def policy(model_dir, adapters):
    served = make_policy(model_dir)
    for number, folder in enumerate(adapters, start=1):
        served.install(served.stage(f"v{number}", folder))
    return served


def make_request(seed: int, **changes) -> ActRequest:
    rng = np.random.default_rng(seed)
    fields = {
        "images": {c: rng.integers(0, 256, (32, 32, 3), np.uint8) for c in ("agentview", "wrist")},
        "proprio": rng.normal(size=8).astype(np.float32),
        "instruction": INSTRUCTIONS[0],
        "version": "base",
        "temperature": 1.0,
        "noise_key": (7, seed, 0),
    }
    return ActRequest(**{**fields, **changes})


def assert_same(left, right, share=0.0):
    np.testing.assert_array_equal(left.choices_KA, right.choices_KA)
    np.testing.assert_array_equal(left.actions_KA, right.actions_KA)
    assert_near(left.logprobs_KA, right.logprobs_KA, share)


def test_a_result_does_not_depend_on_who_shares_the_batch(policy):
    mine = make_request(1, version="v1")
    (alone,) = policy.act([mine])
    others = [make_request(seed, version="v1") for seed in range(2, 9)]
    for position in (0, 3, 5):
        crowd = [*others[:position], mine, *others[position:]]
        assert_same(policy.act(crowd)[position], alone)


def test_versions_lengths_and_temperatures_mix_in_one_call(policy):
    requests = [
        make_request(
            seed,
            version=("base", "v1", "v2")[seed % 3],
            instruction=INSTRUCTIONS[seed % 2],
            temperature=(0.0, 1.6)[seed % 2],
        )
        for seed in range(7)
    ]
    together = policy.act(requests)
    for request, result in zip(requests, together, strict=True):
        assert_same(policy.act([request])[0], result)


def test_versions_change_the_answer_and_the_base_stays(model_dir, policy):
    base, v1, v2 = policy.act([make_request(1, version=v) for v in ("base", "v1", "v2")])
    assert not np.allclose(base.logprobs_KA, v1.logprobs_KA)
    assert not np.allclose(v1.logprobs_KA, v2.logprobs_KA)
    assert_same(make_policy(model_dir).act([make_request(1)])[0], base)


def test_noise_is_a_function_of_its_key(policy):
    first, again, other = (
        policy.act([make_request(1, noise_key=key)])[0] for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4))
    )
    assert_same(first, again)
    assert (first.choices_KA != other.choices_KA).any()
    fresh = [policy.act([make_request(1, noise_key=None)])[0] for _ in range(2)]
    assert (fresh[0].choices_KA != fresh[1].choices_KA).any()
    greedy = [policy.act([make_request(1, temperature=0.0, noise_key=None)])[0] for _ in range(2)]
    assert_same(*greedy)


def test_slots_are_freed_and_refused_when_full(policy, adapters):
    policy.install(policy.stage("v3", adapters[0]))
    with pytest.raises(NoFreeSlot):
        policy.install(policy.stage("v4", adapters[1]))
    policy.drop("v1")
    policy.install(policy.stage("v4", adapters[1]))
    assert policy.resident() == {"base", "v2", "v3", "v4"}
    v2, v4 = policy.act([make_request(1, version=v) for v in ("v2", "v4")])
    assert_same(v2, v4, FORWARD)


def test_misfit_adapters_and_unknown_words_are_refused(policy, adapters, tmp_path):
    tensors = load_file(adapters[0] / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = (adapters[0] / "adapter_config.json").read_text(encoding="utf-8")
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(AdapterUnusable, match="does not fit"):
        policy.stage("v9", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(AdapterUnusable, match="LORA"):
        policy.stage("v9", tmp_path)
    policy.check_instruction(INSTRUCTIONS[1])
    with pytest.raises(UnknownInstruction, match="does not know"):
        policy.check_instruction("juggle seven chainsaws")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_dir": "/nowhere"}, "does not exist"),
        ({"cameras": ["agentview"]}, "sees 2 images"),
        ({"unnorm_key": "libero"}, "nano"),
        ({"device": "cuda"}, "policy.device=cpu"),
    ],
)
def test_bad_settings_are_one_clear_line(model_dir, changes, text):
    assert list(STATS) == ["nano"]
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=text):
        make_policy(**{"model_dir": model_dir, **changes})
