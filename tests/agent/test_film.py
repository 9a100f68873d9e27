"""FiLM: the instruction's modulation of the towers, and its published checkpoint."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoint_fixtures import narrow_config, random_model
from closeness import assert_near
from peft import LoraConfig, get_peft_model
from torch import Tensor

from agent.model.film import read_film_backbone, write_film_backbone
from agent.model.folder import read_component
from agent.model.openvla import OpenVLA
from agent.model.processing import pad_prompts
from agent.model.vision import VisionTower

ADAPTED = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "patch_embed.proj", "attn_pool.q",
           "attn_pool.kv", "attn_pool.proj")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return random_model(narrow_config((3, 3, 2), variant="oft-discrete", use_film=True))


def normalised(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    scaled = centred / (variance + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def expected_features(tower: VisionTower, heads: int, pixels: Tensor, language: Tensor) -> Tensor:
    """One image (3, S, S) and one prompt (H,) through a tower, written out in plain products."""
    weights = tower.state_dict()
    kernel = weights["patch_embed.proj.weight"]
    size = kernel.shape[-1]
    rows = [
        (pixels[:, y : y + size, x : x + size] * kernel).sum((1, 2, 3))
        for y in range(0, pixels.shape[1], size)
        for x in range(0, pixels.shape[2], size)
    ]
    tokens = torch.stack(rows) + weights["patch_embed.proj.bias"] + weights["pos_embed"][0]
    prefix = [weights[name][0] for name in ("cls_token", "reg_token") if name in weights]
    tokens = torch.cat([*prefix, tokens])
    for number in range(len(tower.blocks) - 1):
        own = f"blocks.{number}."
        block = {k.removeprefix(own): t for k, t in weights.items() if k.startswith(own)}
        scale = linear(language, block, "film.scale")
        shift = linear(language, block, "film.shift")
        qkv = linear(normalised(tokens, block, "norm1"), block, "attn.qkv")
        mixed = []
        for head in range(heads):
            q, k, v = (part.chunk(heads, dim=-1)[head] for part in qkv.chunk(3, dim=-1))
            mixed.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v)
        attended = linear(torch.cat(mixed, dim=-1), block, "attn.proj")
        tokens = tokens + attended * block.get("ls1.scale_factor", 1.0)
        tokens = (1 + scale) * tokens + shift
        inner = F.gelu(linear(normalised(tokens, block, "norm2"), block, "mlp.fc1"))
        tokens = tokens + linear(inner, block, "mlp.fc2") * block.get("ls2.scale_factor", 1.0)
    return tokens[len(tokens) - weights["pos_embed"].shape[1] :]


@torch.no_grad()
def test_modulation_against_plain_products() -> None:
    config = narrow_config((3, 4, 1), variant="oft-discrete", use_film=True, num_images=2)
    model = random_model(config).double()
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 40, 41, 42, 9], [1, 50, 51, 52, 9]])
    pixels = torch.randn(2, 2, 6, 28, 28, generator=generator).double()
    prefix = model.embed_prefix(ids, pixels, None, None)

    table = model.language_model.model.embed_tokens.weight
    backbone = model.vision_backbone
    for row in range(2):
        # The mean runs over BOS, the whole prompt and STOP; the placeholders are no language.
        language = torch.stack([table[i] for i in (*ids[row].tolist(), 2)]).mean(0)
        for image in range(2):
            dino = expected_features(backbone.featurizer, 2, pixels[row, image, :3], language)
            siglip = expected_features(
                backbone.fused_featurizer, 2, pixels[row, image, 3:], language
            )
            expected = model.projector(torch.cat([dino, siglip], dim=-1))
            found = prefix[row, image * len(dino) : (image + 1) * len(dino)]
            assert_near(found, expected, share=1e-12)


@torch.no_grad()
def test_pads_and_a_dropped_stop_are_no_language(model: OpenVLA) -> None:
    prompts = [[1, 40, 41, 42, 43, 9], [1, 50, 9]]
    pixels = torch.randn(2, 1, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    ids, mask = pad_prompts(prompts, model.config.pad_token_id)
    table = model.language_model.model.embed_tokens.weight
    dropped = random_model(
        narrow_config((3, 3, 2), variant="oft-discrete", use_film=True, keep_stop_token=False)
    )
    for network, ending in ((model, [2]), (dropped, [])):
        prefix = network.embed_prefix(ids, pixels, None, mask)
        for row, prompt in enumerate(prompts):
            language = table[prompt + ending].mean(0, keepdim=True)
            features = network.vision_backbone(pixels[row : row + 1], language)
            assert_near(prefix[row : row + 1], network.projector(features))


def published_names(state: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """(ours, published, tensor) of each tower tensor: blocks wrapped, adapted bases renamed."""
    for key, tensor in state.items():
        if not key.startswith("vision_backbone."):
            continue
        parts = key.split(".")
        if "blocks" in parts:
            at = parts.index("blocks") + 2
            parts = (
                [*parts[:at], *parts[at + 1 :]]
                if parts[at] == "film"
                else [*parts[:at], "block", *parts[at:]]
            )
        if ".".join(parts[:-1]).endswith(ADAPTED):
            parts.insert(-1, "base_layer")
        yield key, ".".join(parts), tensor


def lora_factors(rank: int, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As PEFT shapes them: (r, in) and (out, r), or a convolution and a 1 x 1 convolution."""
    ones = [1] * (weight.ndim - 2)
    return (
        torch.randn(rank, *weight.shape[1:], generator=generator),
        torch.randn(len(weight), rank, *ones, generator=generator),
    )


