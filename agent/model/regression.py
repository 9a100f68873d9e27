"""OpenVLA-OFT's L1 regression head; published as `action_head--<step>_checkpoint.pt`."""

import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL_BLOCKS = 2


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    """A narrow residual MLP between two layer norms, under the published key names."""

    def __init__(self, in_dim: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(dim) for _ in range(RESIDUAL_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(dim)
        self.fc2 = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class RegressionHead(nn.Module):
    """The hidden states of one action's A positions to that action."""

    def __init__(self, llm_dim: int, action_dim: int) -> None:
        super().__init__()
        self.model = ResidualMlp(llm_dim * action_dim, llm_dim, action_dim)

    def forward(self, hidden_BKAH: Tensor) -> Tensor:
        """(B, K, A, H) -> normalised actions (B, K, A), not clipped."""
        return self.model(hidden_BKAH.flatten(2))
