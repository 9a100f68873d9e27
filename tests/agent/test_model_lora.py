import copy
import json
from pathlib import Path

import pytest
import torch
from adapter_fixtures import train_fake_adapter
from closeness import assert_near
from model_fixtures import random_inputs, tiny_model
from peft import PeftModel

from agent.model.lora import (
    AdapterError,
    LoraSpec,
    attach_lora,
    load_lora_weights,
    lora_targets,
    read_adapter,
)
from agent.model.slots import SlotBank


def test_targets_are_the_live_published_modules() -> None:
    model = tiny_model()
    peft_model = attach_lora(copy.deepcopy(model), 2, 2.0)
    attached = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in peft_model.named_modules()
        if name.endswith(".lora_A.default")
    }
    targets = lora_targets(model)
    assert attached == set(targets)
    assert "language_model.lm_head" in targets
    assert "vision_backbone.featurizer.patch_embed.proj" in targets
    assert "vision_backbone.fused_featurizer.patch_embed.proj" in targets
    assert not any("attn_pool" in t or "proprio" in t or "blocks.2." in t for t in targets)
    ids, pixels, proprio = random_inputs(model.config, 2)
    peft_model(ids, pixels, proprio).logits_BKAV.square().sum().backward()
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.norm() > 0, name


@torch.no_grad()
def test_mixed_batch_equals_peft(tmp_path: Path) -> None:
    one = train_fake_adapter(tmp_path / "one", rank=4, alpha=4.0, seed=1)
    two = train_fake_adapter(tmp_path / "two", rank=2, alpha=16.0, seed=2)
    base = tiny_model()
    served = tiny_model()
    bank = SlotBank(served, slots=4, rank=4)
    bank.load(1, *read_adapter(tmp_path / "one"))
    bank.load(3, *read_adapter(tmp_path / "two"))
    inputs = random_inputs(base.config, 5)
    by_slot = {0: base(*inputs), 1: one(*inputs), 3: two(*inputs)}
    assert (by_slot[0].logits_BKAV - by_slot[1].logits_BKAV).abs().max() > 0.05
    assert (by_slot[1].logits_BKAV - by_slot[3].logits_BKAV).abs().max() > 0.05

    for slots in ([3, 0, 1, 1, 3], [1] * 5, [3] * 5, [0] * 5):
        bank.select(slots)
        logits = served(*inputs).logits_BKAV
        for row, slot in enumerate(slots):
            expected = by_slot[slot].logits_BKAV[row]
            assert_near(logits[row], expected)

    bank.load(1, *read_adapter(tmp_path / "two"))
    bank.select([1] * 5)
    expected = by_slot[3].logits_BKAV
    assert_near(served(*inputs).logits_BKAV, expected)


@torch.no_grad()
def test_stock_peft_loads_the_folder(tmp_path: Path) -> None:
    trained = train_fake_adapter(tmp_path, rank=4, alpha=8.0, seed=1)
    inputs = random_inputs(tiny_model().config, 2)
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    assert torch.equal(loaded(*inputs).logits_BKAV, trained(*inputs).logits_BKAV)


@torch.no_grad()
def test_training_resumes_from_a_folder(tmp_path: Path) -> None:
    trained = train_fake_adapter(tmp_path, rank=4, alpha=8.0, seed=1)
    resumed = attach_lora(tiny_model(), 4, 8.0)
    tensors, _ = read_adapter(tmp_path)
    load_lora_weights(resumed, tensors)
    inputs = random_inputs(tiny_model().config, 2)
    assert torch.equal(resumed(*inputs).logits_BKAV, trained(*inputs).logits_BKAV)
    with pytest.raises(AdapterError, match="differs"):
        load_lora_weights(attach_lora(tiny_model(), 2, 8.0), tensors)


def test_saved_bytes_depend_on_weights_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_fake_adapter(tmp_path / name, rank=2, alpha=2.0, seed=7)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])


def test_bad_adapters_are_refused_and_change_nothing(tmp_path: Path) -> None:
    train_fake_adapter(tmp_path, rank=4, alpha=4.0, seed=1)
    tensors, spec = read_adapter(tmp_path)
    model = tiny_model()
    bank = SlotBank(model, slots=2, rank=4)
    bank.load(1, tensors, spec)
    bank.select([1, 1])
    inputs = random_inputs(model.config, 2)
    before = model(*inputs).logits_BKAV
    key = next(k for k in tensors if "lora_A" in k)
    damaged = [
        ({k: v for k, v in tensors.items() if k != key}, spec, "lack lora_A"),
        ({**tensors, "base_model.model.other.lora_A.weight": tensors[key]}, spec, "unknown"),
        ({**tensors, key: tensors[key][:, :-1]}, spec, "expected A"),
        ({**tensors, key: torch.full_like(tensors[key], torch.nan)}, spec, "NaN"),
        (tensors, LoraSpec(rank=8, alpha=8.0), "rank 8 exceeds"),
    ]
    for bad, bad_spec, message in damaged:
        with pytest.raises(AdapterError, match=message):
            bank.load(1, bad, bad_spec)
    with pytest.raises(ValueError, match="slot must be in"):
        bank.load(0, tensors, spec)
    with pytest.raises(ValueError, match="slots must be in"):
        bank.select([2])
    assert torch.equal(model(*inputs).logits_BKAV, before)


@pytest.mark.parametrize(
    "change",
    [{"peft_type": "IA3"}, {"use_dora": True}, {"bias": "all"}, {"r": 0}, {"lora_alpha": None}],
)
def test_unsupported_adapter_configs_are_refused(change: dict[str, object]) -> None:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "bias": "none"}
    assert LoraSpec.from_dict(values).scale == 1.0
    with pytest.raises(AdapterError):
        LoraSpec.from_dict({**values, **change})
