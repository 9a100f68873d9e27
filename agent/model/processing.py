"""Observations to model inputs: pixels and prompt ids."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from agent.model.config import ModelFolderError, OpenVLAConfig

PROMPT_TEMPLATE = "In: What action should the robot take to {task}?\nOut:"
CHANNEL_MEAN = torch.tensor([0.485, 0.456, 0.406, 0.5, 0.5, 0.5])
CHANNEL_STD = torch.tensor([0.229, 0.224, 0.225, 0.5, 0.5, 0.5])


def images_to_pixels(images: np.ndarray, size: int) -> Tensor:
    """Camera images to pixel values.

    Args:
        images: uint8 (..., H, W, 3), upright as the policy was trained on.
        size: side of the model's input [pixels]; other sizes are resized first (bicubic with
            antialiasing, rounded back to 8 bits, as RLinf's preprocessing does).

    Returns:
        float32 (..., 6, size, size): channels 0..2 with ImageNet statistics for DINOv2, 3..5
        scaled to [-1, 1] for SigLIP.

    Raises:
        ValueError: not uint8 or not (..., H, W, 3).
    """
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected uint8 (..., H, W, 3), got {images.dtype} {images.shape}"
        )
    lead = images.shape[:-3]
    flat = torch.from_numpy(images.astype(np.float32)).reshape(-1, *images.shape[-3:])
    pixels = flat.permute(0, 3, 1, 2).contiguous()
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        pixels = pixels.round().clamp(0, 255)
    six = (pixels / 255.0).repeat(1, 2, 1, 1)
    normalised = (six - CHANNEL_MEAN.view(6, 1, 1)) / CHANNEL_STD.view(6, 1, 1)
    return normalised.reshape(*lead, 6, size, size)


def append_empty_token(ids: list[int], empty_token_id: int) -> list[int]:
    """End a prompt with the empty token, where the first action's logits are read."""
    return ids if ids[-1] == empty_token_id else [*ids, empty_token_id]


def pad_prompts(prompts: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor | None]:
    """Stack prompts as [BOS][pads][rest], the layout the model reads.

    Returns:
        int64 ids (B, L) and the mask (B, L), None when no row is padded.
    """
    width = max(len(p) for p in prompts)
    fill = [width - len(p) for p in prompts]
    ids = [[p[0], *[pad_token_id] * n, *p[1:]] for p, n in zip(prompts, fill, strict=True)]
    if not any(fill):
        return torch.tensor(ids), None
    mask = [[1, *[0] * n, *[1] * (len(p) - 1)] for p, n in zip(prompts, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class PromptEncoder:
    """Instructions to prompt ids with the model folder's tokenizer.json.

    Raises:
        ModelFolderError: no tokenizer, or its ids disagree with the config.
    """

    def __init__(self, folder: Path, config: OpenVLAConfig) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise ModelFolderError(f"{path} does not exist: the model folder needs a tokenizer")
        self.tokenizer = Tokenizer.from_file(str(path))
        self.config = config
        empty = self.tokenizer.token_to_id(config.empty_token)
        if empty is None:
            raise ModelFolderError(f"{path} lacks the empty token {config.empty_token!r}")
        self.empty_token_id = empty
        self.unknown_token_id = self.tokenizer.token_to_id("<unk>")
        self._cache: dict[str, list[int]] = {}

    def encode(self, task: str) -> list[int]:
        """Prompt ids of one instruction: BOS first, empty token last.

        Raises:
            ValueError: the instruction holds words outside the vocabulary, or is too long.
        """
        if task not in self._cache:
            self._cache[task] = self._encode(task)
        return self._cache[task]

    def _encode(self, task: str) -> list[int]:
        ids = self.tokenizer.encode(PROMPT_TEMPLATE.format(task=task.lower())).ids
        if not ids or ids[0] != self.config.bos_token_id:
            ids = [self.config.bos_token_id, *ids]
        if self.unknown_token_id in ids:
            raise ValueError(f"instruction {task!r} has words that the tokenizer does not know")
        ids = append_empty_token(ids, self.empty_token_id)
        length, limit = self.config.sequence_length(len(ids)), self.config.llm_max_length
        if length > limit:
            raise ValueError(f"instruction of {len(ids)} tokens makes {length} > {limit} positions")
        return ids
