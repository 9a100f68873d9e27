"""One LoRA step: forward, policy-gradient loss, backward, AdamW."""

from __future__ import annotations

import torch

from agent.model.cost import train_flops
from agent.model.distributions import TokenDistribution
from agent.model.gpus import Gpu
from agent.model.lora import attach_lora
from agent.model.recompute import recompute_blocks
from benchmarks.model_latency.build import (
    PROMPT_TOKENS,
    RANK,
    Machine,
    build_config,
    build_inputs,
    build_model,
)
from benchmarks.model_latency.cells import Cell
from benchmarks.model_latency.timing import Patience, once_s

TEMPERATURE = 1.6  # of the published reinforcement-learning recipes
LEARNING_RATE = 2e-5


def measure_training(
    cell: Cell, machine: Machine, patience: Patience, peak: Gpu
) -> dict[str, float]:
    """The adapter is float32, the frozen base and the products in the machine's arithmetic."""
    config = build_config(machine.size, variant="oft-discrete", num_images=cell.images)
    model = build_model(config, machine)
    adapter = attach_lora(model, RANK, alpha=RANK).train()
    if cell.checkpointing:
        recompute_blocks(model)
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    ids, pixels = build_inputs(config, cell.batch, machine)
    shape = (cell.batch, config.chunk_size, config.action_dim)
    tokens = torch.randint(0, config.n_action_bins, shape, device=machine.device)
    mixed = torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.is_cuda)

    def step() -> None:
        with mixed:
            logits = model(ids, pixels).logits_BKAV
        loss = -TokenDistribution(logits, TEMPERATURE).logprobs(tokens).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first_s = once_s(machine, step)
    seconds = patience.median_s(machine, step)
    flops = cell.batch * train_flops(
        config, PROMPT_TOKENS[machine.size], RANK, checkpointing=cell.checkpointing
    )
    return {
        "first_s": first_s,
        "seconds_s": seconds,
        "floor_s": flops / peak.flops_per_s,
        "samples_per_s": cell.batch / seconds,
        "tokens_per_s": cell.batch * config.sequence_length(PROMPT_TOKENS[machine.size]) / seconds,
        "peak_share": flops / seconds / peak.flops_per_s,
    }
