"""Merging and exporting adapters: the merged folder answers as PEFT and as the slot bank do."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_fixtures import answer, randomise, train_fake_adapter, variant_model
from closeness import assert_near
from model_fixtures import tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.adapter_export import export_version, read_origin
from agent.adapters import AdapterCorrupt, AdapterStore
from agent.cli_adapters import main as adapters_command
from agent.cli_model import main as model_command
from agent.durable import StorageError
from agent.model import merging
from agent.model.checkpoint import load_model, save_model
from agent.model.errors import ModelFolderError
from agent.model.folder import hash_folder
from agent.model.lora import TARGET_SUFFIXES, AdapterError, lora_targets, read_adapter
from agent.model.merging import merge_adapter
from agent.model.nano import init_nano
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

SHARD_BYTES = 300_000


def write_base(folder: Path, model: OpenVLA, dtype: torch.dtype = torch.float32) -> Path:
    """A sharded model folder whose weights are stored as `dtype`."""
    save_model(model, folder, step=3, shard_bytes=SHARD_BYTES)
    for file in folder.glob("*.safetensors"):
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    for file in folder.glob("*_checkpoint.pt"):
        stored = torch.load(file, weights_only=True)
        torch.save({key: tensor.to(dtype) for key, tensor in stored.items()}, file)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_prismatic.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    return folder


def film_model() -> OpenVLA:
    return init_nano(dataclasses.replace(tiny_config(), use_film=True), seed=0).eval()


@torch.no_grad()
def peft_answer(base: Path, adapter: Path) -> Tensor:
    """What PEFT's own merge_and_unload answers."""
    model = load_model(base)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return answer(merged, model.config)


@torch.no_grad()
def bank_answer(base: Path, adapter: Path) -> Tensor:
    bank = SlotBank(load_model(base), slots=2, rank=4)
    bank.load(1, *read_adapter(adapter))
    bank.select([1, 1])
    return answer(bank.model, bank.model.config)


@torch.no_grad()
def folder_answer(folder: Path) -> Tensor:
    model = load_model(folder)
    return answer(model, model.config)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["openvla", "oft-l1", "oft-discrete", "cnn"])
def test_merged_is_what_peft_and_the_slot_bank_compute(variant: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", variant_model(variant))
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=variant_model(variant))
    merged = merge_adapter(base, tmp_path / "lora", tmp_path / "new" / "out")
    assert merged.modules == len(lora_targets(variant_model(variant)))
    assert merged.dead == 0
    found = folder_answer(tmp_path / "new" / "out")
    assert not torch.allclose(found, folder_answer(base), atol=1e-2)
    for expected in (peft_answer, bank_answer):
        assert_near(found, expected(base, tmp_path / "lora"))


def test_every_target_and_nothing_else_changes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", variant_model("oft-discrete"), torch.bfloat16)
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=variant_model("oft-discrete"))
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    merge_adapter(base, tmp_path / "lora", out, report=lambda *progress: seen.append(progress))
    assert seen[-1][0] == seen[-1][1]
    copied = {file.name for file in out.iterdir()}
    assert copied == {file.name for file in base.iterdir()} - {"pytorch_model.bin"}

    tensors, spec = read_adapter(tmp_path / "lora")
    before, after = ({k: v for file in folder.glob("*.safetensors")
                      for k, v in load_file(file).items()} for folder in (base, out))  # fmt: skip
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    pairs = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in tensors}
    assert changed == {f"{module}.weight" for module in pairs}
    assert "vision_backbone.featurizer.patch_embed.proj.weight" in changed
    assert "language_model.lm_head.weight" in changed
    for module in pairs:
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].flatten(1) for x in "AB")
        weight = before[f"{module}.weight"]
        exact = weight.float() + (spec.scale * (b @ a)).view_as(weight)
        assert after[f"{module}.weight"].dtype == torch.bfloat16
        # Half a unit in the last place, and float32's own rounding of sums in another order.
        bound = exact.abs() * 2**-8 + 1e-6
        assert ((after[f"{module}.weight"].float() - exact).abs() <= bound).all(), module


def test_a_film_backbone_is_merged_in_its_own_file(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", film_model())
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=film_model())
    merge_adapter(base, tmp_path / "lora", tmp_path / "out")
    expected = peft_answer(base, tmp_path / "lora")
    assert_near(folder_answer(tmp_path / "out"), expected)


