"""Where a network can be computed."""

import torch

from agent.wire.errors import ConfigError

KINDS = ("cpu", "cuda")


def check_device(setting: str, device: str) -> None:
    """Raises ConfigError, naming `setting`, unless torch can compute on `device` here."""
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{setting}: {device} is not there ({reason}); use {setting}=cpu"
        ) from error
    if kind not in KINDS:
        raise ConfigError(f"{setting}: expected one of {', '.join(KINDS)}, got {device}")
