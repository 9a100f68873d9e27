"""One greedy answer of a loaded checkpoint to a generated observation."""

import numpy as np
import torch

from agent.model.autoregressive import generate
from agent.model.policy_model import PolicyModel

TEST_IMAGE_SIDE = 256  # as simulators render
DEFAULT_INSTRUCTION = "put the red cube on the blue plate"


def draw_images(cameras: int, side: int = TEST_IMAGE_SIDE) -> list[np.ndarray]:
    """A smooth colour gradient with a red square on it, another corner a camera: u8 (H, W, 3)."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    images = []
    for camera in range(cameras):
        image = np.empty((side, side, 3), dtype=np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = ramp[:, None], ramp[None, :], 96
        start = side // 8 + camera * side // 4
        image[start : start + side // 8, start : start + side // 8] = (220, 30, 30)
        images.append(image)
    return images


@torch.inference_mode()
def answer_greedily(
    model: PolicyModel, images: list[np.ndarray], instruction: str
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest chunk for one observation, the robot in the middle of its range.

    Args:
        images: u8 (H, W, 3), one a camera in the policy's order.

    Returns:
        choices (K, A) (int64 tokens, or float32 normalised actions) and robot actions (K, A).

    Raises:
        ValueError: the tokenizer cannot write the instruction.
    """
    config, device = model.config, model.device
    dtype = next(model.network.parameters()).dtype
    ids = torch.tensor([model.prompts.encode(instruction)], device=device)
    pixels = model.images.camera_pixels(images)[None].to(device, dtype)
    if config.is_autoregressive:
        shape = (1, config.chunk_size, config.action_dim, config.n_action_bins)
        greedy = torch.zeros(1, device=device)
        drawn = generate(model.network, ids, pixels, greedy, torch.zeros(shape, device=device))
        choices = drawn.tokens_BKA
    else:
        middle = torch.zeros(1, config.proprio_dim, device=device, dtype=dtype)
        output = model.network(ids, pixels, middle if config.use_proprio else None)
        choices = output.means_BKA
        if choices is None:
            choices = model.network.greedy_tokens(output.hidden_BKAH)
    chosen = choices[0].cpu().numpy()
    return chosen, model.actions.to_env(chosen)
