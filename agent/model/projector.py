"""Projections into the language model's embedding space."""

import torch.nn.functional as F
from torch import Tensor, nn


class FusedProjector(nn.Module):
    """Patch features to embeddings (arch_specifier `no-align+fused-gelu-mlp`)."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, patches, vision_dim) -> (B, patches, llm_dim)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Normalised robot state to one embedding; published as a separate `.pt` file."""

    def __init__(self, proprio_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, proprio: Tensor) -> Tensor:
        """(B, proprio_dim) -> (B, 1, llm_dim)."""
        return self.fc2(F.gelu(self.fc1(proprio))).unsqueeze(1)
