"""Each variant as it is served: folder, adapter, batch, record; and scored as it was served."""

import dataclasses

import numpy as np
import pytest
import torch
from closeness import COMPILED, FORWARD, assert_near
from compiler_fixtures import require_compiler
from model_fixtures import INSTRUCTIONS, tiny_config

from agent.config import PolicyConfig
from agent.model.checkpoint import save_model
from agent.model.lora import attach_lora, save_adapter
from agent.model.nano import as_cnn, build_nano_tokenizer, init_nano
from agent.model.network import PolicyNetwork
from agent.policy import ActRequest, AdapterUnusable
from agent.vla_loading import load_vla_policy
from agent.vla_policy import HOT_BATCHES, VlaPolicy
from agent.wire.errors import ConfigError

VARIANTS = ["oft-discrete", "oft-l1", "openvla", "cnn"]


def network_of(variant: str) -> PolicyNetwork:
    config = tiny_config()
    if variant == "cnn":
        return init_nano(as_cnn(config), seed=0).eval()
    if variant == "openvla":
        causal = {"num_images": 1, "use_proprio": False, "chunk_size": 1}
        config = dataclasses.replace(config, variant=variant, **causal)
    return init_nano(dataclasses.replace(config, variant=variant), seed=0).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def folders(request, tmp_path_factory):
    """(variant, model folder, adapter folder)."""
    model, adapter = (tmp_path_factory.mktemp(name) for name in ("model", "adapter"))
    save_model(network_of(request.param), model, step=3)
    build_nano_tokenizer(INSTRUCTIONS).save(str(model / "tokenizer.json"))
    torch.manual_seed(1)
    peft_model = attach_lora(network_of(request.param), rank=4, alpha=8.0)
    for name, tensor in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05)
    save_adapter(peft_model, adapter)
    return request.param, model, adapter


def make_policy(model, **changes) -> VlaPolicy:
    settings = {"model_dir": str(model), "micro_batch": 4, "adapter_slots": 3, "adapter_rank": 4}
    return load_vla_policy(PolicyConfig(**{**settings, **changes}))


@pytest.fixture
def policy(folders) -> VlaPolicy:
    _, model, adapter = folders
    served = make_policy(model)
    served.install(served.stage("v1", adapter))
    return served


def request_of(policy: VlaPolicy, seed: int, **changes) -> ActRequest:
    rng = np.random.default_rng(seed)
    fields = {
        "images": {c: rng.integers(0, 256, (32, 32, 3), np.uint8) for c in policy.images},
        "proprio": rng.normal(size=policy.proprio_dim).astype(np.float32),
        "instruction": INSTRUCTIONS[0],
        "version": "v1",
        "temperature": 1.0,
        "noise_key": (7, seed, 0),
    }
    return ActRequest(**{**fields, **changes})


def assert_same(left, right, share=0.0):
    """Equal tokens; means and log-probabilities within `share`, or their rounding at least."""
    if left.choices_KA.dtype == np.int32:
        np.testing.assert_array_equal(left.choices_KA, right.choices_KA)
    assert_near(left.choices_KA, right.choices_KA, share)
    assert_near(left.actions_KA, right.actions_KA, share)
    assert_near(left.logprobs_KA, right.logprobs_KA, max(share, FORWARD))


def test_a_result_depends_on_its_own_request_only(policy):
    mine = request_of(policy, 1)
    (alone,) = policy.act([mine])
    others = [request_of(policy, seed, temperature=(0.0, 1.6)[seed % 2]) for seed in range(2, 8)]
    assert_same(policy.act([*others[:3], mine, *others[3:]])[3], alone)
    mixed = [*others[:3], mine, request_of(policy, 9, version="base")]
    # Mixed versions take another kernel.
    assert_same(policy.act(mixed)[3], alone, FORWARD)


def test_greedy_needs_no_noise_and_sampling_follows_its_key(policy):
    greedy = [
        policy.act([request_of(policy, 1, temperature=0.0, noise_key=key)])[0]
        for key in (None, (1, 2, 3))
    ]
    assert_same(*greedy)
    first, again, other = (
        policy.act([request_of(policy, 1, noise_key=key)])[0]
        for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4))
    )
    assert_same(first, again)
    assert (first.choices_KA != other.choices_KA).any()
    assert (first.choices_KA != greedy[0].choices_KA).any()


def test_the_variant_is_read_from_the_folder(folders, policy):
    variant, model, _ = folders
    assert policy.chunk_steps == (1 if variant == "openvla" else 5)
    assert list(policy.images) == (
        ["agentview"] if variant == "openvla" else ["agentview", "wrist"]
    )
    kind = np.float32 if variant == "oft-l1" else np.int32
    assert policy.act([request_of(policy, 1)])[0].choices_KA.dtype == kind
    with pytest.raises(ConfigError, match="variant: expected one of"):
        make_policy(model, architecture={"variant": "pi0"})
    with pytest.raises(ConfigError, match="unknown model override"):
        make_policy(model, architecture={"keep_stop": False})


