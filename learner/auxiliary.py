"""Training-only heads that teach the nano policy to see; none of them is saved with the policy.

Published VLAs start from towers pretrained on billions of images. The nano policy starts from
nothing, so its towers and projector first learn to localise the scene, and behaviour cloning
keeps a small regression loss on where the relevant object and goal are.
"""

import torch
from torch import Tensor, nn


class SceneReadout(nn.Module):
    """Regresses the standardised privileged state from the projected patches of all images."""

    def __init__(self, tokens: int, dim: int, state_dim: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, 16)
        self.mlp = nn.Sequential(
            nn.GELU(), nn.Linear(tokens * 16, 256), nn.GELU(), nn.Linear(256, state_dim)
        )

    def forward(self, patches_BND: Tensor) -> Tensor:
        """(B, patches of all images, D) -> (B, S)."""
        return self.mlp(self.squeeze(patches_BND).flatten(1))


class TargetReadout(nn.Module):
    """Regresses the standardised target (object and goal relative to the hand) from h0."""

    def __init__(self, dim: int, target_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 128), nn.GELU(), nn.Linear(128, target_dim))

    def forward(self, h0_BH: Tensor) -> Tensor:
        """(B, H) -> (B, target)."""
        return self.mlp(h0_BH)


class Standardiser:
    """Zero mean, unit variance per dimension; constant dimensions stay zero."""

    def __init__(self, values_ND: Tensor) -> None:
        self.mean = values_ND.mean(0)
        self.std = values_ND.std(0)
        self.scale = torch.where(self.std > 1e-6, 1 / self.std.clamp(min=1e-6), 0.0)

    def __call__(self, values_BD: Tensor) -> Tensor:
        return (values_BD - self.mean) * self.scale
