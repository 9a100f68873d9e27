"""Geometry of the two vision towers; the published pair by its timm ids."""

from dataclasses import dataclass
from typing import Any, Literal

from agent.model.errors import ModelFolderError


@dataclass(frozen=True)
class TowerConfig:
    """Geometry of one vision tower.

    `depth` counts the stored blocks; the last one is stored but never run. `registers` counts
    DINOv2 register tokens (a SigLIP tower has none, and no cls token either).
    """

    kind: Literal["dinov2", "siglip"]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_size: int
    registers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("dinov2", "siglip"):
            raise ModelFolderError(f"vision_towers.kind must be dinov2 or siglip, got {self.kind}")
        if self.dim % self.heads:
            raise ModelFolderError(
                f"vision_towers: dim {self.dim} is not divisible by heads {self.heads}"
            )
        if self.depth < 2:
            raise ModelFolderError(
                f"vision_towers.depth must be at least 2 (the last block never runs), got "
                f"{self.depth}"
            )
        if self.kind == "siglip" and self.registers:
            raise ModelFolderError("vision_towers: a siglip tower has no registers")


PUBLISHED_TOWERS = {
    "vit_large_patch14_reg4_dinov2": TowerConfig("dinov2", 1024, 24, 16, 4096, 14, registers=4),
    "vit_so400m_patch14_siglip_224": TowerConfig("siglip", 1152, 27, 16, 4304, 14),
}


def parse_tower(values: dict[str, Any]) -> TowerConfig:
    """A tower from config.json. Raises ModelFolderError for unknown or missing fields."""
    try:
        return TowerConfig(**values)
    except TypeError as error:
        raise ModelFolderError(f"vision_towers entry {values}: {error}") from error


def check_towers(towers: tuple[TowerConfig, ...], image_size: int) -> None:
    """Raises ModelFolderError unless they are a pair that can be run on images of this side."""
    kinds = [tower.kind for tower in towers]
    if kinds != ["dinov2", "siglip"]:
        raise ModelFolderError(f"vision towers must be [dinov2, siglip], got {kinds}")
    for tower in towers:
        if image_size % tower.patch_size:
            raise ModelFolderError(
                f"image_sizes {image_size} is not divisible by patch_size {tower.patch_size}"
            )
    if len({tower.patch_size for tower in towers}) != 1:
        raise ModelFolderError("vision_towers must share one patch_size")