@pytest.mark.parametrize("folders", ["oft-discrete", "openvla"], indirect=True)
def test_a_greedy_token_may_be_sought_in_the_whole_vocabulary(folders):
    _, model, _ = folders
    bins, everything = (
        make_policy(model, architecture={"greedy_range": choice})
        for choice in ("bins", "vocabulary")
    )
    assert bins.base_sha256 != everything.base_sha256
    requests = [
        request_of(bins, seed, version="base", temperature=0.0, noise_key=None) for seed in range(4)
    ]
    tokens = [np.stack([r.choices_KA for r in p.act(requests)]) for p in (bins, everything)]
    # Fresh weights prefer ids outside the bins now and then: those count as the nearest bin.
    assert (tokens[0] != tokens[1]).any()
    assert ((tokens[1] >= 0) & (tokens[1] < 256)).all()


@pytest.mark.parametrize("folders", ["oft-l1"], indirect=True)
def test_an_adapter_brings_its_own_spread(folders, policy, tmp_path):
    _, _, adapter = folders
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "action_scale.json").write_text('{"scale": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]}')
    policy.install(policy.stage("wide", tmp_path))
    mean, narrow, wide = (
        policy.act([request_of(policy, 1, **changes)])[0]
        for changes in ({"temperature": 0.0}, {}, {"version": "wide"})
    )
    spread = narrow.choices_KA - mean.choices_KA
    assert_near(wide.choices_KA - mean.choices_KA, 10 * spread, share=1e-4)
    for bad in ('{"scale": [0.5]}', '{"scale": [0, 0, 0, 0, 0, 0, 0]}', "{}", "nonsense"):
        (tmp_path / "action_scale.json").write_text(bad)
        with pytest.raises(AdapterUnusable, match=r"action_scale\.json"):
            policy.stage("bad", tmp_path)


@pytest.mark.parametrize("folders", ["oft-discrete"], indirect=True)
def test_a_version_with_whole_batches_to_itself_is_merged(folders, policy):
    _, model, adapter = folders
    merging = make_policy(model, merge_hot=True)
    for version in ("v1", "v2"):
        merging.install(merging.stage(version, adapter))
    request = request_of(policy, 1)
    (expected,) = policy.act([request])
    for _ in range(2 * HOT_BATCHES):
        assert_same(merging.act([request])[0], expected, FORWARD)
    assert merging._bank.merged_slot == 1
    mixed = [request, request_of(policy, 1, version="v2"), request_of(policy, 1, version="base")]
    results = merging.act(mixed)
    assert_same(results[0], expected, FORWARD)
    assert_same(results[1], expected, FORWARD)
    assert_same(results[2], policy.act([mixed[2]])[0], FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["oft-discrete", "oft-l1", "cnn"], indirect=True)
def test_publishing_under_load_never_compiles_again(folders, policy):
    require_compiler()
    _, model, adapter = folders
    compiled = make_policy(model, compile=True)
    requests = [
        request_of(policy, seed, version="base", instruction=INSTRUCTIONS[seed // 2])
        for seed in range(4)
    ]
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in range(1, 6):
            version = f"v{number}"
            if number > 3:
                compiled.drop(f"v{number - 3}")
            compiled.install(compiled.stage(version, adapter))
            crowd = [
                dataclasses.replace(r, version=("base", version)[seed % 2])
                for seed, r in enumerate(requests)
            ]
            everyone = [dataclasses.replace(r, version=version) for r in requests]
            for batch in (crowd, everyone, requests):
                for request, result in zip(batch, compiled.act(batch), strict=True):
                    known = "base" if request.version == "base" else "v1"
                    (expected,) = policy.act([dataclasses.replace(request, version=known)])
                    assert_same(result, expected, COMPILED)


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["oft-discrete"], indirect=True)
def test_merging_a_hot_version_never_compiles_while_serving(folders, policy):
    require_compiler()
    _, model, adapter = folders
    merging = make_policy(model, compile=True, merge_hot=True)
    merging.install(merging.stage("v1", adapter))
    request = request_of(policy, 1)
    (expected,) = policy.act([request])
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(HOT_BATCHES + 1):
            assert_same(merging.act([request])[0], expected, COMPILED)
    assert merging._bank.merged_slot == 1


@pytest.mark.parametrize("folders", ["openvla"], indirect=True)
def test_the_causal_variant_is_not_compiled(folders):
    with pytest.raises(ConfigError, match=r"policy\.compile=false"):
        make_policy(folders[1], compile=True)
