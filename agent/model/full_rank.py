"""Whole weights trained as an adapter: served, published and resumed as any other.

The update of a weight W (out x in) is B A with one factor the identity, padded with zeros:

    in <= out:  A = [I; 0] frozen,  B trained; its first `in` columns are the update
    in  > out:  B = [I, 0] frozen,  A trained; its first `out` rows are the update

At scale 1 the trained factor's gradient is W's own, and zero in the padding, so every optimiser
step, clipping included, is the one that would be taken on W. Weight decay alone differs: it pulls
back to the base, not to zero. What carries no adapter stays frozen: norms, biases, embeddings, the
projector of the robot's state and regressing heads.
"""

import torch
from torch import Tensor, nn

from agent.model.libraries import PeftModel
from agent.model.lora import TRAINED, lora_targets
from agent.model.network import PolicyNetwork


def whole_rank(model: PolicyNetwork) -> int:
    """The rank at which an adapter can be any update of any of its targets."""
    return max(min(_sides(model.get_submodule(name).weight)) for name in lora_targets(model))


@torch.no_grad()
def train_whole_weights(peft_model: PeftModel) -> None:
    """Make one factor of every target the identity and freeze it; the other one is zero.

    The adapter's rank is `whole_rank` of the model and its scale 1.
    """
    for module in peft_model.modules():
        if not hasattr(module, "lora_A"):
            continue
        assert isinstance(module.lora_A, nn.ModuleDict)
        assert isinstance(module.lora_B, nn.ModuleDict)
        a, b = module.lora_A[TRAINED].weight, module.lora_B[TRAINED].weight
        frozen, trained = (a, b) if a[0].numel() <= len(b) else (b, a)
        frozen.copy_(torch.eye(len(frozen), frozen[0].numel()).view_as(frozen))
        frozen.requires_grad_(False)
        trained.zero_()


def _sides(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight, a convolution's flattened."""
    return len(weight), weight[0].numel()
