"""Token-by-token generation for the causal variant, with a key-value cache."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from agent.model.openvla import OpenVLA, nearest_bins

SMALLEST_TEMPERATURE = 1e-6  # keeps the division of greedy rows finite; their draw is not used


class Generated(NamedTuple):
    """Tokens 0..V-1 int64 (B, 1, A), and what they were chosen from.

    Attributes:
        logits_BKAV: float32 (B, 1, A, V) over the action bins, each given the tokens before it.
        hidden_BKAH: (B, 1, A, H).
    """

    tokens_BKA: Tensor
    logits_BKAV: Tensor
    hidden_BKAH: Tensor


def generate(
    model: OpenVLA,
    input_ids_BL: Tensor,
    pixel_values_BNCHW: Tensor,
    temperatures_B: Tensor,
    noise_BKAV: Tensor,
) -> Generated:
    """Generate the A tokens of one action for every row.

    Args:
        input_ids_BL, pixel_values_BNCHW: as `OpenVLA.forward`, no row padded.
        temperatures_B: float32; greedy at 0.
        noise_BKAV: float32 (B, 1, A, V), standard Gumbel (`sampling.gumbel_noise`); the rows of
            greedy ones are ignored.

    Raises:
        ValueError: a shape does not fit the config.
    """
    model.check_inputs(input_ids_BL, pixel_values_BNCHW, None)
    config, llama = model.config, model.language_model.model
    prefix = model.embed_prefix(input_ids_BL, pixel_values_BNCHW, None, None)
    embeds = model.embed_prompt(input_ids_BL, prefix)
    inputs: dict[str, Any] = {"inputs_embeds": embeds}
    has_greedy = bool((temperatures_B <= 0).any())
    steps = []
    for position in range(config.action_dim):
        output = llama(**inputs, use_cache=True)
        hidden = output.last_hidden_state[:, -1:]
        logits = model.action_logits(hidden)[:, 0]
        tempered = logits / temperatures_B.clamp(min=SMALLEST_TEMPERATURE)[:, None]
        ids_B = (tempered + noise_BKAV[:, 0, position]).argmax(-1) + config.action_vocab_start
        if has_greedy:
            # Such an id may lie outside the bins; it is fed back as it is, as the reference does.
            ids_B = torch.where(temperatures_B > 0, ids_B, model.greedy_ids(hidden)[:, 0])
        steps.append((ids_B, logits, hidden[:, 0]))
        inputs = {"input_ids": ids_B[:, None], "past_key_values": output.past_key_values}
    ids, logits, hidden = (
        torch.stack(parts, dim=1).unsqueeze(1) for parts in zip(*steps, strict=True)
    )
    return Generated(nearest_bins(ids, config), logits, hidden)
