"""Activation checkpointing: memory for time when an adapter of a large model is trained."""

import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from agent.model.network import PolicyNetwork
from agent.model.openvla import OpenVLA


def recompute_blocks(model: PolicyNetwork) -> None:
    """Full activation checkpointing: every block that runs keeps its input alone."""
    for block in _blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _blocks(model: PolicyNetwork) -> Iterator[nn.Module]:
    if not isinstance(model, OpenVLA):
        return  # the convolutional policy is too small to be worth it
    backbone = model.vision_backbone
    for tower in (backbone.featurizer, backbone.fused_featurizer):
        yield from list(tower.blocks)[:-1]
    yield from model.language_model.model.layers
