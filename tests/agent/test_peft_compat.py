"""Adapter folders across programs: stock PEFT reads ours, we read what stock PEFT writes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_fixtures import answer, randomise, shallow_model, train_fake_adapter, variant_model
from closeness import assert_near
from model_fixtures import random_inputs, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from agent.model.checkpoint import load_model, save_model
from agent.model.lora import (
    CONFIG_NAME,
    TARGET_SUFFIXES,
    WEIGHTS_NAME,
    AdapterError,
    LoraSpec,
    lora_targets,
    read_adapter,
)
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

PUBLISHED_CONFIG = Path(__file__).parents[1] / "golden/openvla_oft/adapter" / CONFIG_NAME
LLM_ONLY = r"language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def foreign_model() -> OpenVLA:
    """Without proprio: suffix lists would also hit the proprio projector, whose LoRA we refuse."""
    return variant_model("openvla")


def write_stock(folder: Path, **fields: Any) -> PeftModel:
    """An adapter that stock PEFT attached and saved; short target names as published trainers."""
    settings = {"r": 4, "lora_alpha": 4, "target_modules": sorted(TARGET_SUFFIXES), **fields}
    wrapped = randomise(get_peft_model(foreign_model(), LoraConfig(**settings)), seed=3)
    assert isinstance(wrapped, PeftModel)
    wrapped.save_pretrained(str(folder))
    return wrapped


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**values, **changes}))


def edit_tensors(folder: Path, add: dict[str, Tensor], drop: str = "nothing") -> None:
    tensors = {k: v for k, v in load_file(folder / WEIGHTS_NAME).items() if drop not in k}
    save_file({**tensors, **add}, folder / WEIGHTS_NAME)


def served(folder: Path) -> Tensor:
    bank = SlotBank(foreign_model(), slots=2, rank=8)
    bank.load(1, *read_adapter(folder))
    bank.select([1, 1])
    with torch.no_grad():
        return answer(bank.model, bank.model.config)


def assert_served(folder: Path, wrapped: nn.Module) -> None:
    with torch.no_grad():
        expected = answer(wrapped, foreign_model().config)
    assert_near(served(folder), expected)


@pytest.mark.parametrize("variant", ["openvla", "oft-l1", "oft-discrete", "cnn"])
@torch.no_grad()
def test_stock_peft_loads_every_variant(variant: str, tmp_path: Path) -> None:
    trained = train_fake_adapter(tmp_path, 4, 8.0, seed=1, model=variant_model(variant))
    config = trained.get_base_model().config
    loaded = PeftModel.from_pretrained(variant_model(variant), str(tmp_path))
    assert torch.equal(answer(loaded, config), answer(trained, config))
    assert not any(name.startswith("action_head.") for name in lora_targets(variant_model(variant)))
    bank = SlotBank(variant_model(variant), slots=2, rank=4)
    bank.load(1, *read_adapter(tmp_path))
    bank.select([1, 1])
    assert_near(answer(bank.model, config), answer(trained, config))


def test_current_stock_folders_with_dead_modules_load(tmp_path: Path) -> None:
    wrapped = write_stock(tmp_path)
    assert any("attn_pool" in key for key in load_file(tmp_path / WEIGHTS_NAME))
    assert_served(tmp_path, wrapped)
    edit_config(tmp_path, some_later_field={"x": 1}, lora_dropout=0.1, megatron_core="other")
    assert_served(tmp_path, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_layer.weight", "weight"])
def test_older_stock_folders_with_the_saved_head_load(name: str, tmp_path: Path) -> None:
    wrapped = write_stock(tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    older = json.loads(PUBLISHED_CONFIG.read_text())
    edited = {key: values[key] for key in older if key in values}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(edited))
    assert_served(tmp_path, wrapped)

    weight = foreign_model().language_model.lm_head.weight.detach()
    key = f"base_model.model.language_model.lm_head.{name}"
    edit_tensors(tmp_path, {key: weight.clone()})
    assert_served(tmp_path, wrapped)
    edit_tensors(tmp_path, {key: weight.bfloat16()})
    assert_served(tmp_path, wrapped)
    edit_tensors(tmp_path, {key: weight + 0.1})
    with pytest.raises(AdapterError, match="another base"):
        served(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": LLM_ONLY},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": sorted(TARGET_SUFFIXES), "layers_to_transform": [1]},
        {"target_modules": sorted(TARGET_SUFFIXES), "exclude_modules": ["lm_head", "qkv"]},
    ],
)
def test_adapters_of_some_modules_load_and_need_all_they_name(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    wrapped = write_stock(tmp_path, **fields)
    keys = " ".join(load_file(tmp_path / WEIGHTS_NAME))
    assert not all(f".{name}.lora_A" in keys for name in lora_targets(foreign_model()))
    assert_served(tmp_path, wrapped)
    if fields["target_modules"] == "all-linear":
        edit_config(tmp_path, target_modules="all-linear")
        assert_served(tmp_path, wrapped)
    edit_tensors(tmp_path, {}, drop="layers.1.self_attn.v_proj")
    with pytest.raises(AdapterError, match="1 modules lack"):
        served(tmp_path)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"r": 8, "lora_alpha": 4}, 0.5),
        ({"r": 8, "lora_alpha": 8}, 1.0),
        ({"r": 8, "lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(8)),
    ],
)
def test_rank_and_alpha_variants(fields: dict[str, Any], scale: float, tmp_path: Path) -> None:
    wrapped = write_stock(tmp_path, target_modules=LLM_ONLY, **fields)
    assert read_adapter(tmp_path)[1].scale == pytest.approx(scale)
    assert_served(tmp_path, wrapped)


REFUSED = {
    "use_dora": True,
    "fan_in_fan_out": True,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "lora_bias": True,
    "bias": "lora_only",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "target_parameters": ["x"],
    "layer_replication": [[0, 1]],
    "use_qalora": True,
    "use_bdlora": {"x": 1},
    "use_something_new": True,
    "alora_invocation_tokens": [1, 2],
    "monteclora_config": {"x": 1},
    "arrow_config": {"x": 1},
    "kasa_config": {"x": 1},
    "init_lora_weights": "pissa",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_mathematics_is_refused_by_name(name: str) -> None:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    with pytest.raises(AdapterError, match=f"adapter uses .*{name}.*; only plain LoRA"):
        LoraSpec.from_dict({**values, name: REFUSED[name]})


def test_every_field_of_stock_peft_is_decided() -> None:
    plain = LoraConfig(r=4, target_modules=["q_proj"]).to_dict()
    ignored = {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
        "eva_config", "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config",
        "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
        "task_type", "velora_config",
    }  # fmt: skip
    read = {
        "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern",
    }  # fmt: skip
    assert set(plain) == ignored | read | set(REFUSED) - {"use_something_new"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_modules": "(("}, "no valid pattern"),
        ({"target_modules": 3}, "names or one pattern"),
        ({"layers_to_transform": "one"}, "layer numbers"),
        ({"layers_pattern": 3}, "must be names"),
    ],
)
def test_malformed_selections_are_refused(change: dict[str, Any], message: str) -> None:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    with pytest.raises(AdapterError, match=message):
        LoraSpec.from_dict({**values, **change})


def test_an_adapter_of_no_live_module_is_refused(tmp_path: Path) -> None:
    write_stock(tmp_path, target_modules=r".*attn_pool\.q")
    with pytest.raises(AdapterError, match="none of its live modules"):
        served(tmp_path)


@torch.no_grad()
def test_stock_llama_loads_what_we_save(tmp_path: Path) -> None:
    save_model(shallow_model(), tmp_path, step=1)
    model = load_model(tmp_path)
    prefix = "language_model."
    state = {
        key.removeprefix(prefix): tensor.float()
        for key, tensor in load_file(tmp_path / "model.safetensors").items()
        if key.startswith(prefix)
    }
    stock = LlamaForCausalLM(model.config.llama_config()).eval()
    stock.load_state_dict(state, strict=True)
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[()], given: dict[str, Any], output: Any) -> None:
        seen.update(embeds=given["inputs_embeds"], hidden=output.last_hidden_state)

    model.language_model.model.register_forward_hook(keep, with_kwargs=True)
    model(*random_inputs(model.config, 2))
    assert not stock.config.is_causal
    hidden = stock.model(inputs_embeds=seen["embeds"]).last_hidden_state
    assert torch.equal(hidden, seen["hidden"])
    earlier = stock.model(inputs_embeds=seen["embeds"][:, :-1]).last_hidden_state
    assert not torch.allclose(hidden[:, :-1], earlier, atol=1e-3)
    logits = model.language_model.lm_head(hidden)
    assert torch.equal(stock.lm_head(hidden), logits)
    assert tiny_model().config.llama_config().is_causal is False
