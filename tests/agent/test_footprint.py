"""Memory that a network needs besides its weights, counted without data."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agent.model.config import OpenVLAConfig
from agent.model.cost import count_parameters, published_config
from agent.model.footprint import LiveBytes, serving_footprint, training_footprint
from agent.model.lora import lora_targets
from agent.model.nano import build_nano_config, build_nano_tokenizer
from agent.model.openvla import OpenVLA

PROMPT, RANK = 9, 4
MB = 1 << 20


def tiny_config(**choices: Any) -> OpenVLAConfig:
    """The nano widths at 32 pixels, so two patches a side, and few blocks."""
    tokenizer = build_nano_tokenizer(["push the cube"])
    values = build_nano_config(tokenizer, {}, image_size=32, use_proprio=False).to_dict()
    values["vision_towers"] = [{**tower, "depth": 3} for tower in values["vision_towers"]]
    values["text_config"] = {**values["text_config"], "num_hidden_layers": 3}
    return OpenVLAConfig.from_dict({**values, "num_images": 1, **choices})


@pytest.mark.parametrize("has_data", [True, False])
def test_storages_count_once_from_their_making_to_their_end(has_data: bool) -> None:
    with torch.no_grad(), FakeTensorMode() if not has_data else torch.no_grad():
        held = torch.zeros(MB // 4)
        with LiveBytes([held]) as memory:
            one = held + 1  # 1 MB
            view = one.view(2, -1)[0]  # the same storage
            assert memory.live == MB
            two = one * 2
            del one
            assert memory.live == 2 * MB, "a view keeps its storage"
            del view
            assert memory.live == MB
            held.add_(two)
        assert (memory.live, memory.peak) == (MB, 2 * MB)


def test_a_backward_pass_holds_what_it_needs_of_the_forward() -> None:
    with FakeTensorMode():
        weight = torch.zeros(64, 64, requires_grad=True)
        x = torch.zeros(512, 64)
        with LiveBytes([weight, x]) as memory:
            y = (x @ weight).exp().sum()
            # exp keeps its result; the product is freed, the sum is one number.
            assert memory.live == 4 * (512 * 64 + 1)
            y.backward()
        # Besides the result: its gradient times it, and the gradient of the product.
        assert memory.peak >= 4 * 2 * 512 * 64


@pytest.mark.parametrize(
    "choices",
    [
        {"variant": "oft-discrete"},
        pytest.param({"variant": "oft-l1", "use_proprio": True}, marks=pytest.mark.slow),
        pytest.param({"variant": "openvla", "chunk_size": 1}, marks=pytest.mark.slow),
    ],
)
def test_what_is_held_is_what_was_counted(choices: dict[str, Any]) -> None:
    config = tiny_config(**choices)
    stored = sum(part.stored for part in count_parameters(config).values())
    with torch.device("meta"):
        network = OpenVLA(config)
    adapted = [network.get_submodule(name).weight for name in lora_targets(network)]
    pairs = sum(RANK * (len(weight) + weight[0].numel()) for weight in adapted)
    trained = training_footprint(config, torch.bfloat16, 2, PROMPT, rank=RANK, recompute=False)
    assert (trained.parameters, trained.trained) == (stored, pairs)
    assert trained.adapter_bytes == 4 * pairs
    slots = 3
    served = serving_footprint(config, torch.bfloat16, 2, PROMPT, slots=slots, rank=RANK)
    assert served.parameters == stored
    assert served.adapter_bytes == slots * 2 * pairs
    # Rotary frequencies are buffers beside the weights.
    assert 0 <= served.base_bytes - 2 * stored < 1024
    assert served.base_bytes == trained.base_bytes
    assert 0 < served.working_bytes < trained.working_bytes


@pytest.mark.slow
def test_memory_grows_with_the_rows_and_recomputing_saves_most_of_it() -> None:
    config = tiny_config(variant="oft-discrete")

    def working(batch: int, recompute: bool) -> int:
        return training_footprint(
            config, torch.float32, batch, PROMPT, rank=RANK, recompute=recompute
        ).working_bytes

    one, four = working(1, False), working(4, False)
    assert four == pytest.approx(4 * one, rel=0.05)
    assert working(4, True) < 0.7 * four


def test_a_merged_copy_is_as_large_as_the_weights_it_replaces() -> None:
    config = tiny_config(variant="oft-discrete")
    plain, merged = (
        serving_footprint(config, torch.float32, 1, PROMPT, slots=2, rank=RANK, merged=merged)
        for merged in (False, True)
    )
    copy = merged.adapter_bytes - plain.adapter_bytes
    assert 0.5 * plain.base_bytes < copy < plain.base_bytes


@pytest.mark.slow
def test_the_7b_needs_what_its_authors_report() -> None:
    """OpenVLA-OFT's documentation: 25.6 GB at batch 1 and 62 GB at batch 8, two images."""
    config = published_config(variant="oft-l1", num_images=2, use_proprio=True)
    found = training_footprint(config, torch.bfloat16, 1, 35, rank=32, recompute=False)
    assert found.trained == 109_126_400  # 110,828,288 and the 13 modules that never run
    assert found.working_bytes == pytest.approx((62e9 - 25.6e9) / 7, rel=0.05)
