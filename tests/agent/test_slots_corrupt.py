"""Damaged or foreign adapters: each refused in one line, and the answers stay what they were."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_fixtures import shallow_model, train_fake_adapter
from model_fixtures import INSTRUCTIONS
from safetensors.torch import load_file, save_file

from agent.adapters import AdapterCorrupt, AdapterStore
from agent.config import PolicyConfig
from agent.model.checkpoint import save_model
from agent.model.lora import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME
from agent.model.nano import build_nano_tokenizer
from agent.policy import ActRequest, AdapterUnusable
from agent.vla_loading import load_vla_policy
from agent.vla_policy import VlaPolicy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> VlaPolicy:
    folder = tmp_path_factory.mktemp("model")
    save_model(shallow_model(), folder, step=0)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    settings = {"micro_batch": 2, "adapter_slots": 3, "adapter_rank": 4}
    return load_vla_policy(PolicyConfig(model_dir=str(folder), **settings))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, policy: VlaPolicy) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    train_fake_adapter(folder, rank=2, alpha=4.0, seed=1, model=shallow_model())
    policy.install(policy.stage("v1", folder))
    return folder


def served(policy: VlaPolicy) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in policy.images}
    requests = [
        ActRequest(
            images=images,
            proprio=np.zeros(8, np.float32),
            instruction=INSTRUCTIONS[0],
            version=version,
            temperature=1.0,
            noise_key=(1, 2, 3),
        )
        for version in ("base", "v1")
    ]
    return [result.logprobs_KA for result in policy.act(requests)]


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[: len(data) // 2])


def write_garbage(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes(b"not a tensor file")


def change_first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        key = min(tensors)
        save_file({**tensors, key: change(tensors[key]).contiguous()}, folder / WEIGHTS_NAME)

    return apply


def set_config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps({**values, **changes}))

    return apply


def make_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_NAME), folder / PICKLE_NAME)
    (folder / WEIGHTS_NAME).unlink()


DAMAGES = {
    "truncated": (truncate, "truncated or no safetensors"),
    "garbage": (write_garbage, "truncated or no safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS_NAME).unlink(), "must hold"),
    "pickle": (make_pickle, r"is a pickle.*save_pretrained"),
    "config no JSON": (lambda folder: (folder / CONFIG_NAME).write_text("{"), "is not JSON"),
    "config no object": (lambda folder: (folder / CONFIG_NAME).write_text("[]"), "JSON object"),
    "rank of the config": (set_config(r=3), "adapter shapes of"),
    "rank above the bank": (set_config(r=8), "rank 8 exceeds the server's 4"),
    "shape": (change_first(lambda t: t[:, :-1]), "adapter shapes of"),
    "NaN": (change_first(lambda t: t * torch.nan), "holds NaN or infinity"),
    "infinity": (change_first(lambda t: t / 0), "holds NaN or infinity"),
    "integers": (change_first(lambda t: t.int()), "must be floating point"),
    "overflow": (set_config(lora_alpha=1e39), "overflow"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_is_refused_and_changes_no_answer(
    name: str, policy: VlaPolicy, good: Path, tmp_path: Path
) -> None:
    damage, message = DAMAGES[name]
    before = served(policy)
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    damage(folder)
    with pytest.raises(AdapterUnusable, match=message) as refused:
        policy.stage("v2", folder)
    assert "\n" not in str(refused.value)
    assert policy.resident() == {"base", "v1"}
    for left, right in zip(before, served(policy), strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_adapter_of_a_wider_model_is_refused(
    policy: VlaPolicy, good: Path, tmp_path: Path
) -> None:
    train_fake_adapter(tmp_path, rank=2, alpha=4.0, seed=1, model=shallow_model(2))
    before = served(policy)
    with pytest.raises(AdapterUnusable, match=r"unknown tensors .*layers\.1"):
        policy.stage("v2", tmp_path)
    np.testing.assert_array_equal(served(policy)[1], before[1])


def test_altered_bytes_never_reach_the_policy(good: Path, tmp_path: Path) -> None:
    files = {name: (good / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)}
    store = AdapterStore(tmp_path)
    provenance = {"parent": "base", "task": "t", "base_sha256": "0" * 64, "method": "grpo"}
    version = store.publish(1, files, metrics={}, **provenance).version
    assert store.verify(version) == tmp_path / version
    weights = tmp_path / version / WEIGHTS_NAME
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterCorrupt, match="SHA-256"):
        store.verify(version)