def test_stock_folders_with_dead_modules_and_the_saved_head(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", variant_model("openvla"))
    config = LoraConfig(r=4, lora_alpha=4, target_modules=sorted(TARGET_SUFFIXES))
    wrapped = randomise(get_peft_model(load_model(base), config), seed=3)
    lora = tmp_path / "lora"
    wrapped.save_pretrained(str(lora))
    head = {"base_model.model.language_model.lm_head.base_layer.weight": wrapped.get_base_model()
            .language_model.lm_head.weight.detach().clone()}  # fmt: skip
    save_file({**load_file(lora / "adapter_model.safetensors"), **head},
              lora / "adapter_model.safetensors")  # fmt: skip
    merged = merge_adapter(base, lora, tmp_path / "out")
    assert merged.dead > 0
    expected = peft_answer(base, lora)
    assert_near(folder_answer(tmp_path / "out"), expected)

    other = {key: tensor + 0.1 for key, tensor in head.items()}
    save_file({**load_file(lora / "adapter_model.safetensors"), **other},
              lora / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(AdapterError, match="another base"):
        merge_adapter(base, lora, tmp_path / "again")


def test_stated_fields_are_written_and_parts_left_out(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", variant_model("oft-l1"))
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=variant_model("oft-l1"))
    stated = {"variant": "oft-discrete", "keep_stop_token": False}
    merge_adapter(base, tmp_path / "lora", tmp_path / "out", stated, leave_out=["action_head"])
    config = load_model(tmp_path / "out").config
    assert (config.variant, config.keep_stop_token) == ("oft-discrete", False)
    assert not list((tmp_path / "out").glob("action_head*"))


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base", variant_model("oft-discrete"))
    lora, out = tmp_path / "lora", tmp_path / "out"
    train_fake_adapter(lora, 4, 8.0, seed=1, model=variant_model("oft-discrete"))
    kept = sorted(path.name for path in tmp_path.iterdir())

    with pytest.raises(ModelFolderError, match="exists"):
        merge_adapter(base, lora, base)
    wrong = tmp_path / "wrong"
    train_fake_adapter(wrong, 4, 8.0, seed=1, model=variant_model("oft-discrete"))
    values = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps({**values, "r": 8}))
    with pytest.raises(AdapterError, match=r"expected A \(8"):
        merge_adapter(base, wrong, out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "_merge_shard", full)
    with pytest.raises(StorageError, match="free disk space"):
        merge_adapter(base, lora, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "wrong"])


def publish(run: Path, adapter: Path, base_sha256: str) -> str:
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    facts = {"parent": "base", "task": "t", "method": "grpo", "metrics": {}}
    store = AdapterStore(run / "adapters")
    return store.publish(1, files, base_sha256=base_sha256, **facts).version


def test_export_is_plain_peft_and_knows_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base", variant_model("oft-discrete"))
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=variant_model("oft-discrete"))
    version = publish(tmp_path / "run", tmp_path / "lora", hash_folder(base))
    out = tmp_path / "exported"
    words = ["export", str(tmp_path / "run"), version, str(out), "--base", "openvla/openvla-7b"]
    assert adapters_command(words) == 0
    assert version in capsys.readouterr().out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "openvla/openvla-7b"
    expected = peft_answer(base, tmp_path / "lora")
    assert torch.equal(peft_answer(base, out), expected)
    origin = read_origin(out)
    assert origin is not None
    assert (origin.version, origin.base_sha256) == (version, hash_folder(base))
    assert adapters_command(words) == 2
    assert "exists" in capsys.readouterr().err

    published, copy = tmp_path / "run" / "adapters" / version, tmp_path / "a"
    shutil.copytree(published, copy)
    for number, adapter in enumerate((out, published, copy)):
        assert model_command(["merge", str(base), str(adapter), str(tmp_path / f"m{number}")]) == 0
    assert read_origin(tmp_path / "lora") is None
    capsys.readouterr()
    stated = ["--set", "keep_stop_token=false"]
    assert model_command(["merge", str(base), str(out), str(tmp_path / "m3"), *stated]) == 1
    assert "was trained on the base" in capsys.readouterr().err


def test_a_damaged_version_is_neither_exported_nor_merged(tmp_path: Path) -> None:
    train_fake_adapter(tmp_path / "lora", 4, 8.0, seed=1, model=variant_model("oft-discrete"))
    version = publish(tmp_path / "run", tmp_path / "lora", "0" * 64)
    store = AdapterStore(tmp_path / "run" / "adapters")
    weights = tmp_path / "run" / "adapters" / version / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterCorrupt):
        export_version(store, version, tmp_path / "out", "")
    copy = tmp_path / "a"
    shutil.copytree(weights.parent, copy)
    for folder in (weights.parent, copy):
        with pytest.raises(AdapterCorrupt):
            read_origin(folder)
    assert not (tmp_path / "out").exists()
