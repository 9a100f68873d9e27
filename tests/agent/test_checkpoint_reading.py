"""Reading and writing model folders in the published layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_fixtures import forget, narrow_config, outputs, published_keys, random_model
from closeness import assert_near
from safetensors.torch import load_file, save_file

from agent.model.checkpoint import load_model, save_model
from agent.model.errors import ModelFolderError
from agent.model.folder import INDEX_FILE, SINGLE_FILE

SHARD_BYTES = 20_000
SHALLOW = (2, 2, 1)
VARIANTS = {
    "openvla": {"variant": "openvla"},
    "oft-discrete": {"variant": "oft-discrete"},
    "oft-discrete without STOP": {"variant": "oft-discrete", "keep_stop_token": False},
    "oft-discrete with FiLM": {"variant": "oft-discrete", "use_film": True},
    "oft-l1": {"variant": "oft-l1"},
    "oft-l1 with everything": {
        "variant": "oft-l1",
        "use_proprio": True,
        "use_film": True,
        "num_images": 2,
    },
}


@pytest.fixture(scope="module")
def regression_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """oft-l1 with proprio and FiLM: every component there is."""
    folder = tmp_path_factory.mktemp("oft-l1")
    config = narrow_config(SHALLOW, **VARIANTS["oft-l1 with everything"])
    save_model(random_model(config), folder, step=5)
    return folder


@pytest.fixture
def editable(regression_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return shutil.copytree(regression_folder, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("stated", VARIANTS.values(), ids=VARIANTS)
def test_sharded_folder_of_every_variant_round_trips(stated: dict, tmp_path: Path) -> None:
    model = random_model(narrow_config(**stated))
    save_model(model, tmp_path, step=7, shard_bytes=SHARD_BYTES)

    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert set(index["weight_map"]) == published_keys()
    assert len(published_keys()) == 982
    shards = {name: load_file(tmp_path / name) for name in set(index["weight_map"].values())}
    assert len(shards) > 2
    for name, shard in shards.items():
        assert {key for key, file in index["weight_map"].items() if file == name} == set(shard)
        assert sum(t.nbytes for t in shard.values()) <= SHARD_BYTES or len(shard) == 1
    total = sum(t.nbytes for shard in shards.values() for t in shard.values())
    assert index["metadata"]["total_size"] == total

    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    wanted, found = model.state_dict(), loaded.state_dict()
    assert set(wanted) == set(found)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    for left, right in zip(outputs(model), outputs(loaded), strict=True):
        # Where a tensor lies in memory moves the last bit of a product.
        assert_near(left, right)


def test_weights_come_in_the_asked_precision_and_frozen(regression_folder: Path) -> None:
    model = load_model(regression_folder, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    # Rotary frequencies are no weights: rounding them moves every position.
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    stored = load_file(regression_folder / SINGLE_FILE)["projector.fc1.weight"]
    assert torch.equal(model.projector.fc1.weight, stored)


def test_a_loaded_model_does_not_need_its_files(editable: Path) -> None:
    # Same precision as stored: nothing but an explicit copy separates weights from the mapped file.
    model = load_model(editable, torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for file in editable.iterdir():
        file.write_bytes(b"")
        file.unlink()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_the_files_show_need_not_be_stated(editable: Path) -> None:
    forget(editable, "variant", "use_film", "use_proprio", "proprio_dim")
    config = load_model(editable).config
    assert (config.variant, config.use_film, config.use_proprio) == ("oft-l1", True, True)
    assert config.proprio_dim == 8


def test_a_stated_variant_wins_over_what_the_files_show(editable: Path) -> None:
    forget(editable, "variant")
    model = load_model(editable, variant="oft-discrete")
    assert model.config.variant == "oft-discrete"
    assert not any(key.startswith("action_head") for key in model.state_dict())
    without = load_model(editable, use_proprio=False)
    assert not any(key.startswith("proprio") for key in without.state_dict())


def test_causal_and_discrete_folders_look_alike_so_the_variant_is_asked_for(
    tmp_path: Path,
) -> None:
    save_model(random_model(narrow_config(SHALLOW, variant="openvla")), tmp_path, step=0)
    forget(tmp_path, "variant", "chunk_size")
    with pytest.raises(ModelFolderError, match=r"architecture\.variant"):
        load_model(tmp_path)
    assert load_model(tmp_path, variant="openvla").config.chunk_size == 1
    assert load_model(tmp_path, variant="oft-discrete").config.chunk_size == 8


@pytest.mark.parametrize("component", ["action_head", "proprio_projector", "vision_backbone"])
def test_the_prefix_of_distributed_training_is_optional(component: str, editable: Path) -> None:
    file = editable / f"{component}--5_checkpoint.pt"
    stored = torch.load(file, weights_only=True)
    plain = {key.removeprefix("module."): tensor for key, tensor in stored.items()}
    expected = outputs(load_model(editable))
    for tensors in (plain, {f"module.{key}": tensor for key, tensor in plain.items()}):
        torch.save(tensors, file)
        for left, right in zip(outputs(load_model(editable)), expected, strict=True):
            assert_near(left, right)


def test_both_spellings_of_one_key_are_refused(editable: Path) -> None:
    file = editable / "proprio_projector--5_checkpoint.pt"
    stored = torch.load(file, weights_only=True)
    torch.save({**stored, "fc1.bias": torch.zeros(8)}, file)
    with pytest.raises(ModelFolderError, match=r"proprio_projector.*fc1\.bias"):
        load_model(editable)


def test_two_steps_of_one_component_are_refused(editable: Path) -> None:
    shutil.copy(
        editable / "action_head--5_checkpoint.pt", editable / "action_head--10_checkpoint.pt"
    )
    with pytest.raises(ModelFolderError, match=r"action_head--10.*action_head--5.*keep the one"):
        load_model(editable)


@pytest.mark.parametrize("component", ["action_head", "proprio_projector", "vision_backbone"])
def test_a_missing_component_is_named(component: str, editable: Path) -> None:
    (editable / f"{component}--5_checkpoint.pt").unlink()
    with pytest.raises(ModelFolderError, match=rf"needs {component}--\*_checkpoint\.pt"):
        load_model(editable)


def test_a_diffusion_head_is_recognised_and_refused(editable: Path) -> None:
    forget(editable, "variant")
    torch.save(
        {"module.fc1.weight": torch.ones(1)}, editable / "noisy_action_projector--5_checkpoint.pt"
    )
    with pytest.raises(ModelFolderError, match=r"diffusion head.*not served"):
        load_model(editable)
    # Whoever says what else the weights are may load them.
    assert load_model(editable, variant="oft-discrete").config.variant == "oft-discrete"


def test_an_adapter_without_weights_points_to_merging(editable: Path) -> None:
    (editable / SINGLE_FILE).unlink()
    (editable / "lora_adapter").mkdir()
    with pytest.raises(ModelFolderError, match="perennial model merge"):
        load_model(editable)


def test_pickled_weights_point_to_conversion(editable: Path) -> None:
    (editable / SINGLE_FILE).rename(editable / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(ModelFolderError, match="convert them to safetensors"):
        load_model(editable)


def test_saving_again_leaves_nothing_of_the_former_weights(tmp_path: Path) -> None:
    first, second = (
        random_model(narrow_config(SHALLOW, variant="oft-l1"), seed) for seed in (1, 2)
    )
    for shard_bytes in (None, SHARD_BYTES, 10 * SHARD_BYTES, None):
        first, second = second, first
        save_model(first, tmp_path, step=1, shard_bytes=shard_bytes)
        found = load_model(tmp_path).state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in first.state_dict().items())
        held = [key for file in tmp_path.glob("*.safetensors") for key in load_file(file)]
        assert len(held) == len(set(held))


def test_a_single_file_beside_shards_is_ambiguous(tmp_path: Path) -> None:
    model = random_model(narrow_config(SHALLOW, variant="oft-discrete"))
    save_model(model, tmp_path, step=1, shard_bytes=SHARD_BYTES)
    save_file({"projector.fc1.bias": torch.zeros(1)}, tmp_path / SINGLE_FILE)
    with pytest.raises(ModelFolderError, match=f"both {SINGLE_FILE} and {INDEX_FILE}"):
        load_model(tmp_path)
