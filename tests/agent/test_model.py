import json
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_near
from model_fixtures import INSTRUCTIONS, STATS, random_inputs, tiny_config, tiny_model
from safetensors.torch import load_file, save_file

from agent.model.checkpoint import load_model, save_model
from agent.model.config import OpenVLAConfig
from agent.model.errors import ModelFolderError
from agent.model.folder import hash_folder
from agent.model.images import images_to_pixels
from agent.model.nano import build_nano_config, build_nano_tokenizer, init_nano
from agent.model.openvla import OpenVLA
from agent.model.processing import PromptEncoder, pad_prompts


@torch.no_grad()
def rounded_model() -> OpenVLA:
    """The tiny model with bfloat16-representable parameters (rotary frequencies stay exact)."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())
    return model


@torch.no_grad()
def test_attention_is_bidirectional() -> None:
    # The last placeholder's neighbour is STOP: dropping STOP must change the first action.
    model = tiny_model()
    inputs = random_inputs(model.config, 1)
    kept = model(*inputs).logits_BKAV
    no_stop = init_nano(OpenVLAConfig.from_dict(model.config.to_dict(), keep_stop_token=False), 0)
    assert not torch.allclose(kept[:, 0, 0], no_stop(*inputs).logits_BKAV[:, 0, 0], atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = tiny_model()
    _, pixels, proprio = random_inputs(model.config, 2)
    prompts = [[1, 5, 6, 7, 8, 3], [1, 9, 5, 3]]
    ids, mask = pad_prompts(prompts, model.config.pad_token_id)
    padded = model(ids, pixels, proprio, mask).logits_BKAV
    for row, prompt in enumerate(prompts):
        one = slice(row, row + 1)
        alone = model(torch.tensor([prompt]), pixels[one], proprio[one]).logits_BKAV
        assert_near(padded[one], alone)
    assert pad_prompts([prompts[0]] * 2, 0)[1] is None


@torch.no_grad()
def test_every_input_reaches_every_action() -> None:
    model = tiny_model()
    ids, pixels, proprio = random_inputs(model.config, 1)
    base = model(ids, pixels, proprio).logits_BKAV
    variants = [(ids.clone(), pixels, proprio), (ids, pixels, -proprio)]
    variants[0][0][0, 4] = 13
    for image in range(model.config.num_images):
        changed = pixels.clone()
        changed[:, image] += 1.0
        variants.append((ids, changed, proprio))
    for variant in variants:
        difference = (model(*variant).logits_BKAV - base).abs().amax(-1)
        assert difference.min() > 0


def test_wrong_shapes_are_named() -> None:
    model = tiny_model()
    ids, pixels, proprio = random_inputs(model.config, 2)
    with pytest.raises(ValueError, match="pixel_values: expected"):
        model(ids, pixels[:, :1], proprio)
    with pytest.raises(ValueError, match="use_proprio=True"):
        model(ids, pixels)
    with pytest.raises(ValueError, match="proprio: expected"):
        model(ids, pixels, proprio[:, :3])


@torch.no_grad()
def test_folder_round_trip(tmp_path: Path) -> None:
    model = rounded_model()
    save_model(model, tmp_path, step=12)
    assert (tmp_path / "proprio_projector--12_checkpoint.pt").exists()
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert not any(k.startswith("proprio") for k in stored)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    inputs = random_inputs(model.config, 2)
    assert torch.equal(loaded(*inputs).logits_BKAV, model(*inputs).logits_BKAV)


@torch.no_grad()
def test_sharded_folder_loads_the_same(tmp_path: Path) -> None:
    model = rounded_model()
    save_model(model, tmp_path, step=1)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    keys = sorted(state)
    shards = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for name, part in shards.items():
        save_file({k: state[k] for k in part}, tmp_path / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    inputs = random_inputs(model.config, 1)
    assert torch.equal(load_model(tmp_path)(*inputs).logits_BKAV, model(*inputs).logits_BKAV)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="which is not there"):
        load_model(tmp_path)


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, step=1)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["stray"] = torch.zeros(1)
    del state["projector.fc1.bias"]
    state["projector.fc3.bias"] = torch.zeros(3)
    save_file(state, file)
    with pytest.raises(
        ModelFolderError, match=r"1 missing.*fc1.*1 unexpected.*stray.*1 mis-shaped"
    ):
        load_model(tmp_path)


def test_folder_hash_follows_content_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tiny_model(), tmp_path / name, step=1)
    (tmp_path / "b" / "README.md").write_text("a model card changes no answer")
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{}")
    assert hash_folder(tmp_path / "a") != hash_folder(tmp_path / "b")
    with pytest.raises(ModelFolderError, match="no model files"):
        hash_folder(tmp_path)


def test_config_errors_name_the_field() -> None:
    values = tiny_config().to_dict()
    no_towers = {**values, "vision_towers": []}
    with pytest.raises(ModelFolderError, match="vision_towers"):
        OpenVLAConfig.from_dict(no_towers)
    with pytest.raises(ModelFolderError, match="image_sizes"):
        OpenVLAConfig.from_dict({k: v for k, v in values.items() if k != "image_sizes"})
    with pytest.raises(ModelFolderError, match="chunksize"):
        OpenVLAConfig.from_dict(values, chunksize=3)
    with pytest.raises(ModelFolderError, match="n_action_bins"):
        OpenVLAConfig.from_dict(values, n_action_bins=10_000)


def test_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        load_model(tmp_path / "nowhere")


def test_statistics_file_replaces_norm_stats(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, step=1)
    (tmp_path / "dataset_statistics.json").write_text('{"other": {"action": {}}}')
    assert set(OpenVLAConfig.from_folder(tmp_path).norm_stats) == {"other"}


def test_nano_token_ids_follow_the_published_derivation(tmp_path: Path) -> None:
    tokenizer = build_nano_tokenizer(INSTRUCTIONS)
    config = build_nano_config(tokenizer, STATS)
    assert config.text_config["vocab_size"] % 64 == 0
    assert tokenizer.token_to_id("<action0>") == config.action_vocab_start
    assert tokenizer.token_to_id("<action255>") == config.action_vocab_end - 1
    assert tokenizer.token_to_id("<PAD>") == config.pad_token_id == config.action_vocab_end
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = PromptEncoder(tmp_path, config)
    ids = encoder.encode("pick up the RED cube")
    assert ids[0] == config.bos_token_id
    assert ids[-1] == encoder.empty_token_id
    assert max(ids) < config.action_vocab_start
    assert encoder.unknown_token_id not in ids
    assert ids == encoder.encode("Pick up the red cube")
    assert ids != encoder.encode("push the blue cube to the left")
    with pytest.raises(ValueError, match="does not know"):
        encoder.encode("fold the towel")


def test_nano_is_seeded_and_small() -> None:
    config = build_nano_config(build_nano_tokenizer(INSTRUCTIONS), STATS)
    state = init_nano(config, 3).state_dict()
    again = init_nano(config, 3).state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state)
    assert sum(v.numel() * 2 for v in state.values()) <= 6_000_000


def test_pixels_hold_both_normalisations() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    pixels = images_to_pixels(images, 16).numpy()
    assert pixels.shape == (2, 3, 6, 16, 16)
    channel_first = np.moveaxis(images, -1, 2) / 255.0
    assert_near(pixels[:, :, 3:], channel_first * 2 - 1, share=1e-6)
    green = (channel_first[:, :, 1] - 0.456) / 0.224
    assert_near(pixels[:, :, 1], green, share=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        images_to_pixels(images.astype(np.float32), 16)
