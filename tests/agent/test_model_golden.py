"""Golden cases: outputs of the reference modelling code on a tiny model (see the README there)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closeness import GRADIENT, REFERENCE, assert_near
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from agent.model.actions import ActionCodec, NormBounds, decode_tokens, encode_actions
from agent.model.autoregressive import generate
from agent.model.checkpoint import load_model
from agent.model.config import OpenVLAConfig
from agent.model.images import images_to_pixels
from agent.model.lora import attach_lora, lora_targets, pair_adapter_tensors, read_adapter
from agent.model.openvla import ActionOutput, OpenVLA
from agent.model.processing import append_empty_token, pad_prompts
from agent.model.sampling import sample_tokens, token_entropy, token_logprobs
from agent.model.slots import SlotBank
from agent.model.towers import TowerConfig

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).parents[1] / "golden" / "openvla_oft"
TOWERS = (
    TowerConfig("dinov2", 32, 3, 2, 128, 14, registers=4),
    TowerConfig("siglip", 48, 4, 3, 179, 14),
)
EMPTY_TOKEN_ID = json.loads((GOLDEN / "prompt_ids.json").read_text())["special"]["empty"]
OFT = load_file(GOLDEN / "cases_oft.safetensors")
AR = load_file(GOLDEN / "cases_ar.safetensors")
RL = load_file(GOLDEN / "cases_rl.safetensors")
LORA = load_file(GOLDEN / "cases_lora.safetensors")


def load(**overrides: object) -> OpenVLA:
    """The golden model in float32."""
    stated = {"variant": "oft-discrete", "use_proprio": False, **overrides}
    return load_model(GOLDEN, vision_towers=TOWERS, **stated)


def read_image(name: str) -> np.ndarray:
    """A fixture image, uint8 (H, W, 3)."""
    return np.asarray(Image.open(GOLDEN / name).convert("RGB"))


def read_pixels(rows: list[list[int]]) -> Tensor:
    """Pixel values of the fixture images each row names, (B, images, 6, 224, 224)."""
    images = np.stack([[read_image(f"image_{i}.png") for i in row] for row in rows])
    return images_to_pixels(images, 224)


def actions_of(tokens: np.ndarray, config: OpenVLAConfig) -> np.ndarray:
    """Un-normalised actions of tokens 0..V-1, the gripper as the dataset has it."""
    epsilon = 0.0 if config.is_autoregressive else 1e-8
    bounds = NormBounds.from_stats(config.norm_stats, "libero_spatial", epsilon=epsilon)
    return ActionCodec(bounds, config.n_action_bins, "continuous").to_env(tokens)


@pytest.mark.parametrize(
    ("case", "images"),
    [("disc1", [0]), ("disc1_space", [0]), ("disc1_p1", [0]), ("disc2img", [0, 1])],
)
@torch.no_grad()
def test_oft_discrete_cases(case: str, images: list[int]) -> None:
    model = load(num_images=len(images), greedy_range="vocabulary")
    config = model.config
    ids = append_empty_token(OFT[f"{case}.input_ids"][0].tolist(), EMPTY_TOKEN_ID)
    assert config.sequence_length(len(ids)) == int(OFT[f"{case}.seq_len"])

    output = model(torch.tensor([ids]), read_pixels([images]))

    hidden = output.hidden_BKAH.flatten(1, 2)
    assert_near(hidden, OFT[f"{case}.hidden_at_actions"], REFERENCE)
    expected = OFT[f"{case}.logits_at_actions"][..., : config.n_action_bins]
    assert_near(output.logits_BKAV.flatten(1, 2), expected, REFERENCE)
    full = model.greedy_ids(hidden)
    assert torch.equal(full, OFT[f"{case}.full_argmax"])
    tokens = (full[0] - config.action_vocab_start).numpy().reshape(8, 7)
    np.testing.assert_array_equal(
        decode_tokens(tokens, config.n_action_bins), OFT[f"{case}.normalized"].numpy()
    )
    np.testing.assert_array_equal(actions_of(tokens, config), OFT[f"{case}.actions"].numpy())


@pytest.mark.parametrize(
    ("case", "images"), [("l1_2img_proprio", [0, 1]), ("l1_2img", [0, 1]), ("l1_1img", [0])]
)
@torch.no_grad()
def test_oft_regression_cases(case: str, images: list[int]) -> None:
    proprio = OFT.get(f"{case}.proprio")
    model = load(variant="oft-l1", num_images=len(images), use_proprio=proprio is not None)
    ids = append_empty_token(OFT[f"{case}.input_ids"][0].tolist(), EMPTY_TOKEN_ID)
    proprio = None if proprio is None else proprio.float().view(1, -1)
    output = model(torch.tensor([ids]), read_pixels([images]), proprio)
    hidden = output.hidden_BKAH.flatten(1, 2)
    assert_near(hidden, OFT[f"{case}.hidden_at_actions"], REFERENCE)
    assert output.means_BKA is not None
    means = output.means_BKA[0]
    assert_near(means, OFT[f"{case}.normalized"].float(), REFERENCE)
    assert_near(actions_of(means.numpy(), model.config), OFT[f"{case}.actions"], REFERENCE)


def test_the_regression_head_is_found_without_being_named() -> None:
    config = load_model(GOLDEN, vision_towers=TOWERS, num_images=2).config
    assert (config.variant, config.use_proprio, config.proprio_dim) == ("oft-l1", True, 8)


@torch.no_grad()
@pytest.mark.parametrize("case", [0, 1, 2])
def test_causal_cases(case: int) -> None:
    model = load(variant="openvla", chunk_size=1, greedy_range="vocabulary")
    config = model.config
    ids = torch.tensor([append_empty_token(AR[f"ar{case}.input_ids"][0].tolist(), EMPTY_TOKEN_ID)])
    pixels = read_pixels([[case]])
    noise = torch.zeros(1, 1, config.action_dim, config.n_action_bins)

    drawn = generate(model, ids, pixels, torch.zeros(1), noise)

    tokens = drawn.tokens_BKA[0, 0]
    assert torch.equal(tokens + config.action_vocab_start, AR[f"ar{case}.tokens"])
    expected = AR[f"ar{case}.logits"][:, : config.n_action_bins]
    assert_near(drawn.logits_BKAV[0, 0], expected, REFERENCE)
    np.testing.assert_array_equal(
        actions_of(tokens.numpy(), config), AR[f"ar{case}.actions"].numpy()
    )
    # One forward over the finished tokens is what a learner scores with.
    scored = model(ids, pixels, tokens_BKA=drawn.tokens_BKA)
    assert_near(scored.logits_BKAV[0, 0], expected, REFERENCE)


@torch.no_grad()
def test_training_batch_and_its_loss() -> None:
    model = load()
    config = model.config
    labels, mask = OFT["train.labels"], OFT["train.attention_mask"]
    is_label = labels != -100
    prompts = [
        ids[row_mask & ~row_labels].tolist()
        for ids, row_mask, row_labels in zip(OFT["train.input_ids"], mask, is_label, strict=True)
    ]
    ids, prompt_mask = pad_prompts(prompts, config.pad_token_id)
    hidden = model.hidden_states(ids, read_pixels([[0], [1]]), None, prompt_mask)
    hidden = hidden[:, : config.action_tokens + 1]  # the last of them predicts STOP
    logits = model.language_model.lm_head(hidden)
    for row in range(2):
        at_actions = hidden[row, : config.action_tokens]
        assert_near(at_actions, OFT[f"train.hidden_at_actions.{row}"], REFERENCE)
        bins = logits[row, :, config.action_vocab_start :]
        assert_near(bins, OFT[f"train.logits_at_actions.{row}"], REFERENCE)
    targets = torch.stack([row[keep] for row, keep in zip(labels, is_label, strict=True)])
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert_near(loss, OFT["train.loss"], REFERENCE)
    bounds_free = encode_actions(OFT["train.gt_actions.0"].numpy(), config.n_action_bins)
    expected = targets[0, : config.action_tokens] - config.action_vocab_start
    np.testing.assert_array_equal(bounds_free.flatten(), expected.numpy())


@torch.no_grad()
def test_vision_and_projector_intermediates() -> None:
    model = load()
    pixels = read_pixels([[0]])
    np.testing.assert_allclose(
        pixels[0, 0].double().sum((1, 2)), OFT["pixel_values.0.channel_sums"], rtol=1e-5, atol=0.05
    )
    strided = OFT["pixel_values.0.strided"][0]
    assert_near(pixels[0, 0, :, ::16, ::16], strided, share=1e-6)
    features = model.vision_backbone(pixels)
    assert_near(features[:, ::17], OFT["disc1.vision"], REFERENCE)
    assert_near(model.projector(features), OFT["disc1.projected"], REFERENCE)


def rlinf_output(model: torch.nn.Module) -> ActionOutput:
    return model(
        RL["rlinf.input_ids"],
        read_pixels([[0], [1], [2]]),
        attention_mask_BL=RL["rlinf.attention_mask"],
    )


@torch.no_grad()
def test_rlinf_padded_batch() -> None:
    model = load(keep_stop_token=False)
    config = model.config
    output = rlinf_output(model)
    logits = output.logits_BKAV
    assert_near(output.hidden_BKAH.flatten(1, 2), RL["rlinf.hidden_at_actions"], REFERENCE)
    assert_near(logits.flatten(1, 2), RL["rlinf.masked_logits"], REFERENCE)
    greedy = sample_tokens(logits, 0.0)
    ids = greedy + config.action_vocab_start
    assert torch.equal(ids.flatten(1), RL["rlinf.greedy_tokens"])
    np.testing.assert_array_equal(
        actions_of(greedy.numpy(), config), RL["rlinf.greedy_actions"].numpy()
    )
    given = (RL["rlinf.given_tokens"] - config.action_vocab_start).view(3, 8, 7)
    logprobs = token_logprobs(logits, given, 1.6).flatten(1)
    assert_near(logprobs, RL["rlinf.given_logprobs_T1.6"], REFERENCE)
    entropy = token_entropy(logits, 1.6).flatten(1)
    assert_near(entropy, RL["rlinf.entropy_T1.6"], REFERENCE)


@torch.no_grad()
def test_rlinf_rows_equal_their_unpadded_selves() -> None:
    model = load(keep_stop_token=False)
    padded = rlinf_output(model).logits_BKAV
    for row, mask in enumerate(RL["rlinf.attention_mask"].bool()):
        ids = RL["rlinf.input_ids"][row][mask].unsqueeze(0)
        alone = model(ids, read_pixels([[row]])).logits_BKAV[0]
        assert_near(alone, padded[row], REFERENCE)


@torch.no_grad()
def test_rlinf_two_images() -> None:
    model = load(keep_stop_token=False, num_images=2)
    output = model(
        RL["rlinf.input_ids"][:2],
        read_pixels([[0, 1], [2, 3]]),
        attention_mask_BL=RL["rlinf.attention_mask"][:2],
    )
    logits = output.logits_BKAV.flatten(1, 2)
    assert_near(logits, RL["rlinf2.masked_logits"], REFERENCE)
    ids = logits.argmax(-1) + model.config.action_vocab_start
    assert torch.equal(ids, RL["rlinf2.greedy_tokens"])


@torch.no_grad()
def test_simplevla_left_padded_batch() -> None:
    model = load()
    masks = RL["simplevla.attention_mask"].bool()
    prompts = [
        ids[mask].tolist() for ids, mask in zip(RL["simplevla.input_ids"], masks, strict=True)
    ]
    ids, mask = pad_prompts(prompts, model.config.pad_token_id)
    output = model(ids, read_pixels([[0], [1], [2]]), attention_mask_BL=mask)
    greedy = sample_tokens(output.logits_BKAV, 0.0)
    ids = greedy + model.config.action_vocab_start
    assert torch.equal(ids.flatten(1), RL["simplevla.greedy_tokens"])
    np.testing.assert_array_equal(
        actions_of(greedy.numpy(), model.config), RL["simplevla.greedy_actions"].numpy()
    )


def test_action_encoding_matches_the_reference() -> None:
    config = OpenVLAConfig.from_folder(GOLDEN, vision_towers=TOWERS, variant="oft-discrete")
    tokens = np.arange(1, config.n_action_bins)
    centres = decode_tokens(tokens, config.n_action_bins)
    np.testing.assert_array_equal(encode_actions(centres, config.n_action_bins), tokens)


def test_lora_training_matches_peft_reference() -> None:
    model = load(keep_stop_token=False)
    tensors, spec = read_adapter(GOLDEN / "adapter")
    pairs = pair_adapter_tensors(model, lora_targets(model), tensors)
    peft_model = attach_lora(model, spec.rank, spec.alpha)
    parameters = {k: p for k, p in peft_model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            module, part = name.removeprefix("base_model.model.").split(".lora_")
            parameter.copy_(pairs[module][part[0] == "B"])

    logits = rlinf_output(peft_model).logits_BKAV
    given = (RL["rlinf.given_tokens"] - model.config.action_vocab_start).view(3, 8, 7)
    logprobs = token_logprobs(logits, given, 1.6).flatten(1)
    loss = -(logprobs * LORA["lora.advantages"][:, None]).mean()
    loss.backward()

    bins = LORA["lora.logits"][..., : model.config.n_action_bins]
    assert_near(logits.detach().flatten(1, 2), bins, REFERENCE)
    assert_near(logprobs.detach(), LORA["lora.logprobs_T1.6"], REFERENCE)
    assert_near(loss.detach(), LORA["lora.loss"], REFERENCE)
    gradients = {k.replace(".default", ""): p.grad for k, p in parameters.items()}
    norms = json.loads((GOLDEN / "lora_grad_norms.json").read_text())
    assert set(gradients) == {k for k, norm in norms.items() if norm > 0}
    for name, gradient in gradients.items():
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norms[name], rel=1e-3), name
        if f"grad.{name}" in LORA:
            assert_near(gradient, LORA[f"grad.{name}"], GRADIENT)


@torch.no_grad()
def test_slot_bank_serves_the_reference_adapter() -> None:
    model = load(keep_stop_token=False)
    bank = SlotBank(model, slots=3, rank=8)
    bank.load(2, *read_adapter(GOLDEN / "adapter"))
    bank.select([2, 0, 2])
    logits = rlinf_output(model).logits_BKAV.flatten(1, 2)
    adapted = LORA["lora.logits"][..., : model.config.n_action_bins]
    expected = torch.stack([adapted[0], RL["rlinf.masked_logits"][1], adapted[2]])
    assert_near(logits, expected, REFERENCE)


def test_rlinf_resize_is_exact() -> None:
    resized = images_to_pixels(read_image("pre_0_raw256.png"), 224)
    assert torch.equal(resized, images_to_pixels(read_image("pre_rlinf_224.png"), 224))


def test_full_size_keys_and_shapes() -> None:
    config = OpenVLAConfig.from_dict(
        {
            "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
            "timm_model_ids": [
                "vit_large_patch14_reg4_dinov2.lvd142m",
                "vit_so400m_patch14_siglip_224",
            ],
            "image_sizes": [224, 224],
            "pad_token_id": 32000,
            "pad_to_multiple_of": 64,
            "variant": "oft-discrete",
        }
    )
    with torch.device("meta"):
        state = OpenVLA(config).state_dict()
    lines = (GOLDEN / "openvla7b_state_dict_keys.txt").read_text().splitlines()
    expected = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    assert {k: str(list(v.shape)) for k, v in state.items()} == expected
