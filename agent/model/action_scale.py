"""The spread of a regressing policy's actions, stored beside its adapter.

`action_scale.json` holds one positive number an action dimension, in normalised units at
temperature 1. An adapter without the file acts with the config's `laplace_scale`.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from agent.model.config import OpenVLAConfig
from agent.model.lora import AdapterError

FILE_NAME = "action_scale.json"
SMALLEST, LARGEST = 2.0**-13, 2.0  # exact in float32: what was clamped to them reads back


def initial_scale(config: OpenVLAConfig) -> Tensor:
    """float32 (A,)."""
    return torch.full((config.action_dim,), config.laplace_scale)


def write_scale(scale_A: Tensor) -> bytes:
    """The file's content; equal values, equal bytes."""
    return (json.dumps({"scale": scale_A.detach().tolist()}) + "\n").encode()


def read_scale(folder: Path, config: OpenVLAConfig) -> Tensor:
    """float32 (A,).

    Raises:
        AdapterError: the file is damaged, or its numbers are no usable spread.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return initial_scale(config)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["scale"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterError(
            f'{path} is damaged, expected {{"scale": [...]}}: fetch the adapter again'
        ) from error
    usable = isinstance(values, list) and all(
        type(v) in (int, float) and SMALLEST <= v <= LARGEST for v in values
    )
    if not usable or len(values) != config.action_dim:
        raise AdapterError(
            f"{path}: expected {config.action_dim} numbers from {SMALLEST} to {LARGEST}, got "
            f"{values!r:.80}"
        )
    return torch.tensor(values, dtype=torch.float32)
