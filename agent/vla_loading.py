"""The served policy of a configuration: what cannot work is said before anything is served."""

from __future__ import annotations

import torch

from agent.config import PolicyConfig
from agent.model.devices import check_device
from agent.model.errors import ModelFolderError
from agent.model.policy_model import load_policy_model
from agent.vla_policy import VlaPolicy
from agent.wire.errors import ConfigError


def load_vla_policy(config: PolicyConfig) -> VlaPolicy:
    """The policy of a model folder, compiled if that is asked for.

    Raises:
        ConfigError: a folder, a device or a setting that cannot work.
    """
    check_device("policy.device", config.device)
    try:
        policy = _load(config)
        if config.compile:
            policy.warm_up()
    except (ModelFolderError, OSError) as error:
        raise ConfigError(f"policy.model_dir: {error}") from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise ConfigError(
            f"policy.device: the model does not fit {config.device}: {reason}; use "
            "policy.dtype=bfloat16, fewer policy.adapter_slots or a smaller policy.adapter_rank, "
            "policy.merge_hot=false, or policy.device=cpu"
        ) from error
    return policy


def _load(config: PolicyConfig) -> VlaPolicy:
    model = load_policy_model(
        config.model_dir,
        config.architecture,
        config.cameras,
        config.unnorm_key,
        getattr(torch, config.dtype),
        config.device,
    )
    if config.compile and model.config.is_autoregressive:
        raise ConfigError(
            "policy.compile: variant openvla is generated token by token and is not compiled; use "
            "policy.compile=false"
        )
    if config.compile:
        check_compiler(config.device)
    return VlaPolicy(
        model,
        micro_batch=config.micro_batch,
        adapter_slots=config.adapter_slots,
        adapter_rank=config.adapter_rank,
        compiled=config.compile,
        merge_hot=config.merge_hot,
    )


def check_compiler(device: str) -> None:
    """Raises ConfigError unless torch.compile works here: it generates code and builds it."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of a compiler, a cache or a package: it raises anything
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"policy.compile: torch.compile does not work here: {reason}; install a C++ compiler "
            "and Python's headers (sudo apt-get install -y g++ python3-dev), or use "
            "policy.compile=false"
        ) from error