@pytest.mark.parametrize("rank", [4, 16, 32])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_layout_with_unmerged_lora(
    model: OpenVLA, rank: int, prefix: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(rank)
    stored, expected = {}, {}
    for key, name, tensor in published_names(model.state_dict()):
        stored[name] = expected[key] = tensor
        if ".base_layer.weight" not in name:
            continue
        A, B = lora_factors(rank, tensor, generator)
        module = name.removesuffix(".base_layer.weight")
        stored[f"{module}.lora_A.default.weight"] = A
        stored[f"{module}.lora_B.default.weight"] = B
        # Per output and input, the sum over the ranks; alpha is 16, or the rank below it.
        spread = 1.0 if rank <= 16 else 16 / rank
        equation = "r...,or->o..." if tensor.ndim == 2 else "r...,orxy->o..."
        expected[key] = tensor + spread * torch.einsum(equation, A, B)
    assert sum("lora_A" in key for key in stored) == 2 * (3 * 4 + 1) + 5

    file = tmp_path / "vision_backbone--5_checkpoint.pt"
    torch.save({f"{prefix}{key}": tensor for key, tensor in stored.items()}, file)
    found = read_film_backbone(read_component(file))

    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert_near(found[key], tensor, name=key)


@torch.no_grad()
def test_merged_factors_compute_what_peft_computes() -> None:
    generator = torch.Generator().manual_seed(3)
    tower = random_model(narrow_config((3, 3, 1), variant="oft-discrete")).vision_backbone
    names = ["qkv", "proj", "fc1", "fc2", "q", "kv"]
    adapted = get_peft_model(
        copy.deepcopy(tower), LoraConfig(r=4, lora_alpha=4, target_modules=names)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    stored = {k.removeprefix("base_model.model."): t for k, t in adapted.state_dict().items()}
    merged = read_film_backbone(stored)
    tower.load_state_dict({k.removeprefix("vision_backbone."): t for k, t in merged.items()})
    pixels = torch.randn(2, 1, 6, 28, 28, generator=generator)
    assert_near(tower(pixels), adapted(pixels))


def test_a_merge_keeps_the_precision_of_its_factors(model: OpenVLA) -> None:
    # A change below bfloat16's resolution must survive loading in float32.
    module = "vision_backbone.featurizer.blocks.0.block.attn.qkv"
    weight = torch.ones(24, 8, dtype=torch.bfloat16)
    stored = {
        f"{module}.base_layer.weight": weight,
        f"{module}.lora_A.default.weight": torch.full((1, 8), 1e-2),
        f"{module}.lora_B.default.weight": torch.full((24, 1), 1e-2),
    }
    merged = read_film_backbone(stored)["vision_backbone.featurizer.blocks.0.attn.qkv.weight"]
    assert_near(merged, torch.full((24, 8), 1.0001), share=1e-6)


def test_writing_is_the_inverse_of_reading(model: OpenVLA) -> None:
    state = model.state_dict()
    towers = {key: tensor for key, tensor in state.items() if key.startswith("vision_backbone.")}
    written = write_film_backbone(state)
    plain = {name.replace(".base_layer", "") for _, name, _ in published_names(state)}
    assert set(written) == plain
    back = read_film_backbone(written)
    assert set(back) == set(towers)
    assert all(torch.equal(back[key], tensor) for key, tensor in towers.items())
