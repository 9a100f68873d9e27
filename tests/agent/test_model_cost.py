"""Counted costs against three independent counts: the key list, torch's counter, a built model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agent.model.autoregressive import generate
from agent.model.config import OpenVLAConfig
from agent.model.cost import (
    BF16_BYTES,
    checkpointed_bytes,
    chunk_forwards,
    count_adapter,
    count_parameters,
    kv_bytes,
    published_config,
    slot_flops,
    train_flops,
    weight_bytes,
)
from agent.model.gpus import GPUS, Gpu, bandwidth_floor_s, compute_floor_s, floor_s
from agent.model.layers import list_attention
from agent.model.lora import attach_lora, lora_targets
from agent.model.nano import build_nano_config, build_nano_tokenizer, init_nano
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

KEYS = Path(__file__).parents[1] / "golden" / "openvla_oft" / "openvla7b_state_dict_keys.txt"
PROMPT = 9
RANK = 4
DISCRETE = {"variant": "oft-discrete", "greedy_range": "vocabulary"}
CAUSAL = {"variant": "openvla", "greedy_range": "vocabulary"}


def tiny_config(**choices: Any) -> OpenVLAConfig:
    """The nano geometry at 32 pixels, so two patches a side."""
    tokenizer = build_nano_tokenizer(["push the cube"])
    values = build_nano_config(tokenizer, {}, image_size=32, use_proprio=False).to_dict()
    return OpenVLAConfig.from_dict({**values, "num_images": 1, **choices})


def run_forward(model: OpenVLA, batch: int) -> Any:
    """A parallel forward on random inputs."""
    config = model.config
    ids = torch.randint(4, 12, (batch, PROMPT))
    pixels = torch.rand(batch, config.num_images, 6, config.image_size, config.image_size)
    proprio = torch.rand(batch, config.proprio_dim) if config.use_proprio else None
    return model(ids, pixels, proprio)


def test_the_published_geometry_has_the_parameters_of_the_published_key_list() -> None:
    counted = count_parameters(published_config(**DISCRETE))
    stored = dict.fromkeys(counted, 0)
    parts = {"vision_backbone": "vision", "projector": "projector", "language_model": "llm"}
    for line in KEYS.read_text().splitlines():
        key, shape = line.split("\t")
        stored[parts[key.split(".")[0]]] += torch.Size(read_shape(shape)).numel()
    assert {part: count.stored for part, count in counted.items()} == stored
    assert sum(stored.values()) == 7_541_237_184
    assert weight_bytes(published_config(**DISCRETE)) == 2 * 7_541_237_184


def read_shape(text: str) -> list[int]:
    """`[1, 2]` as numbers."""
    return [int(number) for number in text.strip("[]").split(",")]


@pytest.mark.parametrize(
    "choices",
    [
        {"variant": "oft-discrete"},
        {"variant": "oft-l1", "use_proprio": True},
        {"variant": "oft-discrete", "use_film": True},
        {"variant": "openvla", "chunk_size": 1},
    ],
)
def test_every_parameter_of_a_built_model_is_counted(choices: dict[str, Any]) -> None:
    config = tiny_config(**choices)
    with torch.device("meta"):
        model = OpenVLA(config)
    counted = sum(count.stored for count in count_parameters(config).values())
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_what_never_runs_is_what_gets_no_gradient() -> None:
    model = init_nano(tiny_config(variant="oft-discrete"), seed=0)
    run_forward(model, batch=1).logits_BKAV.sum().backward()
    idle = sum(p.numel() for p in model.parameters() if p.grad is None)
    assert sum(c.never_run for c in count_parameters(model.config).values()) == idle
    assert sum(c.never_run for c in count_parameters(published_config(**DISCRETE)).values()) == (
        43_080_480
    )


@pytest.mark.parametrize(
    "choices",
    [
        {"variant": "oft-discrete"},
        {"variant": "oft-discrete", "keep_stop_token": False, "num_images": 2},
        {"variant": "oft-discrete", "use_proprio": True, "use_film": True},
        {"variant": "oft-l1", "use_proprio": True},
    ],
)
def test_a_forward_has_the_flops_that_torch_counts(choices: dict[str, Any]) -> None:
    model = init_nano(tiny_config(**choices), seed=0).eval()
    batch = 2
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_forward(model, batch)
    (forward,) = chunk_forwards(model.config, PROMPT, batch)
    assert counter.get_total_flops() == forward.flops


def test_a_training_step_has_the_flops_that_torch_counts() -> None:
    model = init_nano(tiny_config(variant="oft-discrete", use_proprio=True), seed=0)
    wrapped = attach_lora(model, RANK, alpha=RANK)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_forward(wrapped.get_base_model(), batch=1).logits_BKAV.sum().backward()
    config = model.config
    # Plain kernels keep QK^T: 4 products backward instead of 5.
    kept = sum(a.flops for a in list_attention(config, PROMPT)) // 2
    counted = train_flops(config, PROMPT, RANK, checkpointing=False) - kept
    assert counter.get_total_flops() == counted


def test_an_adapter_has_the_modules_and_parameters_of_the_published_target_list() -> None:
    config = published_config(**DISCRETE)
    everything = count_adapter(config, 32, dead=True)
    assert (everything.modules, everything.parameters) == (439, 110_828_288)
    assert everything.bytes_bf16 == 221_656_576
    with torch.device("meta"):
        model = OpenVLA(config)
    live = [model.get_submodule(name).weight for name in lora_targets(model)]
    counted = count_adapter(config, 32, dead=False)
    assert counted.modules == len(live)
    assert counted.parameters == sum(32 * (w.shape[0] + w[0].numel()) for w in live)


@pytest.mark.parametrize(
    ("choices", "prompt_tokens", "positions", "tflop"),
    [
        ({}, 35, 348, 4.99),
        ({}, 128, 441, 6.23),
        ({"num_images": 2}, 35, 604, 8.84),
    ],
)
def test_the_7b_costs_what_was_worked_out_by_hand(
    choices: dict[str, Any], prompt_tokens: int, positions: int, tflop: float
) -> None:
    config = published_config(**DISCRETE, **choices)
    assert config.sequence_length(prompt_tokens) == positions
    (forward,) = chunk_forwards(config, prompt_tokens)
    assert round(forward.flops / 1e12, 2) == tflop
    assert round(forward.bytes_read / 1e9, 1) == 14.7


def test_generated_tokens_are_a_prefill_and_steps_that_wait_for_memory() -> None:
    config = published_config(**CAUSAL)
    prefill, *steps = chunk_forwards(config, 35)
    assert len(steps) == 6
    assert round(prefill.flops / 1e12, 2) == 4.22
    gpu = Gpu("a GPU", 790e12, 4.3e12, 0)
    assert floor_s([prefill], gpu) == compute_floor_s([prefill], gpu)
    assert floor_s(steps, gpu) == pytest.approx(bandwidth_floor_s(steps, gpu))
    cache = [kv_bytes(config, 291 + number) for number in range(1, 7)]
    assert [s.bytes_read for s in steps] == [steps[0].bytes_read - cache[0] + c for c in cache]


def test_generating_has_the_flops_that_torch_counts() -> None:
    model = init_nano(tiny_config(**CAUSAL, chunk_size=1), seed=0).eval()
    config, batch = model.config, 2
    ids = torch.randint(4, 12, (batch, PROMPT))
    pixels = torch.rand(batch, 1, 6, config.image_size, config.image_size)
    noise = torch.zeros(batch, 1, config.action_dim, config.n_action_bins)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        generate(model, ids, pixels, torch.zeros(batch), noise)
    flops = sum(forward.flops for forward in chunk_forwards(config, PROMPT, batch))
    # For log-probabilities, the bins' logits once more.
    bins = 2 * batch * config.action_dim * config.llama_config().hidden_size * config.n_action_bins
    assert counter.get_total_flops() == flops + bins


def test_a_batch_multiplies_the_flops_and_reads_the_weights_once() -> None:
    config = published_config(**DISCRETE)
    (one,), (eight,) = chunk_forwards(config, 35), chunk_forwards(config, 35, batch=8)
    assert eight.flops == 8 * one.flops
    assert eight.bytes_read == one.bytes_read


def test_training_costs_two_forwards_and_the_adapter_three_with_checkpointing() -> None:
    config = published_config(**DISCRETE)
    (forward,) = chunk_forwards(config, 35)
    plain = train_flops(config, 35, 32, checkpointing=False)
    again = train_flops(config, 35, 32, checkpointing=True)
    assert 2.0 < plain / forward.flops < 2.15
    assert 3.0 < again / forward.flops < 3.15


def test_masked_slots_have_the_flops_that_torch_counts() -> None:
    model = init_nano(tiny_config(variant="oft-discrete"), seed=0)
    slots, batch = 4, 2
    SlotBank(model, slots, RANK, masked=True).select([1, 3])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_forward(model, batch)
    (forward,) = chunk_forwards(model.config, PROMPT, batch)
    extra = batch * slot_flops(model.config, PROMPT, RANK, slots - 1)
    assert counter.get_total_flops() == forward.flops + extra


def test_checkpointing_keeps_one_row_of_numbers_a_token_and_block() -> None:
    config = published_config(**DISCRETE)
    towers = 23 * 261 * 1024 + 26 * 256 * 1152
    assert checkpointed_bytes(config, 35) == BF16_BYTES * (towers + 32 * 348 * 4096)


def test_gpus_have_names_of_their_own_and_shares_only_slow_them_down() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    forwards = chunk_forwards(published_config(**DISCRETE), 35)
    for gpu in GPUS:
        slowed = gpu.reaching(0.5, 0.5)
        assert floor_s(forwards, slowed) == pytest.approx(2 * floor_s(forwards, gpu))
