"""The two vision towers, with timm's parameter names.

Both towers return the second-to-last block's patch tokens without a final norm, as the published
models do; the last block, the final norm and SigLIP's attention pooling are stored in every
checkpoint and never run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig
from agent.model.towers import TowerConfig

LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Non-overlapping patches of a 3-channel image to tokens."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, tower.dim, tower.patch_size, stride=tower.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, dim)."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with a joint qkv projection."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.heads = tower.heads
        self.qkv = nn.Linear(tower.dim, 3 * tower.dim)
        self.proj = nn.Linear(tower.dim, tower.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, tokens, dim) -> (N, tokens, dim)."""
        n, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(n, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, dim))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """Per-channel gain; the published key is `scale_factor`, not timm's `gamma`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return tokens * self.scale_factor


class Film(nn.Module):
    """Feature-wise linear modulation by the instruction (Perez et al., 2018; OpenVLA-OFT+).

    One gain and one offset per channel, the same for every token: x (1 + scale(l)) + shift(l).
    """

    def __init__(self, language_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(language_dim, dim)
        self.shift = nn.Linear(language_dim, dim)

    def forward(self, tokens: Tensor, language: Tensor) -> Tensor:
        """(N, tokens, dim) and the mean prompt embedding (N, language_dim) -> (N, tokens, dim)."""
        return tokens * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]


class Block(nn.Module):
    """Pre-norm transformer block; DINOv2 scales both residual branches.

    Args:
        film_dim: width of the instruction's embedding, 0 without FiLM. The modulation sits
            between the attention and the MLP.
    """

    def __init__(self, tower: TowerConfig, film_dim: int) -> None:
        super().__init__()
        scaled = tower.kind == "dinov2"
        self.norm1 = nn.LayerNorm(tower.dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(tower)
        self.ls1 = LayerScale(tower.dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(tower.dim, tower.mlp_dim)
        self.ls2 = LayerScale(tower.dim) if scaled else nn.Identity()
        self.film = Film(film_dim, tower.dim) if film_dim else None

    def forward(self, tokens: Tensor, language: Tensor | None) -> Tensor:
        """(N, tokens, dim) -> (N, tokens, dim); `language` (N, film_dim) is there with FiLM."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        if self.film is not None:
            tokens = self.film(tokens, language)
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class StoredAttentionPool(nn.Module):
    """SigLIP's pooling head: parameters of the checkpoint that the policy never runs."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, tower.dim))
        self.q = nn.Linear(tower.dim, tower.dim)
        self.kv = nn.Linear(tower.dim, 2 * tower.dim)
        self.proj = nn.Linear(tower.dim, tower.dim)
        self.norm = nn.LayerNorm(tower.dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(tower.dim, tower.mlp_dim)


class VisionTower(nn.Module):
    """One ViT. Position embeddings are added to the patches only, prefix tokens have none."""

    def __init__(self, tower: TowerConfig, patches: int, film_dim: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(tower)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, tower.dim))
        self.prefix_names: list[str] = []
        if tower.kind == "dinov2":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.dim))
            self.prefix_names.append("cls_token")
            if tower.registers:
                self.reg_token = nn.Parameter(torch.zeros(1, tower.registers, tower.dim))
                self.prefix_names.append("reg_token")
        else:
            self.attn_pool = StoredAttentionPool(tower)
        self.blocks = nn.ModuleList(Block(tower, film_dim) for _ in range(tower.depth))
        self.norm = nn.LayerNorm(tower.dim, eps=LAYER_NORM_EPS)

    def forward(self, pixels: Tensor, language: Tensor | None) -> Tensor:
        """(N, 3, H, W) -> (N, patches, dim), the second-to-last block's output."""
        patches = self.patch_embed(pixels) + self.pos_embed
        prefix = [getattr(self, name).expand(len(pixels), -1, -1) for name in self.prefix_names]
        tokens = torch.cat([*prefix, patches], dim=1)
        for block in list(self.blocks)[:-1]:
            tokens = block(tokens, language)
        return tokens[:, tokens.shape[1] - patches.shape[1] :]


class VisionBackbone(nn.Module):
    """Both towers over every image, features concatenated."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        dino, siglip = config.towers
        film_dim = config.llama_config().hidden_size if config.use_film else 0
        self.featurizer = VisionTower(dino, config.patches_per_image, film_dim)
        self.fused_featurizer = VisionTower(siglip, config.patches_per_image, film_dim)

    def forward(self, pixel_values: Tensor, language: Tensor | None = None) -> Tensor:
        """(B, images, 6, H, W) -> (B, images * patches, dino dim + siglip dim).

        Channels 0..2 carry DINOv2's normalisation, 3..5 SigLIP's. `language` (B, llm dim) is the
        mean prompt embedding, needed with FiLM.
        """
        flat = pixel_values.flatten(0, 1)
        if language is not None:
            language = language.repeat_interleave(pixel_values.shape[1], dim=0)
        features = torch.cat(
            [self.featurizer(flat[:, :3], language), self.fused_featurizer(flat[:, 3:], language)],
            dim=-1,
        )
        return features.view(len(pixel_values), -1, features.shape[-1])
